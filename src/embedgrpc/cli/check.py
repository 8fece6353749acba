"""`embedgrpc check`: checks the settings without loading a model, and prints them."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embedgrpc.cli.failure import report
from embedgrpc.cli.flags import add_flags, read_configuration
from embedgrpc.cli.toml import write_value
from embedgrpc.machine.memory import available_memory_bytes
from embedgrpc.models.errors import ModelError
from embedgrpc.models.sources.source import find_local, find_local_adapter
from embedgrpc.models.sources.triton_source import is_triton_source
from embedgrpc.server.settings.configuration import Configuration
from embedgrpc.server.settings.model_settings import ModelSettings, default_model
from embedgrpc.server.settings.settings import MIB, Settings, settings_by_group
from embedgrpc.server.settings.worst_case import client_bytes, memory_warning

_TRITON_FILES = ("triton_ca_file", "triton_certificate_file", "triton_key_file")
_MODEL_NAMES = ("config.json", "modules.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.description = (
        "Checks the settings as far as that is possible without loading a model: values, ids,"
        " folders and files. Prints them as a configuration file, each with its origin. Exits with"
        " 0, or with 2 if `serve` would refuse them."
    )
    add_flags(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print the settings; return 0, or 2 if they cannot be used."""
    configuration = read_configuration(parsed)
    settings = configuration.settings
    for line in _as_toml(configuration):
        print(line)
    for name, suggestion in configuration.unknown_variables.items():
        report(f"variable {name} sets nothing{suggestion}", code=0)
    worst = client_bytes(settings)
    report(f"clients can occupy up to {worst // MIB} MiB, in addition to the models", code=0)
    if warning := memory_warning(settings, available_memory_bytes()):
        report(warning, code=0)
    sys.stdout.flush()
    problems = list(_find_problems(settings))
    return report("\n".join(problems), code=2) if problems else 0


def _as_toml(configuration: Configuration) -> Iterator[str]:
    origins = configuration.origins
    values: Mapping[str, Any] = configuration.settings.model_dump(mode="json")
    for title, names in settings_by_group().items():
        yield f"# {title}"
        for name in names:
            if name == "models":
                continue
            if values[name] is None:
                yield f"# {name} is not set  # {origins[name]}"
            else:
                yield f"{name} = {write_value(values[name])}  # {origins[name]}"
        yield ""
    # Tables come last: in TOML, all keys after a table's header belong to it.
    if not values["models"]:
        yield f"# models: the default model, {default_model().source}  # {origins['models']}"
    for model in configuration.settings.models:
        yield f"[[models]]  # {origins['models']}"
        chosen = model.model_dump(mode="json", exclude_defaults=True)
        for key, value in ({"id": model.name} | chosen).items():
            yield f"{key} = {write_value(value)}"
        yield ""


def _find_problems(settings: Settings) -> Iterator[str]:
    for model in settings.models or (default_model(),):
        yield from _find_problems_of(model)
    if settings.tls_certificate_file:
        yield from _find_problems_of_certificates(settings)
    for name in _TRITON_FILES:
        path = getattr(settings, name)
        if path and not Path(path).is_file():
            yield f"{name}: there is no file {path}"


def _find_problems_of_certificates(settings: Settings) -> Iterator[str]:
    # Imported only where it is used: it costs time.
    from embedgrpc.server.connections.certificates import (  # noqa: PLC0415 - see above
        CertificateError,
        read_certificates,
    )

    try:
        read_certificates(settings)
    except CertificateError as error:
        yield str(error)


def _find_problems_of(model: ModelSettings) -> Iterator[str]:
    if model.adapter:
        try:
            find_local_adapter(model.adapter)
        except ModelError as error:
            yield f"{model.name}: {error}"
    for source in (model.source, model.files, model.fallback):
        if not source or is_triton_source(source):
            continue
        try:
            files = find_local(source)
        except ModelError as error:
            yield f"{model.name}: {error}"
            continue
        if files and not any((files.folder / name).is_file() for name in _MODEL_NAMES):
            yield (
                f"{model.name}: {files.folder} is not the folder of a model: it has neither"
                f" {' nor '.join(_MODEL_NAMES)}"
            )
