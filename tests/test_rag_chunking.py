"""Chunks: their offsets to the letter, nothing lost, no character cut, sizes kept."""

import doctest
import re
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.rag import chunking
from course_lib.rag.chunking import Chunk, chunk_fixed, chunk_headings, chunk_sentences
from course_lib.rag.documents import Document, from_markdown

WAYS = [chunk_fixed, chunk_sentences, chunk_headings]


class WordTokens:
    """A tokenizer to which each word is a token, with the interface of transformers' fast ones."""

    def __init__(self, word: str = r"\S+"):
        self.word = word

    def __call__(self, text, *, add_special_tokens, return_offsets_mapping, verbose):
        assert return_offsets_mapping and not add_special_tokens
        return {"offset_mapping": [match.span() for match in re.finditer(self.word, text)]}


class ByteTokens:
    """A token for each byte of UTF-8: one character may be several, as in byte-level BPE."""

    def __call__(self, text, **options):
        return {"offset_mapping": [(i, i + 1) for i, c in enumerate(text) for _ in c.encode()]}


def texts(chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks]


def problems(document: Document, chunks: list[Chunk], allowed=None) -> list[str]:
    """What is wrong with a document's chunks; ``allowed`` are the places where it may be cut."""
    text, found = document.text, []
    covered = {i for chunk in chunks for i in range(chunk.start, chunk.end)}
    if any(text[chunk.start : chunk.end] != chunk.text for chunk in chunks):
        found.append("offsets")
    if any(not chunk.text.strip() for chunk in chunks):
        found.append("blank")
    if any(not c.isspace() and i not in covered for i, c in enumerate(text)):
        found.append("lost")
    if [(c.start, c.end) for c in chunks] != sorted({(c.start, c.end) for c in chunks}):
        found.append("order")
    if allowed and any(place not in allowed for c in chunks for place in (c.start, c.end)):
        found.append("cut inside")
    return found


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(chunking)
    assert result.attempted == 5 and not result.failed


def test_the_check_finds_what_is_wrong():
    """A control: each kind of wrong chunk is seen."""
    document = Document("ab ab")
    right = [Chunk("ab", 0, 2), Chunk("ab", 3, 5)]
    assert problems(document, right, {0, 2, 3, 5}) == []
    assert problems(document, [right[0], Chunk("ab", 2, 4), right[1]]) == ["offsets"]
    assert problems(document, [*right[:1], Chunk(" ", 2, 3), *right[1:]]) == ["blank"]
    assert problems(document, [right[0], right[0]]) == ["lost", "order"]
    assert problems(document, right, {0, 3, 5}) == ["cut inside"]


# --- fixed size ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "overlap", "expected"),
    [
        (4, 2, "abcd cdef efgh ghij"),  # and no "ij" that the last one has already
        (4, 0, "abcd efgh ij"),
        (4, 3, "abcd bcde cdef defg efgh fghi ghij"),
        (9, 1, "abcdefghi ij"),
        (10, 9, "abcdefghij"),
        (99, 98, "abcdefghij"),
        (1, 0, "a b c d e f g h i j"),
    ],
)
def test_windows_of_ten_letters(size, overlap, expected):
    assert texts(chunk_fixed(Document("abcdefghij"), size, overlap)) == expected.split()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text("abc", min_size=1, max_size=40), st.integers(1, 9), st.data())
def test_plain_letters_give_the_windows_of_the_textbook(text, size, data):
    """Starts 0, C - overlap, ...: as long as more than the overlap is left."""
    overlap = data.draw(st.integers(0, size - 1))
    starts = range(0, max(len(text) - overlap, 1), size - overlap)
    assert texts(chunk_fixed(Document(text), size, overlap)) == [text[s : s + size] for s in starts]


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (-1, 0), (4, 4), (4, 5), (4, -1)])
def test_sizes_that_lead_nowhere_are_told(size, overlap):
    with pytest.raises(ValueError, match=f"size {size} with an overlap of {overlap}: expected"):
        chunk_fixed(Document("abcdefghij"), size, overlap)


@pytest.mark.parametrize("way", [chunk_sentences, chunk_headings])
def test_a_size_of_nothing_is_told(way):
    with pytest.raises(ValueError, match="size 0"):
        way(Document("a"), 0)


def test_a_wide_character_stands_alone_and_is_not_repeated():
    """The family is one character to a reader and seven code points, more than the size of 4; with
    it no window could begin in what came before."""
    family = "👨‍👩‍👧‍👦"
    chunks = chunk_fixed(Document(f"abcd{family}ef"), 4, overlap=3)
    assert texts(chunks) == ["abcd", family, "ef"]


def test_windows_of_white_space_are_left_out_and_offsets_go_on():
    chunks = chunk_fixed(Document("ab" + " " * 8 + "ab"), 2)
    assert [(c.text, c.start, c.end) for c in chunks] == [("ab", 0, 2), ("ab", 10, 12)]


# --- tokens -------------------------------------------------------------------------------------


def test_windows_are_measured_in_tokens():
    """Two words a window, one shared: the next begins with the second word."""
    chunks = chunk_fixed(Document("one two three four"), 2, overlap=1, tokenizer=WordTokens())
    assert texts(chunks) == ["one two ", "two three ", "three four"]
    chunks = chunk_fixed(Document("one two three four"), 3, tokenizer=WordTokens())
    assert texts(chunks) == ["one two three ", "four"]


def test_a_character_of_many_tokens_is_not_cut():
    """é as one code point has two bytes, as e and accent three; 한 has three."""
    text = "aée\u0301한b"
    chunks = chunk_fixed(Document(text), 3, tokenizer=ByteTokens())
    assert texts(chunks) == ["aé", "e\u0301", "한", "b"]
    assert texts(chunk_fixed(Document(text), 2, tokenizer=ByteTokens())) == [
        "a", "é", "e\u0301", "한", "b"]  # fmt: skip


def test_sentences_are_measured_in_tokens():
    chunks = chunk_sentences(Document("A b. C d. E f."), 4, tokenizer=WordTokens())
    assert texts(chunks) == ["A b. C d.", "E f."]


def test_a_token_that_begins_before_a_sentence_counts_for_it():
    """Each sentence but the first token together with the space before it."""
    tokenizer = WordTokens(r"\s?\S+")
    assert texts(chunk_sentences(Document("Ab. Cd. Ef."), 1, tokenizer)) == ["Ab.", "Cd.", "Ef."]
    assert texts(chunk_sentences(Document("Ab. Cd. Ef."), 2, tokenizer)) == ["Ab. Cd.", "Ef."]


def test_the_tokenizer_of_the_course_fits():
    """Its byte-level tokens carry their leading space. Chunks that are read by themselves come to
    the size or less, here."""
    from transformers import AutoTokenizer

    from course_lib import model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path("base"))
    document = Document("The cat sat. The dog ran to the house 👨‍👩‍👧‍👦.\r\n개다. " * 20)
    for chunks in (chunk_fixed(document, 30, 10, tokenizer),
                   chunk_sentences(document, 30, tokenizer)):  # fmt: skip
        assert problems(document, chunks) == []
        lengths = [len(tokenizer(text)["input_ids"]) for text in texts(chunks)]
        assert max(lengths) <= 31 and min(lengths[:-1]) > 10
        assert not any("\u200d" in (text[:1], text[-1:]) for text in texts(chunks))


# --- sentences ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat. A dog! A cow? Yes", ["A cat.", "A dog!", "A cow?", "Yes"]),
        ("고양이다. 개예요. 소인가요? 네", ["고양이다.", "개예요.", "소인가요?", "네"]),
        ("猫です。犬です。", ["猫です。", "犬です。"]),
        ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
        ('"Why?" he asked. She left...', ['"Why?" he asked.', "She left..."]),
        ("Wait... what? Pi is 3.14. Dr. No saw Fig. 2, cf. J. Kim et al. 2020.",
         ["Wait... what?", "Pi is 3.14.", "Dr. No saw Fig. 2, cf. J. Kim et al. 2020."]),
        ("1. Mix it.\n2. Bake it.", ["1. Mix it.", "2. Bake it."]),
        ("no stop\n\nnor here\n \nend", ["no stop", "nor here", "end"]),
        ("one line\nwraps", ["one line\nwraps"]),
        ("ab ab. ab ab.", ["ab ab.", "ab ab."]),
        ("See (A. Lee). Then *go.* now", ["See (A. Lee).", "Then *go.* now"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_where_sentences_end(text, expected, line_end):
    """Line ends make no difference: half of a ``\\r\\n`` is no empty line."""
    document = Document(text.replace("\n", line_end))
    expected = [sentence.replace("\n", line_end) for sentence in expected]
    assert [document.text[i:j] for i, j in _sentences(document)] == expected


def _sentences(document: Document) -> list[tuple[int, int]]:
    """All sentences, however short."""
    (sentences, *_) = chunking._levels(document)
    ruler = chunking._Ruler(document.text)
    spans = ruler.parts(0, ruler.last, sentences(0, len(document.text)))
    return [tuple(ruler.cuts[list(ruler.trimmed(*span))]) for span in spans]


def test_sentences_are_packed_as_long_as_they_fit():
    """Two come to 7 with the space between them, and the space behind them does not count."""
    document = Document("Ab. Cd.  Ef. Gh. ")
    assert texts(chunk_sentences(document, 7)) == ["Ab. Cd.", "Ef. Gh."]
    assert texts(chunk_sentences(document, 6)) == ["Ab.", "Cd.", "Ef.", "Gh."]
    assert texts(chunk_sentences(document, 99)) == ["Ab. Cd.  Ef. Gh."]


def test_a_sentence_that_is_too_long_is_cut_at_lines_then_words_then_anywhere():
    document = Document("ab cd\nef gh, ijklmnop q. Rs.")
    assert texts(chunk_sentences(document, 19)) == ["ab cd", "ef gh, ijklmnop q.", "Rs."]
    assert texts(chunk_sentences(document, 6)) == ["ab cd", "ef gh,", "ijklmn", "op q.", "Rs."]


def test_an_accent_on_a_space_stays_on_it():
    """The sentence ends behind the space, where no cut may be: so the next place is taken."""
    assert texts(chunk_sentences(Document("Ab. \u0301Cd."), 5)) == ["Ab. \u0301", "Cd."]


def test_a_heading_ends_a_sentence():
    """Lines alone would fill the 31 with "## Food" and leave "Fish" by itself."""
    document = from_markdown("# Cats and\nno stop here\n## Food\nFish")
    assert texts(chunk_sentences(document, 31)) == ["# Cats and\nno stop here", "## Food\nFish"]


# --- headings -----------------------------------------------------------------------------------

PAGE = "Intro.\n\n# Cats\n\nSoft. Warm.\n\n## Food\n\nFish.\n\n# 개\n\n멍멍.\n"


def test_sections_are_chunks_with_their_path_and_link():
    chunks = chunk_headings(from_markdown(PAGE, "pets.md"), 100)
    assert [(c.text, c.heading, c.link) for c in chunks] == [
        ("Intro.", (), "pets.md"),
        ("# Cats\n\nSoft. Warm.", ("Cats",), "pets.md#cats"),
        ("## Food\n\nFish.", ("Cats", "Food"), "pets.md#food"),
        ("# 개\n\n멍멍.", ("개",), "pets.md"),
    ]


def test_a_section_that_is_too_long_is_split_and_not_filled_from_the_next():
    chunks = chunk_headings(from_markdown(PAGE), 13)
    assert [(c.text, c.heading) for c in chunks] == [
        ("Intro.", ()),
        ("# Cats\n\nSoft.", ("Cats",)),
        ("Warm.", ("Cats",)),
        ("## Food", ("Cats", "Food")),
        ("Fish.", ("Cats", "Food")),
        ("# 개\n\n멍멍.", ("개",)),
    ]


def test_a_chunk_belongs_to_the_heading_of_its_first_letter():
    """The second window begins with the empty line above the heading."""
    chunks = chunk_fixed(from_markdown("# A\ntext\n\n# B\nxy"), 8)
    assert [(c.text, c.heading) for c in chunks] == [
        ("# A\ntext", ("A",)), ("\n\n# B\nxy", ("B",))]  # fmt: skip


def test_a_chunk_knows_its_document():
    document = replace(Document("A b. C d.", "notes.txt"), metadata={"year": "2024"})
    for way in WAYS:
        assert all((c.source, c.metadata["year"], c.link) == ("notes.txt", "2024", "notes.txt")
                   for c in way(document, 5))  # fmt: skip


# --- laws ---------------------------------------------------------------------------------------

CLUSTERS = ["a", "b", "B", "한", "다", ".", "?", " ", "  ", "\n", "\r\n", "\t", "é", "e\u0301",
            "👨‍👩‍👧‍👦", "👍🏽", "🇰🇷", "각", "ñ\u0323", "क्षि", "#", "。", "\u3000"]  # fmt: skip
"""None goes on in the next: where two meet a text may be cut, and nowhere else. (Two spaces are two
characters; none but the last of them is needed.)"""


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(CLUSTERS), min_size=1, max_size=60), st.integers(1, 12), st.data())
def test_offsets_coverage_and_whole_characters(clusters, size, data):
    """For all ways, sizes, overlaps and measures, in plain text and in Markdown."""
    text = "".join(clusters)
    if text.isspace():
        return
    make = data.draw(st.sampled_from([Document, from_markdown]))
    tokenizer = data.draw(st.sampled_from([None, WordTokens(), ByteTokens()]))
    way = data.draw(st.sampled_from(WAYS))
    options = {"overlap": data.draw(st.integers(0, size - 1))} if way is chunk_fixed else {}
    document = make(text)
    chunks = way(document, size, tokenizer=tokenizer, **options)
    allowed = {0, *accumulate(map(len, clusters))} | {
        i + 1 for i in range(len(text)) if text[i : i + 2] == "  "
    }
    assert problems(document, chunks, allowed) == []
    counted = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False,
                        verbose=False)["offset_mapping"] if tokenizer else [
                            (i, i + 1) for i in range(len(text))]  # fmt: skip
    for c in chunks:
        length = sum(start < c.end and end > c.start for start, end in counted)
        assert length <= size or c.text in CLUSTERS
    if way is not chunk_fixed:
        assert all(c.text == c.text.strip() for c in chunks)
        ends = [0, *(c.end for c in chunks)]
        assert all(c.start >= end for c, end in zip(chunks, ends))  # these do not overlap


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), st.integers(1, 6))
def test_any_text_at_all(text, size):
    """Letters of all scripts, control characters, marks without a letter."""
    if text.isspace():
        return
    for way in WAYS:
        assert problems(Document(text), way(Document(text), size)) == []
