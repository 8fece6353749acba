"""The state of the models, what they take, and whether their servers can be reached."""

from collections.abc import Iterator

from embedgrpc.server.loading.catalog import Catalog, ModelState
from embedgrpc.server.telemetry.metrics import Reading


class ModelFigures:
    """Reads them when they are asked for.

    Args:
        catalog: The models.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def read(self) -> Iterator[Reading]:
        """Return the metrics. From any thread."""
        for model in self._catalog:
            attributes = {"model": model.id}
            for state in ModelState:
                yield Reading(
                    "embedgrpc.model.state",
                    int(model.state is state),
                    {**attributes, "state": state.name.lower()},
                )
            loaded = model.loaded
            yield Reading("embedgrpc.model.load.duration", model.load_s, attributes)
            weight_bytes = loaded.weight_bytes if loaded else 0
            yield Reading("embedgrpc.model.weights", weight_bytes, attributes)
            if loaded is not None and loaded.availability is not None:
                for endpoint, is_up in loaded.availability.endpoints().items():
                    yield Reading(
                        "embedgrpc.triton.endpoint.up",
                        int(is_up),
                        {**attributes, "endpoint": endpoint},
                    )
