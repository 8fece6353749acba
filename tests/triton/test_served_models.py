"""The answers of a tritonserver for a repository written by us."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as messages

from embedgrpc.backends.base import PaddedBatch
from embedgrpc.models.kinds import Kind
from tests.models.runner import FIXTURES, Runner, pad
from tests.triton.models import SOURCES
from tests.triton.server import TritonServer

pytestmark = pytest.mark.triton

TEXTS = (
    "The tower is 330 metres tall.",
    "Rivers flow to the sea.",
    "It is red, and longer than the others are, so that these have to be padded to its length.",
)


@pytest.fixture(scope="module", params=sorted(SOURCES))
def name(request: pytest.FixtureRequest) -> str:
    """One of the models."""
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def runner(name: str, cache_dir: Path) -> Runner:
    """The same model in this process."""
    return Runner.load(SOURCES[name], cache_dir)


def _infer(
    server: TritonServer, name: str, batch: PaddedBatch, inputs: tuple[str, ...]
) -> Mapping[str, NDArray[np.float32]]:
    """Run a batch on the server."""
    request = messages.ModelInferRequest(
        model_name=name,
        inputs=[
            messages.ModelInferRequest.InferInputTensor(
                name=one, datatype="INT64", shape=batch.input_ids.shape
            )
            for one in inputs
        ],
        outputs=[
            messages.ModelInferRequest.InferRequestedOutputTensor(name=one) for one in batch.outputs
        ],
        raw_input_contents=[getattr(batch, one).tobytes() for one in inputs],
    )
    response = server.call("ModelInfer", request, messages.ModelInferResponse)
    assert {one.datatype for one in response.outputs} == {"FP32"}
    contents = zip(response.outputs, response.raw_output_contents, strict=True)
    return {
        one.name: np.frombuffer(content, "<f4").reshape(tuple(one.shape))
        for one, content in contents
    }


@pytest.mark.parametrize("sequences", [1, len(TEXTS)])
def test_the_server_answers_as_this_process_does(
    name: str, sequences: int, runner: Runner, triton_server: TritonServer
) -> None:
    """Every output is the same as in this process, for a single text and a padded batch."""
    texts = TEXTS[:sequences]
    if runner.properties.kind is Kind.CROSS_ENCODER:
        tokenized = runner.tokenize_pairs([(TEXTS[0], text) for text in texts])
    else:
        tokenized = runner.tokenize(texts)
    batch = pad(tokenized, runner.properties, outputs=runner.graph.outputs)
    assert (batch.attention_mask == 0).any() == (sequences > 1)
    wanted = runner.backend.run(batch)
    answered = _infer(triton_server, name, batch, runner.graph.inputs)
    assert answered.keys() == wanted.keys()
    for output, values in wanted.items():
        assert np.isfinite(values).all()
        np.testing.assert_allclose(answered[output], values, rtol=0, atol=1e-5, err_msg=output)


def test_the_configuration_says_where_the_model_comes_from(
    name: str, runner: Runner, triton_server: TritonServer
) -> None:
    """The server returns source, fingerprint and the limit of a batch."""
    request = messages.ModelConfigRequest(name=name)
    config: model_config_pb2.ModelConfig = triton_server.call(
        "ModelConfig", request, messages.ModelConfigResponse
    ).config
    source = SOURCES[name]
    assert config.parameters["embedgrpc_source"].string_value == source
    assert config.parameters["embedgrpc_fingerprint"].string_value == runner.graph.content_hash
    assert config.max_batch_size == 16
    assert config.backend == "onnxruntime"


def test_models_were_warmed_up(name: str, triton_server: TritonServer) -> None:
    """The server ran batches of two sizes before it was ready."""
    request = messages.ModelStatisticsRequest(name=name)
    answer = triton_server.call("ModelStatistics", request, messages.ModelStatisticsResponse)
    (statistics,) = answer.model_stats
    sizes = {batch.batch_size for batch in statistics.batch_stats}
    assert sizes >= {1, 8}


def test_weights_lie_beside_the_graph(triton_repository: Path) -> None:
    """An export with external weights is written with them."""
    assert (FIXTURES / "gemma-dense/onnx/model.onnx_data").exists()
    names = {path.name for path in (triton_repository / "gemma-dense/1").iterdir()}
    assert names == {"model.onnx", "model.weights"}
