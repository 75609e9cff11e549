"""MLflow model of an exported ensemble, from sentences to ranked clips with scores. MLflow runs this file."""

import mlflow
from mlflow.pyfunc import PythonModel, PythonModelContext
from pydantic import BaseModel

NUM_CLIPS = 10
"""Number of clips per sentence."""


class ScoredClip(BaseModel):
    """A clip with its score for a sentence."""

    path: str
    score: float


class Retriever(PythonModel):  # type: ignore[misc]
    """MLflow model that loads an exported ensemble and an index, and returns ranked clips for sentences."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the ensemble and the index from the artifacts that `registration.register_model` logged."""
        from ensemble.serving.library import load

        self.library = load(context.artifacts["ensemble"], context.artifacts["index"])

    def predict(self, model_input: list[str]) -> list[list[ScoredClip]]:
        """Return the NUM_CLIPS best recordings for each sentence, as paths with scores, the best first."""
        hits_by_sentence = self.library.search_vectors(self.library.embed_text(model_input), NUM_CLIPS)
        return [[ScoredClip(path=str(hit.path), score=hit.score) for hit in hits] for hits in hits_by_sentence]


mlflow.models.set_model(Retriever())
