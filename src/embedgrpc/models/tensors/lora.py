"""Merges the weights of a LoRA adapter into those of its base model.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021; `merge_and_unload` of
the library peft, and the names in its files.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedgrpc.models.errors import ModelError
from embedgrpc.models.tensors.weights import Tensors

_PREFIX = "base_model.model."
# The two matrices of a layer, and of a table of embeddings.
_LAYER = ("lora_A.weight", "lora_B.weight")
_TABLE = ("lora_embedding_A", "lora_embedding_B")
_WEIGHT = "weight"
# A table with an adapter is stored with it, whole.
_BASE = ".base_layer.weight"


@dataclass(frozen=True, slots=True)
class LoraScaling:
    """How strongly an adapter changes the weights.

    Attributes:
        rank: The rank of the matrices.
        alpha: The strength, before the division by the rank.
        by_root: Whether to divide by the root of the rank instead.
        ranks: Other ranks, by a regular expression for the names of layers.
        alphas: Other strengths, in the same form.
    """

    rank: int
    alpha: float
    by_root: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    def find(self, layer: str) -> tuple[int, float]:
        """Return the rank of a layer, and the factor of its change.

        Raises:
            re.error: A name in the patterns is not a regular expression.
        """
        rank = self.ranks.get(_find_pattern(self.ranks, layer), self.rank)
        alpha = self.alphas.get(_find_pattern(self.alphas, layer), self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.by_root else rank)


def _find_pattern(patterns: Mapping[str, float], layer: str) -> str:
    """Return the first pattern that the end of a layer's name matches; else the name."""
    return next((one for one in patterns if re.match(rf"(.*\.)?({one})$", layer)), layer)


@dataclass(frozen=True, slots=True)
class _Change:
    """The change of one tensor: a product of two matrices, or another tensor instead."""

    names: tuple[str, ...]
    scale: float = 0.0
    transposed: bool = False


class MergedTensors(Tensors):
    """The tensors of a base model, changed by an adapter; memory holds one at a time."""

    def __init__(
        self, base: Tensors, adapter: Tensors, scaling: LoraScaling, *, saved: frozenset[str]
    ) -> None:
        """Find the tensor that each tensor of the adapter changes.

        Args:
            base: The weights of the base model; closed with this object.
            adapter: The weights of the adapter; closed with this object.
            scaling: How strongly they change.
            saved: The last parts of the names of layers that the adapter replaces.

        Raises:
            ModelError: A tensor of the adapter is of another kind, has no partner, changes no
                tensor of the base model, or does not fit it.
        """
        self.path = base.path
        self._base = base
        self._adapter = adapter
        self._scaling = scaling
        self._changes: dict[str, _Change] = {}
        self._stored: dict[str, str] = {}
        self._homes = _by_ending(base.names)
        try:
            for name in sorted(adapter.names):
                self._add(name, saved)
        except re.error as error:
            self.__exit__()
            raise ModelError(f"{adapter.path}: its patterns are wrong: {error}") from error
        except BaseException:
            self.__exit__()
            raise
        self.names = base.names | self._changes.keys()

    def __exit__(self, *_: object) -> None:
        self._adapter.__exit__(None, None, None)
        self._base.__exit__(None, None, None)

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Return the shape and type of a tensor; see `Tensors`."""
        if name in self._base.names:
            return self._base.describe(name)
        return self._adapter.describe(self._changes[name].names[0])

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a tensor as float32."""
        change = self._changes.get(name)
        if change is None:
            return self._base.read(name)
        if len(change.names) == 1:
            return self._adapter.read(change.names[0])
        down, up = (self._adapter.read(one) for one in change.names)
        delta = up @ down
        if change.transposed:
            delta = delta.T
        stored = self._stored.get(name)
        base = self._adapter.read(stored) if stored else self._base.read(name)
        return base + delta * np.float32(change.scale)

    def read_integers(self, name: str) -> NDArray[np.int64]:
        """Read a tensor of whole numbers; see `Tensors`."""
        return self._base.read_integers(name)

    def _add(self, name: str, saved: frozenset[str]) -> None:
        """Add the change that a tensor of the adapter begins."""
        layer = name.removeprefix(_PREFIX)
        for down, up in (_LAYER, _TABLE):
            if layer.endswith(f".{up}"):
                if layer.removesuffix(up) + down not in self._layers():
                    raise self._wrong(f"{name} has no {down}")
                return
            if layer.endswith(f".{down}"):
                self._add_product(
                    layer.removesuffix(f".{down}"), name, name.removesuffix(down) + up
                )
                return
        if layer.endswith(_BASE):
            target = self._find_target(f"{layer.removesuffix(_BASE)}.{_WEIGHT}")
            if not target:
                raise self._wrong(f"{self._base.path} has no tensor for {name}")
            self._check_shape(name, target, self._adapter.describe(name)[0])
            self._stored[target] = name
            return
        module, _, kind = layer.rpartition(".")
        if module.rpartition(".")[2] not in saved:
            raise self._wrong(f"{name} is neither a matrix of LoRA nor listed in modules_to_save")
        target = self._find_target(f"{module}.{kind}") or f"{module}.{kind}"
        if target in self._base.names:
            self._check_shape(name, target, self._adapter.describe(name)[0])
        self._changes[target] = _Change((name,))

    def _layers(self) -> frozenset[str]:
        return frozenset(name.removeprefix(_PREFIX) for name in self._adapter.names)

    def _add_product(self, layer: str, down: str, up: str) -> None:
        if up not in self._adapter.names:
            raise self._wrong(f"{up} is missing")
        target = self._find_target(f"{layer}.{_WEIGHT}")
        if not target:
            raise self._wrong(
                f"{self._base.path} has no tensor for {layer}: the adapter belongs to another model"
            )
        rank, scale = self._scaling.find(layer)
        (down_shape, _), (up_shape, _) = (self._adapter.describe(one) for one in (down, up))
        if len(down_shape) != 2 or len(up_shape) != 2 or {down_shape[0], up_shape[1]} != {rank}:  # noqa: PLR2004 - matrices
            raise self._wrong(
                f"{layer} has matrices of {down_shape} and {up_shape}, not rank {rank}"
            )
        transposed = down.endswith(_TABLE[0])
        shape = (up_shape[0], down_shape[1])
        self._check_shape(layer, target, shape[::-1] if transposed else shape)
        self._adapter.check({down: down_shape, up: up_shape})
        self._changes[target] = _Change((down, up), scale, transposed)

    def _find_target(self, name: str) -> str:
        """Return the tensor of the base model: one of the two names may have a longer prefix."""
        found = {one for one in self._homes.get(_ending(name), ()) if _is_same(one, name)}
        if len(found) > 1:
            raise self._wrong(f"{name} could be any of {', '.join(sorted(found))}")
        return next(iter(found), "")

    def _check_shape(self, name: str, target: str, shape: tuple[int, ...]) -> None:
        wanted, _ = self._base.describe(target)
        if shape != wanted:
            raise self._wrong(f"{name} has shape {list(shape)}, not {list(wanted)} as {target}")

    def _wrong(self, what: str) -> ModelError:
        return ModelError(f"{self._adapter.path}: {what}")


def _ending(name: str) -> str:
    return ".".join(name.rsplit(".", 2)[-2:])


def _by_ending(names: frozenset[str]) -> Mapping[str, list[str]]:
    homes: dict[str, list[str]] = {}
    for name in names:
        homes.setdefault(_ending(name), []).append(name)
    return homes


def _is_same(one: str, other: str) -> bool:
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")
