"""Writes configuration files."""

import json
from pathlib import Path
from typing import Any

from embedgrpc.server.settings.model_settings import ModelSettings


def write_config(path: Path, *models: ModelSettings, **settings: Any) -> None:
    """Write a configuration file."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    for model in models:
        chosen = model.model_dump(mode="json", exclude_defaults=True)
        lines += [
            "[[models]]",
            *(f"{name} = {json.dumps(value)}" for name, value in chosen.items()),
        ]
    path.write_text("\n".join(lines), "utf-8")
