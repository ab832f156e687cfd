"""Chunks: the pieces of a document that are embedded, found and cited.

Three ways to cut: windows of a fixed size C with overlap, whole sentences packed up to C, sections
under their headings. For each chunk ``document.text[start:end] == chunk.text``, and every character
that is not white space stands in a chunk. No cut falls inside of what a reader sees as one
character (a grapheme cluster, Unicode Standard Annex 29): an emoji with its skin colour, a letter
with its accent, ``\\r\\n``.
Simplified away: cuts by meaning (where neighbouring sentences differ most); sentences in languages
that end them otherwise; tables and code are cut as text is.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from typing import Any

import numpy as np
import regex

from course_lib.rag.documents import Document

SENTENCES = regex.compile(
    r"""
    (?<![.!?…])                               # at the first of several marks
    (?! (?<=\b(?:Mr|Mrs|Ms|Dr|Prof|St|Figs?|Eqs?|Sec|Ch|vs|cf|al|pp?|e\.g|i\.e|\p{Lu})
        | (?:\A|[\r\n])[ \t]*\d+) \. )
    (?: [.!?…]++ (?<!\.\.|…) \s++             # "cat. ", "다. ", "요? "
      | [.!?…]++ ["'”’»)\]*_`]*+ \s++ (?!\p{Ll}) )
    | [。！？｡]++ [”’」』）]*+ \s*+            # these need no space behind them
    | (?:\r\n?+|\n) [^\S\r\n]*+ (?:\r\n?+|\n) \s*+  # an empty line
    """,
    regex.VERBOSE,
)
"""What ends a sentence, with the white space behind it. A point after an abbreviation, an initial
or the number of a list's item ends none; after dots and quotes, a small letter goes on."""
LINES = regex.compile(r"\r\n?|\n")
WORDS = regex.compile(r"\s++")
Cuts = Callable[[int, int], Iterable[int]]
"""(start, end) -> where the text between may be cut."""
Span = tuple[int, int]
"""From cut i to cut j of a ``_Ruler``."""


@dataclass(frozen=True)
class Chunk:
    """``document.text[start:end]``, with what a citation needs.

    ``heading`` is the path of headings above its first character that is not white space, and
    ``anchor`` the place to link to (``documents.Section``).
    """

    text: str
    start: int
    end: int
    source: str = ""
    heading: tuple[str, ...] = ()
    anchor: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def link(self) -> str:
        """E.g. ``book/13_rag.md#indexing``."""
        return f"{self.source}#{self.anchor}" if self.anchor else self.source


def chunk_fixed(document: Document, size: int, overlap: int = 0, tokenizer=None) -> list[Chunk]:
    """Windows of ``size``, each beginning ``overlap`` before the end of the last one.

    Args:
        size: C, in characters (Unicode's code points, as ``len`` counts), or in tokens where there
            is a tokenizer. One grapheme cluster that is larger stands alone.
        overlap: less than ``size``; what two neighbours share at most.
        tokenizer: a fast one of transformers. It reads the document as a whole: a chunk read by
            itself may come to a token more or less, and special tokens are not counted.

    Returns:
        In order. Windows of white space alone are left out.

    Raises:
        ValueError: a size below 1, an overlap that is negative or not below the size.

    Example:
        >>> [chunk.text for chunk in chunk_fixed(Document("abcdefghij"), 4, overlap=2)]
        ['abcd', 'cdef', 'efgh', 'ghij']
    """
    _check(size, overlap)
    ruler = _Ruler(document.text, tokenizer)
    windows = ruler.windows(0, ruler.last, size, overlap)
    return _chunks(document, ruler, (w for w in windows if not ruler.is_blank(*w)))


def chunk_sentences(document: Document, size: int, tokenizer=None) -> list[Chunk]:
    """As many whole sentences as fit into ``size``, without white space at the ends.

    A sentence that is too long is cut at line ends, then between words, then anywhere. An empty
    line and a heading end a sentence too. Arguments and errors as for ``chunk_fixed``.

    Example:
        >>> [chunk.text for chunk in chunk_sentences(Document("A cat. 개다. 새요. Dr. No."), 12)]
        ['A cat. 개다.', '새요. Dr. No.']
    """
    _check(size)
    ruler = _Ruler(document.text, tokenizer)
    return _chunks(document, ruler, ruler.packed(0, ruler.last, size, _levels(document)))


def chunk_headings(document: Document, size: int, tokenizer=None) -> list[Chunk]:
    """The sections of a document, those that are larger than ``size`` by sentences.

    A heading belongs to the section that it opens; subsections are chunks of their own. Arguments
    and errors as for ``chunk_fixed``.

    Example:
        >>> from course_lib.rag.documents import from_markdown
        >>> document = from_markdown("# Cats\\nSoft.\\n\\n## Food\\nFish. Milk.\\n")
        >>> for chunk in chunk_headings(document, 14):
        ...     print(repr(chunk.text), chunk.heading)
        '# Cats\\nSoft.' ('Cats',)
        '## Food\\nFish.' ('Cats', 'Food')
        'Milk.' ('Cats', 'Food')
    """
    _check(size)
    ruler = _Ruler(document.text, tokenizer)
    sections = ruler.parts(0, ruler.last, [section.start for section in document.sections])
    levels = _levels(document)
    spans = (span for section in sections for span in ruler.packed(*section, size, levels))
    return _chunks(document, ruler, spans)


def _check(size: int, overlap: int = 0) -> None:
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(
            f"Chunks of size {size} with an overlap of {overlap}: expected a size of 1 or more and "
            "0 <= overlap < size, or no chunk would end behind the one before it."
        )


def _levels(document: Document) -> list[Cuts]:
    """Where to cut what is too long: at the first of these that helps, else between characters."""
    headings = [section.start for section in document.sections]

    def ends(pattern, start: int, end: int) -> Iterator[int]:
        return (match.end() for match in pattern.finditer(document.text, start, end))

    def sentences(start: int, end: int) -> list[int]:
        inside = headings[bisect_right(headings, start) : bisect_left(headings, end)]
        return sorted({*ends(SENTENCES, start, end), *inside})

    return [sentences, partial(ends, LINES), partial(ends, WORDS)]


def _chunks(document: Document, ruler: "_Ruler", spans: Iterable[Span]) -> list[Chunk]:
    starts = [section.start for section in document.sections]
    chunks = []
    for i, j in spans:
        start, end, (first, _) = ruler.cuts[i], ruler.cuts[j], ruler.trimmed(i, j)
        section = document.sections[bisect_right(starts, ruler.cuts[first]) - 1]
        chunks.append(Chunk(document.text[start:end], int(start), int(end), document.source,
                            section.heading, section.anchor, document.metadata))  # fmt: skip
    return chunks


class _Ruler:
    """Where a text may be cut, and how long it is between two cuts.

    ``cuts`` are the n + 1 boundaries of its n grapheme clusters; a span (i, j) is the text from cut
    i to cut j. A token counts for a span if any of it lies inside: of those begun before j, the
    ones that have not ended at i.
    """

    def __init__(self, text: str, tokenizer=None):
        self.text = text
        ends = (match.end() for match in regex.finditer(r"\X", text))
        self.cuts = np.fromiter(chain([0], ends), dtype=np.int64)  # (n + 1,)
        self.last = len(self.cuts) - 1
        self.begun = self.ended = self.cuts  # measured in characters
        if tokenizer is not None:
            encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True,
                                 verbose=False)  # fmt: skip
            spans = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
            spans = np.sort(spans[spans[:, 0] < spans[:, 1]], axis=0)
            self.begun = np.searchsorted(spans[:, 0], self.cuts, side="left")
            self.ended = np.searchsorted(spans[:, 1], self.cuts, side="right")

    def length(self, i: int, j: int) -> int:
        return self.begun[j] - self.ended[i]

    def windows(self, i: int, last: int, size: int, overlap: int = 0) -> Iterator[Span]:
        """The longest spans that fit, each with something new in it."""
        while i < last:
            fits = int(np.searchsorted(self.begun, self.ended[i] + size, side="right")) - 1
            j = min(max(fits, i + 1), last)  # what is larger than all of a window stands alone
            yield i, j
            if j == last:
                return
            # as far back as the overlap goes, if the next cluster still fits
            shared = max(self.begun[j] - overlap, self.begun[j + 1] - size)
            i = int(np.searchsorted(self.ended, shared, side="left"))
            # where the next token begins: white space between tokens is not shared
            i = max(i, int(np.searchsorted(self.begun, self.ended[i], side="right")) - 1)
            i = min(i, j)

    def is_blank(self, i: int, j: int) -> bool:
        return self.text[self.cuts[i] : self.cuts[j]].isspace()

    def trimmed(self, i: int, j: int) -> Span:
        """The span without white space at its ends; i == j if nothing is left."""
        while i < j and self.is_blank(i, i + 1):
            i += 1
        while i < j and self.is_blank(j - 1, j):
            j -= 1
        return i, j

    def parts(self, i: int, j: int, positions: Iterable[int]) -> Iterator[Span]:
        """The span cut at those positions that lie inside, or else behind their clusters."""
        start, end = self.cuts[i], self.cuts[j]
        inside = np.array([p for p in positions if start < p < end], dtype=np.int64)
        yield from pairwise([i, *np.searchsorted(self.cuts, inside).tolist(), j])

    def pieces(self, i: int, j: int, size: int, levels: list[Cuts]) -> Iterator[Span]:
        """Trimmed spans that fit, cut at the first level that it takes."""
        i, j = self.trimmed(i, j)
        if i == j:
            return
        if self.length(i, j) <= size:
            yield i, j
        elif levels:
            for part in self.parts(i, j, levels[0](self.cuts[i], self.cuts[j])):
                yield from self.pieces(*part, size, levels[1:])
        else:
            for window in self.windows(i, j, size):
                i, j = self.trimmed(*window)
                if i < j:
                    yield i, j

    def packed(self, i: int, j: int, size: int, levels: list[Cuts]) -> Iterator[Span]:
        """Pieces that follow each other, put together as long as they fit."""
        span = None
        for piece in self.pieces(i, j, size, levels):
            if span and self.length(span[0], piece[1]) > size:
                yield span
                span = None
            span = (span[0] if span else piece[0], piece[1])
        if span:
            yield span
