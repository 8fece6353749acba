"""All targets, loaded on first use."""

import importlib
from collections.abc import Mapping

from tests.fuzz.target import Target

# Module and variable by name.
TARGETS: Mapping[str, str] = {
    "torch": "tests.fuzz.torch_files:TARGET",
    "safetensors": "tests.fuzz.safetensors_files:TARGET",
    "configs": "tests.fuzz.folders:CONFIGS",
    "tokenizer-files": "tests.fuzz.folders:TOKENIZERS",
    "onnx": "tests.fuzz.onnx_files:TARGET",
    "texts": "tests.fuzz.texts:TARGET",
    "rpc-bodies": "tests.fuzz.rpc_bodies:TARGET",
    "http2-frames": "tests.fuzz.http2_frames:TARGET",
}
# Fails in every possible way, for the tests of the fuzzer.
_FAULTY = "tests.fuzz.faulty:TARGET"


def find(name: str) -> Target:
    """Return the target of a name."""
    place = _FAULTY if name == "faulty" else TARGETS[name]
    module, _, variable = place.partition(":")
    target = getattr(importlib.import_module(module), variable)
    assert isinstance(target, Target)
    assert target.name == name
    return target
