"""All targets."""

from tests.fuzz import folders, onnx_files, safetensors_files, texts, torch_files
from tests.fuzz.target import Target

TARGETS: tuple[Target, ...] = (
    torch_files.TARGET,
    safetensors_files.TARGET,
    folders.CONFIGS,
    folders.TOKENIZERS,
    onnx_files.TARGET,
    texts.TARGET,
)
