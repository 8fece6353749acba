"""The chunks of a text, and which tokens they have."""

from dataclasses import dataclass

from embedgrpc.libraries.arrays import IntArray


@dataclass(frozen=True, slots=True)
class TextChunks:
    """The chunks of one text.

    Attributes:
        starts: int64 [chunks]; where each starts in the text, in characters.
        ends: int64 [chunks]; where each ends, exclusive.
        byte_starts: int64 [chunks]; where each starts, in bytes of UTF-8.
        byte_ends: int64 [chunks]; where each ends, exclusive.
        first: int64 [chunks]; the first token of each in the sequence.
        last: int64 [chunks]; the last token of each, exclusive.
    """

    starts: IntArray
    ends: IntArray
    byte_starts: IntArray
    byte_ends: IntArray
    first: IntArray
    last: IntArray
