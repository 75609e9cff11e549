"""Search with an ensemble: exported models, libraries of recordings, and the MLflow model."""

from ensemble.serving.library import Library, load

__all__ = ["Library", "load"]
