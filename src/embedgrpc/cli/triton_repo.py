"""`embedgrpc triton-repo`: writes a model repository for Triton."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedgrpc.cli.failure import report
from embedgrpc.cli.flags import add_flags, add_model_flags, model_keys, read_configuration
from embedgrpc.cli.sources import find_model
from embedgrpc.machine.cores import available_cores
from embedgrpc.models.errors import ModelError
from embedgrpc.server.settings.configuration import SettingsError
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry import logs

if TYPE_CHECKING:
    from embedgrpc.triton_repository.execution import Execution

_INSTANCES_MAX = 64
_CORES_MAX = 1024
_BATCH_SIZE_MAX = 65_536
_QUEUE_DELAY_US_MAX = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.description = (
        "Writes models, with their heads, into a folder from which NVIDIA Triton serves them on"
        " ONNX Runtime. Prints a line for each: id, source, fingerprint and folder, separated by"
        " tabs. Replaces only what this command wrote before. Exits with 1 if a model cannot be"
        " prepared, and with 2 if a setting or the folder cannot be used."
    )
    parser.epilog = (
        "Then run: tritonserver --model-repository DIR --disable-auto-complete-config, and"
        " embedgrpc serve --model triton:HOST:8001/ID."
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="[ID=]SOURCE",
        help="a model, as in --model",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the model repository")
    parser.add_argument(
        "--kind", choices=("cpu", "gpu"), default="cpu", help="where it runs (default: cpu)"
    )
    parser.add_argument(
        "--instances",
        type=_whole_number(1, _INSTANCES_MAX),
        default=1,
        metavar="N",
        help="batches of one model that run at the same time, per GPU or on the CPU (default: 1)",
    )
    parser.add_argument(
        "--cores",
        type=_whole_number(1, _CORES_MAX),
        metavar="N",
        help="cores of the Triton server, shared by the instances on a CPU (default: the cores of"
        " this machine)",
    )
    parser.add_argument(
        "--max-batch-size",
        type=_whole_number(1, _BATCH_SIZE_MAX),
        default=256,
        metavar="N",
        help="maximum number of sequences in a batch (default: 256)",
    )
    parser.add_argument(
        "--max-queue-delay-us",
        type=_whole_number(0, _QUEUE_DELAY_US_MAX),
        default=0,
        metavar="MICROSECONDS",
        help="how long Triton waits for requests to batch together, also when no other comes."
        " embedgrpc forms batches itself (default: 0)",
    )
    parser.add_argument(
        "--tensorrt",
        choices=("float32", "float16", "bfloat16"),
        help="run on TensorRT with this precision, on a GPU only (default: run on CUDA)",
    )
    parser.add_argument(
        "--tensorrt-cache",
        default="",
        metavar="FOLDER",
        help="folder for TensorRT's engine cache, as the Triton server sees it",
    )
    add_flags(parser, ("cache_dir", "load_timeout_s", "load_memory_bytes"))
    add_model_flags(parser)


def run(parsed: argparse.Namespace) -> int:
    """Write each model; return 0, 1 or 2 as the description says."""
    # Late, so that help need not wait for gRPC.
    from embedgrpc.triton_repository.errors import RepositoryError  # noqa: PLC0415 - see above
    from embedgrpc.triton_repository.writing import check_place  # noqa: PLC0415 - see above

    code = 0
    try:
        settings = read_configuration(parsed).settings
        logs.configure_for_terminal(settings.log_level)
        keys = model_keys(parsed)
        models = [find_model(settings, source, keys) for source in parsed.sources]
        _check_names(models)
        for model in models:
            check_place(parsed.folder, model.name)
        execution = _execution(parsed)
        for model in models:
            try:
                print(_write(model, parsed.folder, execution, settings), flush=True)
            except ModelError as error:
                code = report(error, code=1)
    except (RepositoryError, ModelError) as error:
        return report(error, code=2)
    return code


def _check_names(models: Sequence[ModelSettings]) -> None:
    owners: dict[str, str] = {}
    for model in models:
        if model.name in owners:
            raise SettingsError(
                f"two models are called {model.name!r}: {owners[model.name]} and {model.source};"
                " give one another id with ID=SOURCE"
            )
        owners[model.name] = model.source


def _execution(parsed: argparse.Namespace) -> "Execution":
    from embedgrpc.triton_repository.execution import (  # noqa: PLC0415 - as above
        Execution,
        Precision,
        Processor,
    )

    return Execution(
        processor=Processor(parsed.kind),
        cores=parsed.cores or available_cores(),
        instances=parsed.instances,
        max_batch_size=parsed.max_batch_size,
        max_queue_delay_us=parsed.max_queue_delay_us,
        tensorrt=Precision(parsed.tensorrt) if parsed.tensorrt else None,
        tensorrt_cache=parsed.tensorrt_cache,
    )


def _write(model: ModelSettings, folder: Path, execution: "Execution", settings: Settings) -> str:
    from embedgrpc.cli.validated import prepare_validated  # noqa: PLC0415 - as above
    from embedgrpc.models.sources.source import resolve  # noqa: PLC0415 - as above
    from embedgrpc.triton_repository.config import RepositoryModel  # noqa: PLC0415 - as above
    from embedgrpc.triton_repository.writing import write_model  # noqa: PLC0415 - as above

    files = resolve(model.source, model.adapter)
    found, graphs = prepare_validated(files, model, settings)
    if found.has_router:
        raise ModelError(
            f"{files.folder}: the model has several routes, which are not run on Triton: serve"
            " this model with embedgrpc alone"
        )
    properties, graph = found.first, graphs[""]
    if properties.tasks:
        raise ModelError(
            f"{files.folder}: a request to Triton cannot choose a task: set task_id for this model"
        )
    if not properties.include_prompt:
        raise ModelError(
            f"{files.folder}: include_prompt is false, and a request to Triton cannot say which"
            " tokens belong to a prompt: serve this model with embedgrpc alone"
        )
    if properties.weight_table is not None:
        raise ModelError(
            f"{files.folder}: the model is a table of weights, which is not run on Triton: serve"
            " this model with embedgrpc alone"
        )
    written = RepositoryModel(model.name, files.pinned_source, properties, graph)
    place = write_model(folder, written, execution)
    fingerprint = execution.fingerprint(graph.content_hash)
    return "\t".join((written.name, written.source, fingerprint, str(place)))


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be {least} to {most}, not {text}")
        return number

    return parse
