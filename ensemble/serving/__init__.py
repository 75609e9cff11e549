"""Search with an ensemble: exported models, the index of recordings, and the MLflow model."""
