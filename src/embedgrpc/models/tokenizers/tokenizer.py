"""Tokenizes texts into sequences of token ids."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import tokenizers

from embedgrpc.libraries.arrays import BoolArray, IntArray
from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.folder.token_table import TokenTable
from embedgrpc.models.folder.tokenizer_file import (
    as_tokenizer_json,
    find_tokenizer_file,
    read_tokenizer,
    read_tokenizer_file,
)
from embedgrpc.models.kinds import Kind, TextRole, Truncation
from embedgrpc.models.sources.config_files import VOCABULARY_NAME
from embedgrpc.models.tokenizers.added_tokens import TokenizerSettings, read_tokenizer_settings
from embedgrpc.models.tokenizers.blanks import collapses_blanks
from embedgrpc.models.tokenizers.chat_template import read_chat_template
from embedgrpc.models.tokenizers.class_table import WORD_PIECE_CLASSES
from embedgrpc.models.tokenizers.cut_points import EVERYWHERE, CutPoints, find_cut_points
from embedgrpc.models.tokenizers.pair_texts import PairTexts, render_pair_texts
from embedgrpc.models.tokenizers.rebuilt import Rebuilt, complete
from embedgrpc.models.tokenizers.role_tokens import RoleTokens, add_markers
from embedgrpc.models.tokenizers.special_token_template import SpecialTokenTemplate, find_template
from embedgrpc.models.tokenizers.table_tokenizer import (
    check_entries,
    count_characters_per_token,
    load_table_tokenizer,
)
from embedgrpc.models.tokenizers.text_growth import check_growth
from embedgrpc.models.tokenizers.token_locator import TokenLocator
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from embedgrpc.models.tokenizers.tokenizer_class import is_rebuilt
from embedgrpc.models.tokenizers.truncation import TokenLimitError, cut, share

# From texts to their token ids, int64 [tokens] each, without special tokens.
Encode = Callable[[Sequence[str]], list[IntArray]]

_NO_SPECIAL_TOKENS = SpecialTokenTemplate(
    specials=((), ()), special_types=((), ()), text_types=(0,)
)


class Tokenizer:
    """A model's tokenizer. Thread-safe.

    Attributes:
        cut_points: Where a text can be cut without changing its tokens; None if unknown.
        locator: Tokenizes with the place of each token; None if tokens are bytes.
        pair_texts: The texts of a chat template that go around a query and a document before they
            are tokenized; None without one.
        collapses_blanks: Whether blanks in a row make the same tokens as one space.
        added_tokens: The texts of the added tokens; those that `tokenizer.json` lacks come first.
        characters_per_token: A text that may be cut is cut to so many characters for each token of
            the limit before it is tokenized; 0 for no such cut.
    """

    def __init__(
        self,
        encode: Encode,
        *,
        single: SpecialTokenTemplate,
        pair: SpecialTokenTemplate | None,
        cut_points: CutPoints | None,
        locator: TokenLocator | None = None,
        pair_texts: PairTexts | None = None,
        collapses_blanks: bool = False,
        added_tokens: Sequence[str] = (),
        role_tokens: RoleTokens | None = None,
        characters_per_token: int = 0,
    ) -> None:
        self.characters_per_token = characters_per_token
        self.collapses_blanks = collapses_blanks
        self.added_tokens = tuple(added_tokens)
        self.pair_texts = pair_texts
        self.cut_points = cut_points
        self.locator = locator
        self._encode = encode
        self._role_tokens = role_tokens
        self._single = _TemplateArrays(single)
        self._pair = _TemplateArrays(pair) if pair is not None else None

    @classmethod
    def load(
        cls,
        properties: ModelProperties,
        *,
        escape_special_tokens: bool = False,
        digest: str = "",
    ) -> "Tokenizer":
        """Load a tokenizer, completed or rebuilt by all its files as the reference does it.

        Truncation and padding of `tokenizer.json` are switched off.

        Args:
            properties: The model's properties.
            escape_special_tokens: Whether a special token's name in a text, such as "[SEP]", is
                plain characters. For the reference it is the special token.
            digest: The SHA-256 of the validated file, in hexadecimal; empty if it was not
                validated.

        Raises:
            ModelError: A file is missing or cannot be read, makes texts far longer, or adds
                special tokens in a way that is not supported.
        """
        if properties.table is not None:
            return cls._load_static(properties, properties.table, escape_special_tokens, digest)
        folder = properties.transformer_folder
        settings = read_tokenizer_settings(folder, properties.folder)
        path = find_tokenizer_file(folder)
        # Not every class can be made from a vocabulary alone.
        is_bare = path.name == VOCABULARY_NAME and settings.class_name not in WORD_PIECE_CLASSES
        if is_bare or not path.exists():
            raise ModelError(
                f"{folder / 'tokenizer.json'} is missing; transformers makes it of the folder's "
                'other files: python -c "import sys, transformers; transformers.AutoTokenizer.'
                f'from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])" {folder}'
            )
        content = _read_checked(path, properties.folder, digest)
        config = JsonObject.read_if_present(folder / "tokenizer_config.json", properties.folder)
        with _library_errors(path):
            reference = _complete(path, content, properties, settings)
            tokenizer = reference.tokenizer
            role_tokens = _read_roles(tokenizer, settings, properties)
            template = read_chat_template(properties)
            pair_texts = None
            if template is not None:
                _check_specials(settings, template.file)
                pair_texts = render_pair_texts(template, tokenizer, settings.names())
                _check_default_prompt(pair_texts, properties, template.file)
                # The reference adds no special tokens to a rendered template.
                tokenizer.post_processor = None
            _leave_out_specials(path, tokenizer, properties)
            try:
                single = find_template(tokenizer, 1)
                pair = _find_pair_template(tokenizer, properties.kind)
            except ValueError as error:
                raise ModelError(f"{path}: post_processor is not supported: {error}") from error
        if pair_texts or not _has_types(config, default=reference.has_types):
            single, pair = _drop_types(single), pair and _drop_types(pair)
        late = properties.late_interaction
        shortest = min(late.max_tokens.values()) if late else properties.max_tokens
        if late and (escape_special_tokens or settings.split_special_tokens):
            raise ModelError(
                f"{path}: escape_special_tokens is set, or split_special_tokens in "
                "tokenizer_config.json, but the model's texts begin with special tokens"
            )
        if single.special_count >= shortest:
            raise ModelError(
                f"{path}: {single.special_count} special tokens leave no room for a text in "
                f"{shortest} ({properties.origins.get('max_tokens', 'max_tokens')})"
            )
        # Only now: finding the templates needs unescaped special tokens.
        tokenizer.encode_special_tokens = escape_special_tokens or settings.split_special_tokens
        cut_points = find_cut_points(tokenizer)
        return cls(
            _encode_with(tokenizer),
            single=single,
            pair=pair,
            cut_points=cut_points,
            locator=TokenLocator(tokenizer, cut_points),
            pair_texts=pair_texts,
            collapses_blanks=collapses_blanks(tokenizer),
            added_tokens=(*reference.added, *_read_names(tokenizer)),
            role_tokens=role_tokens,
        )

    @classmethod
    def _load_static(
        cls,
        properties: ModelProperties,
        table: TokenTable,
        escape_special_tokens: bool,  # noqa: FBT001 - as in `load`
        digest: str,
    ) -> "Tokenizer":
        """Load the tokenizer of a static model; see `load`."""
        path = properties.transformer_folder / "tokenizer.json"
        if not path.exists():
            raise ModelError(f"{path} is missing: a static model needs it")
        content = _read_checked(path, properties.folder, digest)
        with _library_errors(path):
            tokenizer = load_table_tokenizer(path, content, table)
            if properties.lowercase:
                _lowercase_first(tokenizer)
        tokenizer.encode_special_tokens = escape_special_tokens
        cut_points = find_cut_points(tokenizer)
        return cls(
            _encode_with(tokenizer),
            single=_NO_SPECIAL_TOKENS,
            pair=None,
            cut_points=cut_points,
            locator=TokenLocator(tokenizer, cut_points),
            # A cut by characters counts all of them.
            collapses_blanks=not table.of_model2vec and collapses_blanks(tokenizer),
            added_tokens=_read_names(tokenizer),
            characters_per_token=count_characters_per_token(tokenizer, table),
        )

    @classmethod
    def of_bytes(cls) -> "Tokenizer":
        """Return the tokenizer for models that accept texts: a token is a byte of UTF-8."""
        return cls(_encode_bytes, single=_NO_SPECIAL_TOKENS, pair=None, cut_points=EVERYWHERE)

    @property
    def accepts_pairs(self) -> bool:
        """Whether the model reads two texts together."""
        return self._pair is not None

    @property
    def pair_special_token_count(self) -> int:
        """The number of special tokens around two texts; 0 if the model does not accept pairs."""
        return self._pair.special_count if self._pair is not None else 0

    @property
    def special_token_count(self) -> int:
        """The number of special tokens around one text."""
        return self._single.special_count

    @property
    def has_types(self) -> bool:
        """Whether a text or pair has token types other than 0."""
        return any(one.has_types for one in (self._single, self._pair) if one is not None)

    @property
    def special_ids(self) -> tuple[IntArray, IntArray]:
        """The special tokens before and after one text, int64 [tokens] each."""
        before, after = self._single.specials
        return before, after

    @property
    def known_ids(self) -> BoolArray | None:
        """The ids that the tokenizer can make, bool [highest id + 1]; None if tokens are bytes."""
        return None if self.locator is None else self.locator.known_ids

    def find_ids(self, entries: Iterable[str]) -> list[int | None]:
        """Return the ids of vocabulary entries.

        An entry that the vocabulary lacks has the id of the unknown token, or None without one.
        """
        if self.locator is None:
            return [None for _ in entries]
        return self.locator.find_ids(entries)

    def cut_characters(self, text: str, max_tokens: int, truncation: Truncation) -> str:
        """Cut a text with its prompt before it is tokenized, if the reference does so."""
        kept = self.characters_per_token * max_tokens
        if not kept or truncation is Truncation.NONE or len(text) <= kept:
            return text
        return text[-kept:] if truncation is Truncation.START else text[:kept]

    def encode(self, texts: Sequence[str]) -> list[IntArray]:
        """Tokenize texts. Releases the GIL most of the time.

        If `TOKENIZERS_PARALLELISM` is "false", this uses the calling thread only, otherwise also
        the library's own threads, one per core.

        Returns:
            int64 [tokens] for each text, without special tokens, not truncated.
        """
        return self._encode(texts)

    def count_prompt_tokens(self, prompt: str, max_tokens: int) -> int:
        """Return how many tokens at the start of a sequence a prompt takes, as the reference does.

        The reference tokenizes the prompt alone, and leaves out a special token at its end.

        Args:
            prompt: What is put in front of the text.
            max_tokens: The longest sequence.
        """
        if not prompt:
            return 0
        count = len(self.encode([prompt])[0]) + self._single.special_count
        return min(count, max_tokens) - bool(len(self._single.specials[1]))

    def build_sequence(
        self,
        ids: IntArray,
        *,
        max_tokens: int,
        truncation: Truncation,
        role: TextRole | None = None,
    ) -> TokenSequence:
        """Add the special tokens to a text, and truncate it if it is too long.

        Args:
            ids: int64 [tokens], from `encode`.
            max_tokens: The longest sequence, special tokens included.
            truncation: The end to cut.
            role: What the text is to a model of late interaction, which adds tokens to queries and
                leaves some out of its results.

        Raises:
            TokenLimitError: It is too long and must not be truncated, or `max_tokens` leaves no
                room for the special tokens.
        """
        token_count = len(ids) + self._single.special_count
        if token_count > max_tokens:
            budget = max_tokens - self._single.special_count
            if truncation is Truncation.NONE or budget < 0:
                raise TokenLimitError(token_count, max_tokens)
            ids = cut(ids, budget, truncation)
        sequence = self._single.around((ids,), token_count)
        if self._role_tokens is None or role is None:
            return sequence
        return self._role_tokens.complete(sequence, role)

    def build_pair(
        self,
        query_ids: IntArray,
        document_ids: IntArray,
        *,
        max_tokens: int,
        truncation: Truncation,
    ) -> TokenSequence:
        """Add the special tokens to a pair, and truncate its longer side if it is too long.

        Args:
            query_ids: int64 [tokens], from `encode`.
            document_ids: int64 [tokens], from `encode`.
            max_tokens: The longest sequence, special tokens included.
            truncation: The end to cut, token by token from the longer side.

        Raises:
            TokenLimitError: It is too long and must not be truncated, or `max_tokens` leaves no
                room for the special tokens.
            ValueError: The model does not accept pairs.
        """
        if self._pair is None:
            raise ValueError("the model does not accept pairs")
        token_count = len(query_ids) + len(document_ids) + self._pair.special_count
        if token_count > max_tokens:
            budget = max_tokens - self._pair.special_count
            if truncation is Truncation.NONE or budget < 0:
                raise TokenLimitError(token_count, max_tokens)
            if self.pair_texts is not None:
                return self._cut_rendered(query_ids, document_ids, max_tokens, truncation)
            query_budget, document_budget = share(len(query_ids), len(document_ids), budget)
            query_ids = cut(query_ids, query_budget, truncation)
            document_ids = cut(document_ids, document_budget, truncation)
        pair = self._pair.around((query_ids, document_ids), token_count)
        return replace(pair, document_tokens=len(document_ids))

    def cut_document(
        self, document_ids: IntArray, max_tokens: int, truncation: Truncation
    ) -> IntArray:
        """Truncate the document of a pair, but none of a chat template's tokens around it.

        Args:
            document_ids: int64 [tokens], from `encode`.
            max_tokens: The limit of the document.
            truncation: The end to cut.

        Raises:
            TokenLimitError: It is too long and must not be truncated.
        """
        if self.pair_texts is None:
            return cut_tokens(document_ids, max_tokens, truncation)
        start, suffix = self.pair_texts.document_start, self.pair_texts.suffix
        length = len(document_ids) - start - len(suffix)
        if length <= max_tokens:
            return document_ids
        if truncation is Truncation.NONE:
            raise TokenLimitError(length, max_tokens)
        if truncation is Truncation.START:
            end = document_ids[len(document_ids) - max_tokens - len(suffix) :]
            return np.concatenate([document_ids[:start], end])
        return np.concatenate([document_ids[: start + max_tokens], np.array(suffix, np.int64)])

    def _cut_rendered(
        self, query_ids: IntArray, document_ids: IntArray, max_tokens: int, truncation: Truncation
    ) -> TokenSequence:
        """Truncate a rendered template as the reference does: its last tokens stay."""
        suffix = np.array(self.pair_texts.suffix if self.pair_texts else (), np.int64)
        ids = cut(np.concatenate([query_ids, document_ids]), max_tokens, truncation)
        kept = min(len(suffix), max_tokens)
        ids = np.concatenate([ids[: max_tokens - kept], suffix[len(suffix) - kept :]])
        return TokenSequence(
            input_ids=ids,
            token_type_ids=None,
            token_count_before=len(query_ids) + len(document_ids),
            document_tokens=max(0, max_tokens - len(query_ids)),
        )


class _TemplateArrays:
    """A template as arrays, so that building a sequence is one concatenation."""

    def __init__(self, template: SpecialTokenTemplate) -> None:
        self.special_count = template.special_count
        self.specials = [np.array(group, dtype=np.int64) for group in template.specials]
        self._special_types = [np.array(group, dtype=np.int64) for group in template.special_types]
        self._text_types = template.text_types
        self.has_types = template.has_types

    def around(self, texts: tuple[IntArray, ...], token_count_before: int) -> TokenSequence:
        """Build a sequence of one or two texts: int64 [tokens] each."""
        if not self.special_count and not self.has_types and len(texts) == 1:
            # A concatenation costs as much as the look-up of a static model. The rest of a text
            # that was cut must not stay in memory.
            ids = texts[0] if texts[0].base is None else texts[0].copy()
            return TokenSequence(ids, None, token_count_before)
        parts = [self.specials[0]]
        for ids, special in zip(texts, self.specials[1:], strict=True):
            parts += (ids, special)
        return TokenSequence(
            input_ids=np.concatenate(parts),
            token_type_ids=self._type_ids(texts) if self.has_types else None,
            token_count_before=token_count_before,
        )

    def _type_ids(self, texts: tuple[IntArray, ...]) -> IntArray:
        parts = [self._special_types[0]]
        rows = zip(texts, self._text_types, self._special_types[1:], strict=True)
        for ids, text_type, special_types in rows:
            parts += (np.full(len(ids), text_type, dtype=np.int64), special_types)
        return np.concatenate(parts)


def cut_tokens(ids: IntArray, max_tokens: int, truncation: Truncation) -> IntArray:
    """Truncate one text of a longer sequence, without special tokens.

    Args:
        ids: int64 [tokens], from `Tokenizer.encode`.
        max_tokens: The limit of the text.
        truncation: The end to cut.

    Returns:
        int64 [at most max_tokens].

    Raises:
        TokenLimitError: It is too long and must not be truncated.
    """
    if len(ids) > max_tokens and truncation is Truncation.NONE:
        raise TokenLimitError(len(ids), max_tokens)
    return cut(ids, max_tokens, truncation)


def _read_checked(path: Path, root: Path, digest: str) -> bytes:
    """Read a file as `tokenizer.json`, and check that it was validated or makes no long texts."""
    content = read_tokenizer_file(path, root)
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise ModelError(f"{path} changed while the model was loaded: start again")
    content = as_tokenizer_json(path, content)
    if not digest:
        check_growth(path, content)
    return content


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Turn errors of the tokenizers library into a `ModelError` that names the file."""
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        # The library raises plain Exception; its panics are BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{path} cannot be read: {error}") from error


def _leave_out_specials(
    path: Path, tokenizer: tokenizers.Tokenizer, properties: ModelProperties
) -> None:
    """Add no special tokens to texts whose weights are looked up, as the reference does it."""
    if properties.weight_table is not None:
        check_entries(path, tokenizer, properties.weight_table)
        tokenizer.post_processor = None


def _find_pair_template(tokenizer: tokenizers.Tokenizer, kind: Kind) -> SpecialTokenTemplate | None:
    if kind is Kind.EMBEDDING:
        return None
    try:
        return find_template(tokenizer, 2)
    except ValueError:
        if kind is Kind.CROSS_ENCODER:
            raise
        # A classifier may be for single texts.
        return None


def _encode_with(tokenizer: tokenizers.Tokenizer) -> Encode:
    def encode(texts: Sequence[str]) -> list[IntArray]:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    return encode


def _check_specials(settings: TokenizerSettings, file: JsonObject) -> None:
    """Refuse a chat template whose own special tokens the reference splits into characters."""
    if settings.split_special_tokens:
        raise ModelError(
            f"{settings.values.path}: split_special_tokens is not supported with the chat template "
            f"in {file.path.name}: remove one of them"
        )


def _encode_bytes(texts: Sequence[str]) -> list[IntArray]:
    return [np.frombuffer(text.encode(), np.uint8).astype(np.int64) for text in texts]


def _complete(
    path: Path, content: bytes, properties: ModelProperties, settings: TokenizerSettings
) -> Rebuilt:
    parsed = None
    if is_rebuilt(settings.class_name):
        parsed = read_tokenizer(path.parent, properties.folder)
    published = tokenizers.Tokenizer.from_buffer(content)
    decoder = published.decoder
    reference = complete(published, parsed, settings)
    if reference.tokenizer.decoder is None and decoder is not None:
        # One that is rebuilt has none: it does not matter to what texts become.
        reference.tokenizer.decoder = decoder
    reference.tokenizer.no_truncation()
    reference.tokenizer.no_padding()
    _check_ids(path, reference.tokenizer, reference.added, properties)
    if properties.lowercase:
        _lowercase_first(reference.tokenizer)
    return reference


def _read_roles(
    tokenizer: tokenizers.Tokenizer, settings: TokenizerSettings, properties: ModelProperties
) -> RoleTokens | None:
    """Add the markers of queries and documents, and find the tokens that go with them."""
    late = properties.late_interaction
    if late is None:
        return None
    add_markers(tokenizer, late.markers)
    return RoleTokens.read(tokenizer, settings, late, place=str(properties.transformer_folder))


def _check_default_prompt(
    pair_texts: PairTexts, properties: ModelProperties, file: JsonObject
) -> None:
    """Check that a chat template has a place for the default prompt."""
    prompt = properties.prompts.get(properties.default_prompt_name, "")
    if prompt and pair_texts.instructed is None:
        raise ModelError(
            f"{file.path}: the chat template has no place for the default prompt in front of the "
            "query: set default_prompt_name to an empty text for this model in the configuration"
        )


def _read_names(tokenizer: tokenizers.Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.get_added_tokens_decoder().values()]


def _check_ids(
    path: Path, tokenizer: tokenizers.Tokenizer, added: Sequence[str], properties: ModelProperties
) -> None:
    """Check that the model has a vector for each token that `tokenizer.json` does not list."""
    entries = properties.config.get("vocab_size")
    if not isinstance(entries, int):
        return
    for content in added:
        token_id = tokenizer.token_to_id(content)
        if token_id is not None and token_id >= entries:
            raise ModelError(
                f"{path.parent}: the files of the tokenizer name a token that gets the id "
                f"{token_id}, but vocab_size in config.json is {entries}"
            )


def _has_types(config: JsonObject, *, default: bool) -> bool:
    """Return whether the model has an input token_type_ids."""
    names = config.values.get("model_input_names")
    return "token_type_ids" in names if isinstance(names, list) else default


def _drop_types(template: SpecialTokenTemplate) -> SpecialTokenTemplate:
    """Return the template with type ids 0."""
    return replace(
        template,
        special_types=tuple(tuple(0 for _ in group) for group in template.special_types),
        text_types=tuple(0 for _ in template.text_types),
    )


def _lowercase_first(tokenizer: tokenizers.Tokenizer) -> None:
    lowercase = tokenizers.normalizers.Lowercase()
    present = tokenizer.normalizer
    steps = [lowercase] if present is None else [lowercase, present]
    tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
