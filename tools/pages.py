"""What a page of the book may hold: short visible cells, lines that fit, figures that can be read.

A page is a lesson. What a reader need not see is folded away by the tags of MyST-NB and is not
counted.
"""

import re
from html import unescape

import nbformat

CELL_LINES = 20
LINE_LENGTH = 79
"""Characters: 84 fit the column of a window 1366 pixels wide that has a scroll bar."""
CHAPTER_LINES = 250
SMALLEST_TEXT = 9.0
"""Pixels at the size at which the page shows a figure."""
NOT_REBUILT = {
    "01_pretraining", "02_encoder_only", "03_decoder_only", "04_encoder_decoder", "05_prompting",
}  # fmt: skip
"""Chapters that still break a rule. May only shrink: a test asks each of them to break one."""
NO_INPUT = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
NO_OUTPUT = {"hide-output", "hide-cell", "remove-output", "remove-cell"}


def broken_rules(notebook: nbformat.NotebookNode) -> list[str]:
    """Every rule that the notebook breaks, each with the place; empty for a good page."""
    found, total = [], 0
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    for number, cell in enumerate(cells, 1):
        tags = set(cell.metadata.get("tags", []))
        where = f"code cell {number}"
        if not tags & NO_INPUT:
            lines = cell.source.strip("\n").splitlines()
            total += len(lines)
            if len(lines) > CELL_LINES:
                found.append(f"{where}: {len(lines)} visible lines, at most {CELL_LINES}")
            found += [f"{where}: {problem}" for problem in _too_long("line of code", lines)]
        for output in cell.outputs:
            if not tags & NO_OUTPUT:
                printed = _printed(output).splitlines()
                found += [f"{where}: {p}" for p in _too_long("printed line", printed)]
            found += [f"{where}: {problem}" for problem in _picture_problems(output)]
    if total > CHAPTER_LINES:
        found.append(f"{total} visible lines of code, at most {CHAPTER_LINES} a chapter")
    return found


def _too_long(what: str, lines: list[str]) -> list[str]:
    return [
        f"{what} of {len(line)} characters, at most {LINE_LENGTH}: {line[:40]}..."
        for line in lines
        if len(line) > LINE_LENGTH
    ]


def _printed(output: nbformat.NotebookNode) -> str:
    """The text that the book shows of an output: a stream, or a result without a richer form."""
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {})
    richer = {"text/html", "text/markdown", "text/latex"} & data.keys()
    pictures = any(kind.startswith("image/") for kind in data)
    return "" if richer or pictures else data.get("text/plain", "")


def _picture_problems(output: nbformat.NotebookNode) -> list[str]:
    data = output.get("data", {})
    problems = [
        f"{kind} has no alternative text: show figures with course_lib.plotting.show"
        for kind in data
        if kind.startswith("image/")
    ]
    for picture in re.findall(r"<(?:img|svg)\b[^>]*>", data.get("text/html", "")):
        alt = _attribute(picture, "alt" if picture.startswith("<img") else "aria-label")
        if not (alt or "").strip():
            problems.append("a picture without alternative text")
        size = _attribute(picture, "data-smallest-text")
        if size is None:
            problems.append("a picture whose text was not measured: use course_lib.plotting.show")
        elif size and float(size) < SMALLEST_TEXT:
            problems.append(f"the smallest text of a picture is {size} px on the page, at least "
                            f"{SMALLEST_TEXT:g}: {(alt or '')[:40]}...")  # fmt: skip
    return problems


def _attribute(tag: str, name: str) -> str | None:
    match = re.search(rf'\s{name}="([^"]*)"', tag)
    return unescape(match[1]) if match else None
