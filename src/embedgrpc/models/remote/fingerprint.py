"""Finds the fingerprint of a model that runs on a server, which may hide its weights."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder import properties
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.content_hash import digest, hash_meaning
from embedgrpc.models.graphs.identity import identify
from embedgrpc.models.kinds import WeightType
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.sources.weight_file import choose_weights


@dataclasses.dataclass(frozen=True, slots=True)
class ServedFingerprint:
    """The fingerprint of a model: vectors or scores with equal fingerprints can be compared.

    Attributes:
        value: The fingerprint, in hexadecimal.
        weight_type: The type of the weights; empty if unknown.
        contradicted: Whether the model's local files differ from the declared fingerprint.
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
    """Return the fingerprint of a model that runs on a server.

    The server's configuration may declare the content hash of the graph that it runs. The
    fingerprint is

    - the declared hash, if the model's weights are also here and have that hash, or if they are
      not here and the configuration overrides nothing;
    - a hash of the declared hash and the overrides, if the weights are not here;
    - otherwise a hash of the model's files and of where it runs. In this case, other weights under
      the same name and version go unnoticed.

    Args:
        files: The model's folder; nothing is downloaded.
        described: The model's properties.
        overrides: The settings that override them.
        declared: The content hash that the server's configuration declares; empty for none.
        place: Servers, name, version and outputs of the model there.
        cache_dir: The folder of the graph cache.

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
        return ServedFingerprint(digest(["served", declared, changes]), "")
    everything = digest(["served", declared, *place])
    value = hash_meaning(described, everything, encoder=described.config)
    return ServedFingerprint(value, "", contradicted=bool(declared))


def hash_text_model(overrides: ModelOverrides, *, declared: str, place: Sequence[str]) -> str:
    """Return the fingerprint of a model that takes texts and has no local files, in hexadecimal.

    Args:
        overrides: The settings of the model.
        declared: The value that the server's configuration declares; empty for none. The operator
            must change it with the model.
        place: Servers, name, version and outputs of the model there, used if nothing is declared.
    """
    changes = json.dumps(dataclasses.asdict(overrides), sort_keys=True)
    return digest(["served", "text", *([declared] if declared else place), changes])


def _hash_weights(
    files: ModelFiles, overrides: ModelOverrides, cache_dir: Path
) -> Iterator[tuple[WeightType, str]]:
    """Yield the content hash of the files for each weight type; nothing without the weights."""
    # Without its repository, nothing can be downloaded by accident.
    here = dataclasses.replace(files, repository=None)
    others = [one for one in WeightType if one is not overrides.weight_type]
    for weight_type in (overrides.weight_type, *others):
        try:
            changed = dataclasses.replace(overrides, weight_type=weight_type)
            described = properties.read(here, changed)
            if not _has_choice(files, described):
                return
            yield weight_type, identify(here, described, cache_dir=cache_dir).content_hash
        except ModelError:
            return


def _has_choice(files: ModelFiles, described: ModelProperties) -> bool:
    """Return whether the weight file is here that would be chosen if all files were."""
    place = described.transformer_folder.relative_to(files.folder)
    chosen = described.file or choose_weights(lambda name: files.has(str(place / name)))
    return chosen is not None and (described.transformer_folder / chosen).exists()
