"""Documents: what is read, where its sections begin, what their links are, what is refused."""

import doctest
import json
from itertools import pairwise
from pathlib import Path

import pytest
from docutils.nodes import make_id
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.rag import documents
from course_lib.rag.documents import (
    Document,
    Section,
    from_markdown,
    from_notebook,
    make_anchor,
    read_document,
)

BOOK = Path(__file__).resolve().parents[1] / "book"


def headings(document: Document) -> list[tuple[str, ...]]:
    return [section.heading for section in document.sections]


def notebook(*cells: tuple[str, object]) -> str:
    return json.dumps({"nbformat": 4, "metadata": {}, "cells": [
        {"cell_type": kind, "source": source} for kind, source in cells]})  # fmt: skip


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(documents)
    assert result.attempted == 3 and not result.failed


# --- files --------------------------------------------------------------------------------------


def test_a_byte_order_mark_goes_and_line_ends_stay(tmp_path):
    """The mark is no character of the text: "b" stands at 3, after "a" and two for the line end."""
    (tmp_path / "notes.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n\xf0\x9f\x98\x80")
    document = read_document(tmp_path / "notes.txt", source="notes")
    assert document == Document("a\r\nb\rc\n😀", "notes", "notes", {}, (Section(0, 8),))
    assert document.text.index("b") == 3


def test_a_source_is_the_path_unless_it_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    assert read_document(tmp_path / "a.txt").source == (tmp_path / "a.txt").as_posix()


@pytest.mark.parametrize("suffix", [".md", ".MD", ".markdown"])
def test_the_ending_says_that_it_is_markdown(tmp_path, suffix):
    path, other = tmp_path / f"a{suffix}", tmp_path / "a.txt"
    for file in (path, other):
        file.write_text("# A\n\ntext")
    assert headings(read_document(path)) == [("A",)]
    assert headings(read_document(other)) == [()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \r\n\t", "is empty"),
        (b"PK\x03\x04\x00\x00", "zero bytes, as binary files"),
        ("text".encode("utf-16"), "zero bytes, as binary files and UTF-16"),
        ("ok\nok\n김치".encode("cp949"), "line 3 has the byte 0xb1"),
        (b"ok\nok \xff", "line 2 has the byte 0xff"),
        (b"123456", "more than 5 bytes: split it, or raise max_bytes"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.ipynb"])
def test_files_that_are_no_text_are_told(tmp_path, name, content, message):
    if name == "a.ipynb" and message == "is empty":
        message = "not a notebook"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"a.*{message}"):
        read_document(tmp_path / name, max_bytes=5 if content == b"123456" else 100)


def test_a_file_of_just_the_size_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"12345")
    assert read_document(tmp_path / "a.txt", max_bytes=5).text == "12345"


def test_half_a_surrogate_pair_is_told():
    """JSON may have one, and no tokenizer takes it."""
    with pytest.raises(ValueError, match="'x' has half a surrogate pair at character 2"):
        from_notebook(notebook(("markdown", "ab\ud800")), "x")


# --- sections -----------------------------------------------------------------------------------


def test_headings_of_both_kinds_make_a_tree_and_code_quotes_and_lists_do_not():
    text = (
        "intro\n\nTop\n===\n\n## One `x` *y*\n```python\n# no heading\n```\n> # quoted\n\n"
        "- # item\n\n#### Deep\n\n## Two {term}`z`\n#no\n    # code\n\n# Last #\n"
    )
    document = from_markdown(text, "a/b.md")
    assert headings(document) == [
        (), ("Top",), ("Top", "One x y"), ("Top", "One x y", "Deep"), ("Top", "Two z"), ("Last",),
    ]  # fmt: skip
    starts = [text[section.start :].split("\n")[0] for section in document.sections]
    assert starts == ["intro", "Top", "## One `x` *y*", "#### Deep", "## Two {term}`z`", "# Last #"]
    assert document.title == "Top"


def test_an_anchor_that_is_not_sure_is_that_of_the_heading_above():
    """Sphinx numbers a second "Exercises" and a heading without a Latin letter, over the page."""
    document = from_markdown("# 청킹\na\n## Why\n### 왜\na\n# B\n## Why\n")
    assert [section.anchor for section in document.sections] == ["", "why", "why", "b", "b"]


def test_front_matter_becomes_metadata_all_of_it_text():
    front = "---\r\ntitle: T\r\nyear: 2024\r\ntags: [a, b]\r\n---\r\n"
    document = from_markdown(f"{front}# H\r\nx", "s")
    assert document.text == "# H\r\nx" and document.title == "T"
    assert document.metadata == {"title": "T", "year": "2024", "tags": ["a", "b"]}


@pytest.mark.parametrize(
    "text",
    [
        "---\nA sentence between rules.\n---\nMore.",
        "---\n- a\n- b\n---\nx",
        "---\na: [\n---\nx",
        "---\na: 1\nno end",
        "---\n" + "[" * 5000 + "\n---\nx",
        "a\n---\nb: 1\n---\n",
    ],
)
def test_what_is_no_front_matter_stays_in_the_text(text):
    document = from_markdown(text)
    assert document.text == text and document.metadata == {}


def test_a_title_falls_back_to_the_name_of_the_file():
    assert from_markdown("text", "notes/cats.md").title == "cats"
    assert from_markdown("text\n## H", "notes/cats.md").title == "H"


BLOCKS = st.sampled_from(
    ["# A", "## B", "### 다", "text. 글", "```\n# c\n```", "T\n=", "> q", "- i", "", "é\x0b\u2028x"]
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(BLOCKS, min_size=1, max_size=8), st.sampled_from(["\n", "\r\n", "\r"]))
def test_sections_tile_the_text_whatever_ends_its_lines(blocks, line_end):
    """And are those of the same text with simple line ends."""
    plain = "\n\n".join(blocks)
    if not plain.strip():
        return
    text = plain.replace("\n", line_end)
    document = from_markdown(text)
    sections = document.sections
    assert document.text == text
    assert sections[0].start == 0 and sections[-1].end == len(text)
    assert all(a.end == b.start and a.start < a.end for a, b in pairwise(sections))
    assert [(s.heading, text[s.start : s.end].replace(line_end, "\n")) for s in sections] == [
        (s.heading, plain[s.start : s.end]) for s in from_markdown(plain).sections
    ]
    assert sum(bool(heading) for heading in headings(document)) == sum(
        block[0:1] == "#" or block == "T\n=" for block in blocks
    )


# --- notebooks ----------------------------------------------------------------------------------


def test_a_notebook_is_its_cells_with_code_in_fences():
    document = from_notebook(
        notebook(("markdown", ["# A\n", "text"]), ("raw", "left out"), ("code", "# no\nx = '```'"),
                 ("code", ""), ("markdown", "## B")),
        "a.ipynb",
    )  # fmt: skip
    assert document.text == "# A\ntext\n\n````python\n# no\nx = '```'\n````\n\n## B"
    assert headings(document) == [("A",), ("A", "B")]


@pytest.mark.parametrize(
    "content",
    ["no json", "[]", '"text"', "{}", '{"worksheets": []}', '{"cells": [1]}', "[" * 100_000,
     '{"cells": [{"cell_type": "code"}]}', '{"cells": [{"cell_type": "code", "source": null}]}'],
)  # fmt: skip
def test_what_is_no_notebook_is_told(content):
    with pytest.raises(ValueError, match="'a.ipynb' is not a notebook: expected JSON with cells"):
        from_notebook(content, "a.ipynb")


@pytest.mark.parametrize("cells", [[], [("raw", "x")], [("code", " \n")]])
def test_a_notebook_without_text_is_empty(cells):
    with pytest.raises(ValueError, match="'a' is empty"):
        from_notebook(notebook(*cells), "a")


@pytest.mark.parametrize("path", sorted(BOOK.glob("[0-9]*.md")), ids=lambda path: path.stem)
def test_a_chapter_has_the_same_sections_in_both_forms_with_the_ids_of_docutils(path):
    text, executed = read_document(path), read_document(path.with_suffix(".ipynb"))
    assert headings(text) == headings(executed) and len(text.sections) > 3
    assert "kernelspec" not in text.text and text.metadata["kernelspec"]["language"] == "python"
    assert text.title == text.sections[0].heading[0]
    for section in text.sections:
        assert section.anchor == make_id(section.heading[-1]) != ""
    assert len({section.anchor for section in text.sections}) == len(text.sections)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(st.characters(codec="utf-8", max_codepoint=0x2FF, exclude_categories=["Ll"])
               | st.sampled_from("abz09-. 한")))  # fmt: skip
def test_anchors_are_those_of_docutils(heading):
    """Letters that docutils transcribes, ø by o, are left out here (most are small letters of
    Latin blocks, but some have capitals)."""
    from docutils.nodes import _non_id_translate, _non_id_translate_digraphs

    if not {*_non_id_translate, *_non_id_translate_digraphs} & {ord(c) for c in heading.lower()}:
        assert make_anchor(heading) == make_id(heading)
