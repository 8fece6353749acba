"""Options are cached: earlier requests change no answer."""

import random
import tracemalloc

import numpy as np

from embedgrpc.server.contract.wire import delimited
from embedgrpc.v1 import embedding_service_pb2 as embedding
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.streams import Stream

_PROMPT_CHARACTERS_MAX = 8192
_MIB = 1024 * 1024


async def test_options_are_never_mixed_up(serve: Serve) -> None:
    """More kinds of options than are remembered, each many times, give each its own answer."""
    service = await serve()
    asked = list(range(1, 33)) * 8
    random.Random(3).shuffle(asked)  # noqa: S311 - which order does not matter
    whole = (await service.client.embed("a text")).embeddings[0].dense
    (wide,) = (await service.client.embed("a text", options={"normalize": False})).embeddings
    for number, dimensions in enumerate(asked):
        normalize = number % 2 == 0
        options = embedding.EmbedOptions(dimensions=dimensions, normalize=normalize)
        # Prompts make them more than are ever remembered.
        if prompt := f"{number % 7}: " if number % 3 == 0 else "":
            options.prompt_text = prompt
        (one,) = (await service.client.embed("a text", options=options)).embeddings
        vector = np.array(one.dense.values)
        assert len(vector) == dimensions
        if normalize:
            np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-5)
        elif not prompt:
            np.testing.assert_allclose(vector, wide.dense.values[:dimensions], atol=1e-6)
    assert (await service.client.embed("a text")).embeddings[0].dense == whole


async def test_wrong_options_are_refused_each_time(serve: Serve) -> None:
    """A refusal is no answer to remember, and it names the field where the options stand."""
    service = await serve()
    wrong = embedding.EmbedOptions(dimensions=100_000)
    for _ in range(3):
        failure = await failure_of(service.client.embed("a text", options=wrong))
        assert failure.fields == ("options.dimensions",)
        stream = Stream(service.client)
        await stream.set_up(options=wrong)
        failure = await stream.failure()
        assert failure.fields == ("setup.options.dimensions",)
        await service.client.embed("a text")


async def test_long_options_are_not_kept(serve: Serve) -> None:
    """Megabytes of unknown fields are ignored, and not cached."""
    service = await serve()
    await service.client.embed("a text")
    tracemalloc.start()
    try:
        for number in range(10):
            unknown = delimited(1000, bytes([number]) * _MIB)
            options = embedding.EmbedOptions.FromString(unknown)
            await service.client.embed("a text", options=options)
        del unknown, options
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 5 * _MIB


async def test_long_prompts_are_all_taken(serve: Serve) -> None:
    """Different prompts of the greatest length are read like any other."""
    service = await serve()
    for number in range(80):
        prompt = f"{number} " + "a " * (_PROMPT_CHARACTERS_MAX // 2 - 2)
        options = embedding.EmbedOptions(prompt_text=prompt, truncation="TRUNCATION_END")
        (one,) = (await service.client.embed("a text", options=options)).embeddings
        assert one.truncated
