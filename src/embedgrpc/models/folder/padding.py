"""Reads how a model's batches are padded: on which side, and with which token."""

from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.special_tokens import read_token, read_vocabulary
from embedgrpc.models.folder.tokenizer_file import find_tokenizer_file
from embedgrpc.models.kinds import PaddingSide


def find_padding_side(tokenizer_config: JsonObject) -> PaddingSide:
    """Return the side of a text on which padding goes: the right.

    A causal model never reads what follows a text. Padding on the left shifts positions that are
    counted from the edge, and kernels such as GroupQueryAttention expect it on the right. Which
    side a tokenizer names changes nothing for a text alone.

    Raises:
        ModelError: `padding_side` is neither left nor right.
    """
    side = tokenizer_config.text("padding_side", default="right")
    if side not in {"left", "right"}:
        raise tokenizer_config.wrong("padding_side", "left or right")
    return "right"


def find_pad_token_id(
    folder: Path, root: Path, config: JsonObject, tokenizer_config: JsonObject
) -> int:
    """Return the id of the padding token.

    Args:
        folder: The backbone's folder.
        root: The model's folder.
        config: `config.json`.
        tokenizer_config: `tokenizer_config.json`.

    Raises:
        ModelError: No file says, or the id is not in the vocabulary.
    """
    # Padding is masked out. Only graphs that number positions read the id, and they use the one
    # of config.json.
    pad_token_id = config.count("pad_token_id")
    if pad_token_id is not None:
        entries = config.count("vocab_size")
        if entries is not None and pad_token_id >= entries:
            raise config.wrong("pad_token_id", f"less than vocab_size, which is {entries}")
        return pad_token_id
    content = read_token(tokenizer_config, "pad_token")
    if content is not None and find_tokenizer_file(folder).exists():
        vocabulary = read_vocabulary(folder, root)
        if content in vocabulary:
            return vocabulary[content]
    raise ModelError(
        f"{config.path}: pad_token_id must be the id of the padding token; set pad_token_id for "
        "this model in the configuration"
    )
