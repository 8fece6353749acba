"""Builds the sequences of two texts that a model reads together."""

from dataclasses import replace

from embedgrpc.engine import errors
from embedgrpc.engine.tokenizing.jobs import TokenizeResult
from embedgrpc.engine.tokenizing.texts import CheckedText, too_many_tokens
from embedgrpc.models.kinds import Truncation
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.models.tokenizers.truncation import TokenLimitError


def wrap_text(
    tokenizer: Tokenizer, checked: CheckedText, *, prompt: str = "", is_second: bool
) -> CheckedText:
    """Put a chat template, if the model has one, or else the prompt around a text of a pair.

    Args:
        tokenizer: The model's tokenizer.
        checked: The text.
        prompt: The prompt of a first text; a template must have a place for it.
        is_second: Whether it is the second text of its pair, such as a document.
    """
    around = tokenizer.pair_texts
    if is_second:
        text = around.around_document(checked.text) if around else checked.text
    else:
        text = around.around_query(checked.text, prompt) if around else prompt + checked.text
    return CheckedText(text, cut=checked.cut)


def build_pair(
    tokenizer: Tokenizer,
    first: TokenizeResult,
    second: TokenizeResult,
    *,
    max_tokens: int,
    truncation: Truncation,
    first_field: str,
    field: str,
    second_max_tokens: int = 0,
) -> TokenSequence | errors.EngineError:
    """Build the sequence of a pair, or return the error of one of its texts.

    Args:
        tokenizer: The model's tokenizer.
        first: The first text.
        second: The second text.
        max_tokens: Maximum length of the pair, special tokens included.
        truncation: The end of the longer text that is cut, if any.
        first_field: The place of the first text in the request, for errors.
        field: The place of the second text, or of the pair.
        second_max_tokens: Maximum tokens of the second text alone; 0 for no limit.
    """
    if isinstance(first, errors.EngineError):
        return first
    if isinstance(second, errors.EngineError):
        return second
    try:
        kept = second.ids
        if second_max_tokens:
            kept = tokenizer.cut_document(kept, second_max_tokens, truncation)
        pair = tokenizer.build_pair(first.ids, kept, max_tokens=max_tokens, truncation=truncation)
    except TokenLimitError as error:
        alone = len(first.ids) >= max_tokens
        return too_many_tokens(error, field=first_field if alone else field)
    return replace(
        pair,
        token_count_before=pair.token_count_before + len(second.ids) - len(kept),
        characters_cut=first.characters_cut or second.characters_cut,
    )
