"""What trials leave: models and checkpoints in the runs' storage, embeddings, and runs in MLflow."""
