"""`embedgrpc triton-repo`: writes models into a folder from which Triton serves them."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedgrpc.cli.flags import add_flags, read_configuration
from embedgrpc.cli.refusing import refuse
from embedgrpc.cli.sources import find_model
from embedgrpc.machine.cores import available_cores
from embedgrpc.models.errors import ModelError
from embedgrpc.server.settings.configuration import SettingsError
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings

if TYPE_CHECKING:
    from embedgrpc.triton_repository.execution import Execution

_INSTANCES_MAX = 64
_CORES_MAX = 1024
_BATCH_SIZE_MAX = 65_536
_QUEUE_DELAY_US_MAX = 1_000_000


def add_parser(commands: Any) -> None:
    """Adds the command to a parser."""
    parser = commands.add_parser(
        "triton-repo",
        allow_abbrev=False,
        help="write a model repository for a Triton server",
        description="Writes each model, with its head, into a folder from which NVIDIA Triton"
        " serves it on ONNX Runtime, and prints a line for each: name, source, fingerprint and"
        " folder, separated by tabs. Replaces what it wrote before, and nothing else. Exits with 1"
        " when a model cannot be had, and with 2 when a setting or the folder cannot be used.",
        epilog="Then: tritonserver --model-repository DIR --disable-auto-complete-config, and"
        " embedgrpc serve --model triton:HOST:8001/NAME.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="[ID=]SOURCE",
        help="a model, as in --model; the name is the last part of the source unless it is given",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the model repository")
    parser.add_argument(
        "--kind", choices=("cpu", "gpu"), default="cpu", help="where it runs (default: cpu)"
    )
    parser.add_argument(
        "--instances",
        type=_whole(1, _INSTANCES_MAX),
        default=1,
        metavar="N",
        help="batches of a model that run at once, on each GPU or on the CPU (default: 1)",
    )
    parser.add_argument(
        "--cores",
        type=_whole(1, _CORES_MAX),
        metavar="N",
        help="cores of the server, which the instances on a CPU share (default: those here)",
    )
    parser.add_argument(
        "--max-batch-size",
        type=_whole(1, _BATCH_SIZE_MAX),
        default=256,
        metavar="N",
        help="the most sequences of a batch (default: 256)",
    )
    parser.add_argument(
        "--max-queue-delay-us",
        type=_whole(0, _QUEUE_DELAY_US_MAX),
        default=0,
        metavar="MICROSECONDS",
        help="how long Triton waits for requests of one shape to join; a lone request waits as"
        " long. embedgrpc forms batches itself (default: 0)",
    )
    parser.add_argument(
        "--tensorrt",
        choices=("float32", "float16", "bfloat16"),
        help="run on TensorRT, and compute in this; on a GPU only (default: CUDA alone)",
    )
    parser.add_argument(
        "--tensorrt-cache",
        default="",
        metavar="FOLDER",
        help="where the server keeps what TensorRT has built, as the server sees it",
    )
    add_flags(parser, ("cache_dir", "load_timeout_s", "load_memory_bytes"))
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Writes each model that can be had; returns 0, 1 or 2 as the description says."""
    # Late, so that help does not wait for it.
    from embedgrpc.triton_repository.errors import RepositoryError  # noqa: PLC0415 - see above
    from embedgrpc.triton_repository.writing import check_place  # noqa: PLC0415 - see above

    code = 0
    try:
        settings = read_configuration(parsed).settings
        models = [find_model(settings, source) for source in parsed.sources]
        _check_names(models)
        for model in models:
            check_place(parsed.folder, model.name)
        execution = _execution(parsed)
        for model in models:
            try:
                print(_write(model, parsed.folder, execution, settings), flush=True)
            except ModelError as error:
                code = refuse(error, code=1)
    except (SettingsError, RepositoryError, ModelError) as error:
        return refuse(error, code=2)
    return code


def _check_names(models: Sequence[ModelSettings]) -> None:
    owners: dict[str, str] = {}
    for model in models:
        if model.name in owners:
            raise SettingsError(
                f"two models are called {model.name!r}: {owners[model.name]} and {model.source};"
                " give one another name with ID=SOURCE"
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


def _write(named: ModelSettings, folder: Path, execution: "Execution", settings: Settings) -> str:
    from embedgrpc.cli.validated import prepare_validated  # noqa: PLC0415 - as above
    from embedgrpc.models.sources.source import resolve  # noqa: PLC0415 - as above
    from embedgrpc.triton_repository.config import RepositoryModel  # noqa: PLC0415 - as above
    from embedgrpc.triton_repository.writing import write_model  # noqa: PLC0415 - as above

    files = resolve(named.source)
    read, prepared = prepare_validated(files, named, settings)
    model = RepositoryModel(named.name, files.pinned_source, read, prepared)
    place = write_model(folder, model, execution)
    fingerprint = execution.fingerprint(prepared.content_hash)
    return "\t".join((model.name, model.source, fingerprint, str(place)))


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be {least} to {most}, not {text}")
        return number

    return parse
