import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from embedgrpc.models.kinds import WeightType
from embedgrpc.triton_repository.config import RepositoryModel, make_config, warm_up_files
from embedgrpc.triton_repository.errors import RepositoryError
from embedgrpc.triton_repository.execution import Execution, Precision, Processor
from embedgrpc.triton_repository.writing import check_place, write_model
from tests.triton.models import CPU, prepare_model

GPU = Execution(processor=Processor.GPU, cores=2, max_batch_size=64)
NEVER = {
    "default_queue_policy", "priority_levels", "priority_queue_policy", "response_cache",
    "sequence_batching", "model_transaction_policy", "preferred_batch_size", "preserve_ordering",
}  # fmt: skip


@pytest.fixture(scope="module")
def bert(cache_dir: Path) -> RepositoryModel:
    """A small embedding model."""
    return prepare_model("bert-mean", cache_dir)


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _dims(values: Any) -> dict[str, tuple[int, list[int]]]:
    return {value.name: (value.data_type, list(value.dims)) for value in values}


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        (
            "bert-mean",
            {"sentence_embedding": [32], "pooled_embedding": [32], "token_vectors": [-1, 32]},
        ),
        (
            "gemma-dense",
            {"sentence_embedding": [36], "pooled_embedding": [36], "token_vectors": [-1, 36]},
        ),
        (
            "xlmr-bge-m3",
            {
                "sentence_embedding": [32],
                "pooled_embedding": [32],
                "token_weights": [-1],
                "token_embeddings": [-1, 32],
                "token_vectors": [-1, 32],
            },
        ),
        ("splade-bert", {"vocabulary_weights": [1250]}),
        ("cross-bert", {"logits": [1]}),
    ],
)
def test_inputs_and_outputs_are_those_of_the_graph(
    name: str, outputs: dict[str, list[int]], cache_dir: Path
) -> None:
    """The configuration has each tensor with its type and its free axes."""
    model = prepare_model(name, cache_dir)
    config = make_config(model, CPU)
    assert tuple(value.name for value in config.input) == model.graph.inputs
    assert all(
        found == (model_config_pb2.TYPE_INT64, [-1]) for found in _dims(config.input).values()
    )
    assert _dims(config.output) == {
        output: (model_config_pb2.TYPE_FP32, dims) for output, dims in outputs.items()
    }


def test_the_written_text_is_the_configuration(bert: RepositoryModel, tmp_path: Path) -> None:
    """The text can be parsed; it names the model and its limits, and has no queue policy."""
    place = write_model(tmp_path / "new/repository", bert, CPU)
    text = (place / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config == make_config(bert, CPU)
    assert (config.name, config.backend, config.max_batch_size) == ("bert-mean", "onnxruntime", 16)
    assert config.version_policy.latest.num_versions == 1
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert config.parameters["embedgrpc_source"].string_value == bert.source
    assert config.parameters["embedgrpc_fingerprint"].string_value == bert.graph.content_hash
    assert not [word for word in NEVER if word in text]


@pytest.mark.parametrize(
    ("cores", "instances", "threads"), [(1, 1, 1), (8, 1, 8), (8, 3, 2), (2, 2, 1)]
)
def test_instances_on_a_cpu_share_its_cores(
    bert: RepositoryModel, cores: int, instances: int, threads: int
) -> None:
    """The threads of all instances together do not exceed the cores."""
    config = make_config(bert, replace(CPU, cores=cores, instances=instances))
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_CPU, instances)
    assert config.parameters["intra_op_thread_count"].string_value == str(threads)
    assert config.parameters["inter_op_thread_count"].string_value == "1"
    assert not config.optimization.HasField("execution_accelerators")


def test_a_gpu_computes_in_full_precision(bert: RepositoryModel) -> None:
    """TF32 is off, so that vectors are the same as in this process."""
    config = make_config(bert, replace(GPU, instances=2))
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 2)
    (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})


def test_tensorrt_is_built_for_a_range_of_shapes(bert: RepositoryModel) -> None:
    """TensorRT precedes CUDA, with the smallest, tuned and largest batch, and a cache."""
    execution = replace(GPU, tensorrt=Precision.FLOAT16, tensorrt_cache="/cache")
    config = make_config(bert, execution)
    tensorrt, cuda = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (tensorrt.name, cuda.name) == ("tensorrt", "cuda")
    assert dict(tensorrt.parameters) == {
        "precision_mode": "FP16",
        "trt_profile_min_shapes": "input_ids:1x1,attention_mask:1x1,token_type_ids:1x1",
        "trt_profile_opt_shapes": "input_ids:32x64,attention_mask:32x64,token_type_ids:32x64",
        "trt_profile_max_shapes": "input_ids:64x64,attention_mask:64x64,token_type_ids:64x64",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/cache",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/cache",
    }
    assert {warm_up.name for warm_up in config.model_warmup} == {"1_of_1", "32_of_64"}


def test_vectors_of_less_precision_have_another_fingerprint(bert: RepositoryModel) -> None:
    """TensorRT in half precision changes the fingerprint, and in float32 it does not."""

    def fingerprint(precision: Precision | None) -> str:
        config = make_config(bert, replace(GPU, tensorrt=precision))
        value: str = config.parameters["embedgrpc_fingerprint"].string_value
        return value

    assert fingerprint(None) == fingerprint(Precision.FLOAT32) == bert.graph.content_hash
    assert len({fingerprint(one) for one in (None, Precision.FLOAT16, Precision.BFLOAT16)}) == 3


def test_warm_up_requests(bert: RepositoryModel) -> None:
    """Warm-up requests have ids of 0 and a mask of ones, within the model's limits."""
    execution = replace(CPU, max_batch_size=4)
    config = make_config(bert, execution)
    files = warm_up_files(bert, execution)
    assert [warm_up.name for warm_up in config.model_warmup] == ["1_of_16", "4_of_64"]
    for warm_up in config.model_warmup:
        assert set(warm_up.inputs) == set(bert.graph.inputs)
        for name, value in warm_up.inputs.items():
            (tokens,) = value.dims
            assert tokens <= bert.properties.max_tokens
            if name == "attention_mask":
                ones = np.frombuffer(files[value.input_data_file], "<i8")
                assert ones.tolist() == [1] * tokens
            else:
                assert value.zero_data


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cores": 2, "instances": 3}, "instances 3 is more than cores 2"),
        ({"tensorrt": Precision.FLOAT16}, "set kind to gpu"),
        ({"tensorrt_cache": "/cache"}, "tensorrt is not"),
    ],
)
def test_values_that_do_not_go_together(wrong: dict[str, Any], message: str) -> None:
    """An impossible execution is refused."""
    with pytest.raises(RepositoryError, match=message):
        replace(CPU, **wrong)


@pytest.mark.parametrize(
    ("weight_type", "execution", "processor"),
    [(WeightType.FLOAT16, CPU, "gpu"), (WeightType.INT8, GPU, "cpu")],
)
def test_weights_of_the_other_processor(
    bert: RepositoryModel,
    tmp_path: Path,
    weight_type: WeightType,
    execution: Execution,
    processor: str,
) -> None:
    """A graph that would be slow or fail on the chosen device is refused."""
    model = replace(bert, properties=replace(bert.properties, weight_type=weight_type))
    with pytest.raises(RepositoryError, match=f"set kind to {processor}"):
        write_model(tmp_path, model, execution)
    assert list(tmp_path.iterdir()) == []


def test_writing_again_replaces_what_was_written(bert: RepositoryModel, tmp_path: Path) -> None:
    """The same model gets the same bytes; another execution changes the configuration."""
    place = write_model(tmp_path, bert, CPU)
    first = _contents(place)
    write_model(tmp_path, bert, CPU)
    assert _contents(place) == first
    write_model(tmp_path, bert, replace(CPU, max_batch_size=3))
    assert "max_batch_size: 3" in (place / "config.pbtxt").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["bert-mean"]


def _edit(place: Path) -> None:
    with (place / "config.pbtxt").open("a") as config:
        config.write("# tuned by hand\n")


def _add_version(place: Path) -> None:
    (place / "2").mkdir()
    (place / "2/model.onnx").write_bytes(b"")


def _take_for_another(place: Path) -> None:
    (place / "embedgrpc.json").write_text(json.dumps({"files": "none"}))


def _lose_manifest(place: Path) -> None:
    (place / "embedgrpc.json").unlink()


@pytest.mark.parametrize("change", [_edit, _add_version, _take_for_another, _lose_manifest])
def test_changed_folders_are_not_replaced(
    bert: RepositoryModel, tmp_path: Path, change: Any
) -> None:
    """A folder that was changed after it was written stays as it is."""
    place = write_model(tmp_path, bert, CPU)
    change(place)
    before = _contents(place)
    with pytest.raises(RepositoryError, match="not written by this command, or has changed"):
        write_model(tmp_path, bert, CPU)
    assert _contents(place) == before


def test_links_and_files_are_not_replaced(bert: RepositoryModel, tmp_path: Path) -> None:
    """Links and files are neither followed nor removed, not even a link to a written model."""
    place = write_model(tmp_path / "here", bert, CPU)
    there = tmp_path / "there"
    there.mkdir()
    (there / "bert-mean").symlink_to(place)
    (there / "other").write_text("text")
    for name in ("bert-mean", "other"):
        with pytest.raises(RepositoryError, match="not written by this command"):
            check_place(there, name)
    with pytest.raises(RepositoryError, match="is not a folder"):
        check_place(there / "other", "bert-mean")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a:b", "é", "-x", "x" * 129])
def test_names_that_are_not_portable(name: str, tmp_path: Path) -> None:
    """A name must be valid as a folder's name on every system."""
    with pytest.raises(RepositoryError, match="cannot name a model's folder"):
        check_place(tmp_path, name)


def test_a_model_that_cannot_be_copied_leaves_the_old_one(
    bert: RepositoryModel, tmp_path: Path
) -> None:
    """A failure leaves no files behind, and the old model stays."""
    place = write_model(tmp_path, bert, CPU)
    before = _contents(place)
    elsewhere = tmp_path.parent / "no such folder" / "model.onnx"
    broken = replace(bert, graph=replace(bert.graph, path=elsewhere))
    with pytest.raises(RepositoryError, match="cannot be written"):
        write_model(tmp_path, broken, CPU)
    assert _contents(place) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bert-mean"]
