"""Search with an ensemble: exported models, an index of recordings, and the MLflow model."""
