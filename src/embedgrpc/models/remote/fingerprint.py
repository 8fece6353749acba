"""Identifies the space of a model's vectors whose weights are on a server, out of sight."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder import properties
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs import graph
from embedgrpc.models.kinds import WeightType
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.sources.weight_file import choose_weights


@dataclasses.dataclass(frozen=True, slots=True)
class ServedFingerprint:
    """What identifies the space of a model's vectors, or what its scores come from.

    Attributes:
        value: In hexadecimal.
        weight_type: What the weights are; empty where nothing says.
        contradicted: Whether the model's files are here, and are not what the server says that
            it was made from.
    """

    value: str
    weight_type: str
    contradicted: bool = False


def find_fingerprint(
    files: ModelFiles,
    described: ModelProperties,
    overrides: ModelOverrides,
    *,
    declared: str,
    place: Sequence[str],
    cache_dir: Path,
) -> ServedFingerprint:
    """Finds the fingerprint of a model that runs on a server.

    It is what the server's configuration declares, the content hash of the graph that was put
    there: where the model's weights are here too and lead to the same hash, and where they are
    not here and the configuration changes nothing about the model.

    Else it is a hash that no other model has: of what is declared and what the configuration
    changes; or, where nothing is declared or the weights that are here contradict it, of where
    the model runs and of all that its files say. Nobody would notice then if the server got
    other weights under the same name and version.

    Args:
        files: The model's folder; nothing is fetched.
        described: What the model is.
        overrides: What the configuration says about it.
        declared: The content hash that the server's configuration declares; empty for none.
        place: Servers, name, version and outputs of the model there.
        cache_dir: Where graphs are kept.

    Raises:
        ModelError: The tokenizer cannot be read.
    """
    hashes: dict[str, str] = {}
    for weight_type, content_hash in _hash_weights(files, overrides, cache_dir):
        hashes[weight_type] = content_hash
        if content_hash == declared:
            return ServedFingerprint(declared, weight_type)
    if declared and not hashes:
        if overrides == ModelOverrides():
            return ServedFingerprint(declared, "")
        changes = json.dumps(dataclasses.asdict(overrides), sort_keys=True)
        return ServedFingerprint(_digest([declared, changes]), "")
    everything = _digest([declared, *place])
    value = graph.hash_meaning(described, everything, encoder=described.config)
    return ServedFingerprint(value, "", contradicted=bool(declared))


def hash_text_model(overrides: ModelOverrides, *, declared: str, place: Sequence[str]) -> str:
    """Identifies the space of a model that takes texts, of which nothing is here.

    Args:
        overrides: What the configuration says about it.
        declared: What the server's configuration declares; empty for nothing. Who declares
            something vouches that it changes with the model.
        place: Servers, name, version and outputs of the model there: they identify it where
            nothing is declared.

    Returns:
        In hexadecimal.
    """
    changes = json.dumps(dataclasses.asdict(overrides), sort_keys=True)
    return _digest(["text", *([declared] if declared else place), changes])


def _hash_weights(
    files: ModelFiles, overrides: ModelOverrides, cache_dir: Path
) -> Iterator[tuple[WeightType, str]]:
    """The content hashes that the files lead to, by weight type; none without the weights."""
    # Without its repository nothing can be fetched by accident.
    here = dataclasses.replace(files, repository=None)
    others = [one for one in WeightType if one is not overrides.weight_type]
    for weight_type in (overrides.weight_type, *others):
        try:
            changed = dataclasses.replace(overrides, weight_type=weight_type)
            described = properties.read(here, changed)
            if not _has_choice(files, described):
                return
            yield weight_type, graph.identify(here, described, cache_dir=cache_dir).content_hash
        except ModelError:
            return


def _has_choice(files: ModelFiles, described: ModelProperties) -> bool:
    """Tells whether the file is here that would be chosen where all files are."""
    place = described.transformer_folder.relative_to(files.folder)
    chosen = described.file or choose_weights(lambda name: files.has(str(place / name)))
    return chosen is not None and (described.transformer_folder / chosen).exists()


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(("served", *parts)).encode()).hexdigest()
