"""Documents: text with its source and its sections, read from plain text, Markdown and notebooks.

A section reaches from its heading to the next one, so the sections tile the text. What is cited
later is ``document.text[start:end]``; the text stays as it was read, line ends and all.
Simplified away: a notebook's outputs and raw cells; other formats and encodings.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from course_lib.rag.extra import library

MAX_BYTES = 50_000_000
LINE_END = re.compile(r"\r\n?|\n")
"""What ends a line in Markdown (CommonMark 0.31, section 2.1)."""
FRONT_MATTER = re.compile(
    r"---[ \t]*(?:\r\n?|\n)(.*?(?:\r\n?|\n))---[ \t]*(?:\r\n?|\n|\Z)", re.DOTALL
)
ROLE = re.compile(r"\{[\w:+.-]+\}(?=`)")
"""What stands before a MyST role: ``{term}`` in ``{term}`chunk```."""


@dataclass(frozen=True)
class Section:
    """``text[start:end]`` stands under the headings ``heading``, the outermost first.

    ``anchor`` is the id of the nearest heading that has one, "" the page: as Sphinx, and so the
    book, writes it into HTML.
    """

    start: int
    end: int
    heading: tuple[str, ...] = ()
    anchor: str = ""


@dataclass(frozen=True)
class Document:
    """A text and where it came from.

    Args:
        text: all offsets count its characters, as Python's ``len`` does.
        source: its path, or any name; it tells documents apart.
        title: what to show for it.
        metadata: whatever it may be filtered by, e.g. {"year": "2024"}.
        sections: in order, without gaps; one over all of the text where none are given.

    Raises:
        ValueError: a text without a single character that is not white space, or one that is not
            Unicode.
    """

    text: str
    source: str = ""
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    sections: tuple[Section, ...] = ()

    def __post_init__(self):
        if not self.text or self.text.isspace():
            raise ValueError(f"The document {self.source!r} is empty: there is nothing to find.")
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The document {self.source!r} has half a surrogate pair at character "
                f"{error.start}, which is not Unicode: it was decoded wrongly somewhere."
            ) from error
        if not self.sections:
            object.__setattr__(self, "sections", (Section(0, len(self.text)),))


def read_document(
    path: str | Path, *, source: str | None = None, max_bytes: int = MAX_BYTES
) -> Document:
    """Read a UTF-8 file: ``.md`` as Markdown, ``.ipynb`` as a notebook, any other as plain text.

    A byte order mark is not part of the text; line ends stay as they are.

    Args:
        source: the document's name; by default the path, with slashes.

    Raises:
        ValueError: a file over ``max_bytes``, a binary or empty one, bytes that are not UTF-8, a
            notebook that is none.
        OSError: no such file, or one that cannot be read.
    """
    path = Path(path)
    source = path.as_posix() if source is None else source
    text = _decode(path, max_bytes)
    suffix = path.suffix.lower()
    if suffix == ".ipynb":
        return from_notebook(text, source)
    if suffix in (".md", ".markdown"):
        return from_markdown(text, source)
    return Document(text, source, path.stem)


def _decode(path: Path, max_bytes: int) -> str:
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(
            f"{path} has more than {max_bytes:,} bytes: split it, or raise max_bytes if there is "
            "memory for it."
        )
    if b"\0" in data:
        raise ValueError(
            f"{path} is not UTF-8 text: it has zero bytes, as binary files and UTF-16 do. Leave "
            "it out, or save its text as UTF-8."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} is not UTF-8 text: line {line} has the byte 0x{error.object[error.start]:02x} "
            "that does not fit. Save it as UTF-8, or leave it out if it is binary."
        ) from error


def from_markdown(text: str, source: str = "") -> Document:
    """A document of a Markdown text; MyST's notebooks with code cells are such texts.

    YAML front matter becomes metadata and is cut off. The title is the front matter's, else the
    first heading, else the source's name. Headings in code, quotes and lists are none.

    Raises:
        ValueError: as ``Document``.

    Example:
        >>> document = from_markdown("# Cats\\nSoft.\\n\\n## Food\\nFish.\\n")
        >>> document.title, [(s.heading, s.anchor) for s in document.sections]
        ('Cats', [(('Cats',), 'cats'), (('Cats', 'Food'), 'food')])
    """
    front, text = _front_matter(text)
    headings = list(_headings(text))
    named = [front.get("title"), *(heading for _, _, heading in headings), PurePath(source).stem]
    title = next((name for name in named if isinstance(name, str) and name), "")
    return Document(text, source, title, front, _sections(text, headings))


def from_notebook(content: str, source: str = "") -> Document:
    """A document of a Jupyter notebook (nbformat 4): its cells with an empty line between.

    Code stands in a fence, as in Markdown.

    Args:
        content: what the ``.ipynb`` file holds.

    Raises:
        ValueError: not a notebook; and as ``Document``.
    """
    try:
        notebook = json.loads(content)
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{source!r} is not a notebook: expected JSON with cells, as Jupyter writes since "
            f"2014 (nbformat 4), got {type(error).__name__}: {error}."
        ) from error
    texts = [_fenced(text) if kind == "code" else text
             for kind, text in cells if kind in ("code", "markdown") and text.strip()]  # fmt: skip
    return from_markdown("\n\n".join(texts), source)


def _fenced(code: str) -> str:
    """Code in a fence that is longer than any row of backticks in it."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", code))])
    return f"{fence}python\n{code}\n{fence}"


def _front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The YAML at the top, all its scalars as text, and what follows. What is no YAML of named
    values, as the text between two rules is not, stays in the text."""
    import yaml

    match = FRONT_MATTER.match(text)
    if match is None:
        return {}, text
    try:
        front = yaml.load(match[1], Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError):
        front = None
    if not isinstance(front, dict):
        return {}, text
    return {str(key): value for key, value in front.items()}, text[match.end() :]


@cache
def _markdown(rule: str):
    """markdown-it without inline parsing, or nothing but that: only headings need it."""
    parser = library("markdown_it", "Reading Markdown").MarkdownIt("commonmark")
    return parser if rule == "inline" else parser.disable("inline")


def _headings(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, level, text) of each heading that is not inside of something else."""
    starts = [0, *(match.end() for match in LINE_END.finditer(text))]
    tokens = _markdown("block").parse(text)
    for token, content in zip(tokens, tokens[1:]):
        if token.type == "heading_open" and token.level == 0:
            yield starts[token.map[0]], int(token.tag[1:]), _plain(content.content)


def _plain(heading: str) -> str:
    """A heading's text without its markup."""
    (inline,) = _markdown("inline").parseInline(ROLE.sub("", heading))
    parts = (" " if child.type == "softbreak" else child.content for child in inline.children)
    return " ".join("".join(parts).split())


def _sections(text: str, headings: Sequence[tuple[int, int, str]]) -> tuple[Section, ...]:
    sections, taken = [Section(0, len(text))], set()
    above: list[tuple[int, str, str]] = []  # (level, heading, anchor), the outermost first
    for start, level, heading in headings:
        above = [outer for outer in above if outer[0] < level]
        anchor = make_anchor(heading)
        if not anchor or anchor in taken:  # Sphinx numbers these, and we cannot know the number
            anchor = above[-1][2] if above else ""
        taken.add(anchor)
        above.append((level, heading, anchor))
        before = sections.pop()
        if text[before.start : start].strip():
            sections.append(replace(before, end=start))
        else:
            start = before.start  # white space at the top
        path = tuple(heading for _, heading, _ in above)
        sections.append(Section(start, len(text), path, anchor))
    return tuple(sections)


def make_anchor(heading: str) -> str:
    """The id of a heading in HTML, as docutils makes it; "" where nothing is left of it.

    Small letters and digits with hyphens between; accents go, and so do digits in front and all
    letters but Latin ones. (Docutils' transcriptions, as of ø by o, are left out.)

    Example:
        >>> make_anchor("2. T5's objective: 잡음"), make_anchor("청킹")
        ('t5-s-objective', '')
    """
    plain = unicodedata.normalize("NFKD", heading.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"^[-0-9]+|-+$", "", re.sub("[^a-z0-9]+", "-", " ".join(plain.split())))
