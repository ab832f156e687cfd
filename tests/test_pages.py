"""Pages: every chapter keeps the rules, and a made-up notebook that breaks one is caught."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval.plugin import get_sanitize_patterns
from notebooks import ROOT, notebook_texts
from pages import NOT_REBUILT, broken_rules

from course_lib import plotting

TEXTS = notebook_texts()


def pair_of(text):
    return nbformat.read(text.with_suffix(".ipynb"), as_version=4)


@pytest.mark.parametrize("text", TEXTS, ids=lambda t: t.stem)
def test_pages_keep_the_rules(text):
    """A chapter on the list must break one still: whoever rebuilds it takes it off."""
    found = broken_rules(pair_of(text))
    if text.stem in NOT_REBUILT:
        assert found, f"{text.stem} keeps every rule: take it off NOT_REBUILT in tools/pages.py"
    else:
        assert not found, "\n".join(found)


def test_the_list_of_chapters_to_rebuild_only_shrinks():
    """Chapters that came later must keep the rules from their first day."""
    first = {"01_pretraining", "02_encoder_only", "03_decoder_only", "04_encoder_decoder",
             "05_prompting"}  # fmt: skip
    assert first >= NOT_REBUILT
    assert {t.stem for t in TEXTS} >= NOT_REBUILT


# --- controls -----------------------------------------------------------------------------------


def code(source="x = 1", *outputs, tags=()):
    cell = new_code_cell(source, outputs=list(outputs))
    cell.metadata["tags"] = list(tags)
    return cell


def broken(*cells) -> list[str]:
    cells = [new_markdown_cell("# Title " + "x" * 200), *(cell.copy() for cell in cells)]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    return broken_rules(new_notebook(cells=cells))


def stream(text):
    return new_output("stream", name="stdout", text=text)


def result(**data):
    return new_output("execute_result", data={k.replace("_", "/"): v for k, v in data.items()})


def picture(alt="a line", **text):
    fig, axes = plotting.figure("Title", "x", "y")
    axes.text(0, 0, "note", **text)
    shown = plotting.show(fig, alt)
    return result(text_html=shown._repr_html_(), text_plain=repr(shown))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([code("x = 1\n" * 21)], "code cell 1: 21 visible lines, at most 20"),
        ([code(), code("x = 1  # " + "y" * 71)], "code cell 2: line of code of 80 characters"),
        ([code("x", stream("short\n" + "z" * 80 + "\n"))], "printed line of 80 characters"),
        ([code("x", result(text_plain="z" * 80))], "printed line of 80 characters"),
        ([code("x", result(text_plain="z" * 80), tags=["hide-input"])], "printed line of 80"),
        ([code("x = 1\n" * 20)] * 12 + [code("x\n" * 11)], "251 visible lines of code, at most"),
        ([code("x", picture(fontsize=5))], "the smallest text of a picture is 7.4 px on the page"),
        ([code("x", picture(fontsize=5), tags=["hide-cell"])], "the smallest text of a picture"),
        ([code("x", result(image_png="iVBORw0KGgo="))], "has no alternative text"),
        ([code("x", result(text_html='<img src="data:,">'))], "without alternative text"),
        ([code("x", result(text_html='<svg aria-label=" ">'))], "without alternative text"),
        ([code("x", result(text_html='<img alt="a" src="data:,">'))], "text was not measured"),
    ],
)
def test_a_page_that_breaks_a_rule_is_caught(cells, message):
    found = broken(*cells)
    assert any(message in problem for problem in found), found


def test_a_page_at_every_limit_passes():
    """20 lines a cell, 79 characters, 250 lines in all, text of 9.1 pixels (a superscript)."""
    fig, axes = plotting.figure("Title", "x", "y")
    axes.plot([1, 10, 100])
    axes.set_yscale("log")
    shown = plotting.show(fig, "a line")
    assert shown.smallest_text == pytest.approx(9.1, abs=0.01)
    full = code("x = '" + "y" * 73 + "'\n" + "x = 1\n" * 18 + "x", stream("z" * 79 + "\n"))
    last = code("x = 1\n" * 9 + "fig", result(text_html=shown._repr_html_(), text_plain="z" * 99))
    assert broken(*[full] * 12, last) == []


def test_what_is_folded_away_is_not_counted():
    long = "x = '" + "y" * 99 + "'\n"
    for tag in ("hide-input", "hide-cell", "remove-input", "remove-cell"):
        assert broken(code(long * 300, tags=[tag])) == []
    for tag in ("hide-output", "hide-cell", "remove-output", "remove-cell"):
        assert broken(code("x", stream("z" * 99), tags=[tag])) == []
    glued = new_output("display_data", data={"application/papermill.record/text/plain": "z" * 99})
    assert broken(code("x", glued)) == []


# --- figures in the comparison of outputs -------------------------------------------------------


def sanitised(html: str) -> str:
    """As nbval does it: each regex in turn over the whole output."""
    text = (ROOT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8")
    for regex, replace in get_sanitize_patterns(text):
        html = re.sub(regex, replace, html)
    return html


def test_a_figure_counts_by_its_alternative_text_alone():
    """Text of a figure spans many lines, which a dot does not match unless told so."""
    first, other = (picture("a line, 3 > 2", fontsize=size)["data"]["text/html"]
                    for size in (20, 21))  # fmt: skip
    assert first != other and "\n" in first
    assert sanitised(first) == sanitised(other) == "PICTURE: a line, 3 &gt; 2"
    assert sanitised(first + "<p>4</p>" + other).count("PICTURE") == 2
    assert "<p>4</p>" in sanitised(first + "<p>4</p>" + other)
    assert sanitised(picture("a curve")["data"]["text/html"]) == "PICTURE: a curve"
    assert sanitised('<img src="data:image/png;base64,iVBO+/=">') == '<img src="PICTURE">'
