from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from embedgrpc.models.graphs.heads.pooling import append_embedding_head
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.kinds import Pooling

HIDDEN_SIZE = 6
# The oldest supported opset, those before and after changes of reductions, and a new one.
OPSETS = [(11, 6), (13, 7), (17, 8), (18, 8), (21, 10)]


def _head(
    folder: Path, poolings: tuple[Pooling, ...], *, normalize: bool, opset: int = 17, ir: int = 8
) -> onnxruntime.InferenceSession:
    graph = onnx.GraphProto(name="head")
    sizes: list[str | int | None] = ["batch", "tokens", HIDDEN_SIZE]
    graph.input.extend(
        [
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, sizes),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, sizes[:2]),
        ]
    )
    with GraphWriter(folder, graph, opset=opset) as writer:
        outputs = append_embedding_head(
            writer,
            hidden="hidden",
            attention_mask="attention_mask",
            hidden_size=HIDDEN_SIZE,
            poolings=poolings,
            normalize=normalize,
        )
    size = HIDDEN_SIZE * len(poolings)
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name in outputs
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def _pool(pooling: Pooling, tokens: NDArray[Any]) -> NDArray[Any]:
    """Pool the real tokens of one text, [tokens, hidden_size]."""
    weights = np.arange(1, len(tokens) + 1)[:, None]
    pooled: dict[Pooling, NDArray[Any]] = {
        Pooling.CLS: tokens[0],
        Pooling.MAX: tokens.max(axis=0),
        Pooling.MEAN: tokens.mean(axis=0),
        Pooling.MEAN_SQRT_LEN: tokens.sum(axis=0) / np.sqrt(len(tokens)),
        Pooling.WEIGHTED_MEAN: (tokens * weights).sum(axis=0) / weights.sum(),
        Pooling.LAST_TOKEN: tokens[-1],
    }
    return pooled[pooling]


def _batch(side: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Make three texts of 5, 1 and 3 tokens, with negative values, so that padding would show."""
    hidden = -np.abs(np.random.default_rng(7).normal(size=(3, 5, HIDDEN_SIZE))).astype(np.float32)
    steps = np.arange(5)[None, :] if side == "right" else np.arange(5)[None, ::-1]
    return hidden, (steps < np.array([[5], [1], [3]])).astype(np.int64)


@pytest.mark.parametrize(("opset", "ir"), OPSETS)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling", Pooling)
def test_pooling(tmp_path: Path, pooling: Pooling, side: str, opset: int, ir: int) -> None:
    """A pooling uses the real tokens only, with every opset and padding on either side."""
    session = _head(tmp_path, (pooling,), normalize=False, opset=opset, ir=ir)
    hidden, mask = _batch(side)
    (vectors,) = session.run(None, {"hidden": hidden, "attention_mask": mask})
    wanted = [_pool(pooling, row[real == 1]) for row, real in zip(hidden, mask, strict=True)]
    np.testing.assert_allclose(vectors, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pooling", [Pooling.CLS, Pooling.MAX, Pooling.LAST_TOKEN])
def test_padding_that_is_not_finite_stays_out(tmp_path: Path, pooling: Pooling) -> None:
    """Values of the padding do not reach poolings that choose values."""
    session = _head(tmp_path, (pooling,), normalize=True)
    hidden, mask = _batch("right")
    hidden[mask == 0] = np.nan
    vectors, _ = session.run(None, {"hidden": hidden, "attention_mask": mask})
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.MEAN_SQRT_LEN, Pooling.WEIGHTED_MEAN])
def test_a_row_without_tokens_becomes_zeros(tmp_path: Path, pooling: Pooling) -> None:
    """Poolings that divide by the number of tokens return zeros for a row of padding only."""
    session = _head(tmp_path, (pooling,), normalize=True)
    hidden, mask = _batch("right")
    mask[1] = 0
    vectors, _ = session.run(None, {"hidden": hidden, "attention_mask": mask})
    assert not vectors[1].any()
    assert np.isfinite(vectors).all()


def test_poolings_are_concatenated(tmp_path: Path) -> None:
    """Several poolings are concatenated in their order."""
    session = _head(tmp_path, (Pooling.MEAN, Pooling.CLS), normalize=False)
    hidden, mask = _batch("right")
    (vectors,) = session.run(None, {"hidden": hidden, "attention_mask": mask})
    np.testing.assert_allclose(vectors[:, HIDDEN_SIZE:], hidden[:, 0], rtol=1e-6)
    np.testing.assert_allclose(vectors[0, :HIDDEN_SIZE], hidden[0].mean(axis=0), rtol=1e-6)


def test_normalize(tmp_path: Path) -> None:
    """The normalised vector has length 1, the pooled one is unchanged, and zeros stay zeros."""
    session = _head(tmp_path, (Pooling.CLS,), normalize=True)
    hidden, mask = _batch("right")
    hidden[1] = 0.0
    vectors, pooled = session.run(
        ["sentence_embedding", "pooled_embedding"], {"hidden": hidden, "attention_mask": mask}
    )
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 1], rtol=1e-6)
    np.testing.assert_array_equal(pooled, hidden[:, 0])
    assert not vectors[1].any()
