"""Models that can do whatever the examples of the routes ask for."""

from embedgrpc.server.settings.model_settings import ModelSettings
from tests.server.service import FIXTURES

# One that embeds in every representation, and ranks; and one that classifies.
M3 = ModelSettings(id="org/m3", source=str(FIXTURES / "xlmr-bge-m3"))
LABELS = ModelSettings(id="labels", source=str(FIXTURES / "classify-sentiment"))
MODELS = (M3, LABELS)


def model_for(path: str) -> str:
    """Return the model for the example of a path."""
    return LABELS.id if path == "/predict" else M3.id
