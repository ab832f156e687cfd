"""Figures: contrast on both grounds, text large enough, nothing that reaches out of a figure."""

import base64
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from course_lib import plotting


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white_is_21():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


GROUNDS = ["#ffffff", "#121212"]
"""Of the book's pages, light and dark."""


@pytest.mark.parametrize("ground", GROUNDS)
def test_colours_stand_out_on_both_grounds(ground):
    """WCAG asks for 3:1 of graphics. Ink needs no test here: it is the page's text colour."""
    for name, colour in plotting.COLOURS.items():
        assert contrast(colour, ground) >= 3, name


def drawn(fig, alt="something"):
    """What a notebook stores of a figure, and the same parsed."""
    html = plotting.show(fig, alt)._repr_html_()
    return html, ElementTree.fromstring(html)


def line_figure(values=(3, 2, 1), **kwargs):
    fig, axes = plotting.figure("Loss", "tokens", "nats a token", **kwargs)
    axes.plot(values, color=plotting.COLOURS["blue"])
    return fig, axes


def test_ink_is_the_colour_of_the_page():
    """One grey cannot reach a contrast of 4.5 on white and on near-black; text colour does."""
    html, _ = drawn(line_figure()[0])
    assert plotting.INK not in html and "currentColor" in html
    assert plotting.COLOURS["blue"] in html
    ground = re.findall(r"fill: (?!none|currentColor)[^;\"]+", html)
    assert ground == [], "a ground or a box of a fixed colour"


def test_fixed_colours_on_a_heat_map_stay():
    """What is written on coloured cells must not turn with the page: black and white remain."""
    fig, axes = plotting.figure("t", "key", "query")
    plotting.heatmap(axes, [[1, 0], [0, 1]])
    axes.text(0, 0, "dark", color="black")
    axes.text(1, 0, "light", color="white")
    html, root = drawn(fig)
    assert "fill: #ffffff" in html
    texts = [g for g in root.iter() if "scale(0.0" in g.get("transform", "") and len(g)]
    assert [g for g in texts if "fill" not in g.get("style", "")], "black is SVG's own default"
    assert " fill=" not in html.split(">", 1)[0], "the figure as a whole would recolour it"


def test_the_raster_of_a_heat_map_has_twice_the_shown_size():
    """6 inches are shown 660 pixels wide; the cells take more than 500 of them."""
    fig, axes = plotting.figure("t", "key", "query", size=(6, 3))
    plotting.heatmap(axes, np.eye(4))
    _, root = drawn(fig)
    (image,) = [e for e in root.iter() if e.tag.endswith("image")]
    points = float(image.get("width"))
    assert 500 < points * 110 / 72 < 660
    data = image.get("{http://www.w3.org/1999/xlink}href")
    assert data.startswith("data:image/png;base64,")
    width = int.from_bytes(base64.b64decode(data.split(",")[1])[16:20], "big")
    assert width == pytest.approx(2 * points * 110 / 72, rel=0.02)


def test_two_figures_in_a_page_do_not_meet():
    """An id stands for one thing in a page: the second figure would use the first one's clip."""
    pages = [drawn(line_figure(values)[0])[0] for values in ((3, 2, 1), (1, 2, 9))]
    ids = [set(re.findall(r' id="([^"]+)"', page)) for page in pages]
    assert ids[0] and ids[1] and not ids[0] & ids[1]
    for page, known in zip(pages, ids, strict=True):
        used = set(re.findall(r'(?:href="|url\()#([^")]+)', page))
        assert used == known, "every reference is met, and no id is there for nothing"
        assert "<style" not in page, "a rule in a page reaches every other element of it"


def test_the_same_figure_gives_the_same_text_and_its_alt_text():
    alt = 'a line that falls from "3" to <1>'
    (first, root), (second, _) = (drawn(line_figure()[0], alt) for _ in range(2))
    assert first == second and len(first) < 60_000
    assert root.get("role") == "img" and root.get("aria-label") == alt
    assert "3&quot; to &lt;1&gt;" in first and "<!--" not in first
    assert repr(plotting.show(line_figure()[0], alt)) == f"[figure: {alt}]"


def test_too_many_points_become_a_raster_and_the_text_stays_sharp():
    fig, axes = plotting.figure("Points", "x", "y")
    axes.scatter(*np.random.default_rng(0).normal(size=(2, 1000)), s=4)
    small, _ = drawn(fig)
    axes.scatter(*np.random.default_rng(1).normal(size=(2, 20000)), s=4)
    large, _ = drawn(fig)
    assert "data:image/png" not in small and small.count("<use") > 1000
    assert len(large) <= plotting.LARGEST and "data:image/png" in large
    assert plotting.show(fig, "points").smallest_text == pytest.approx(13, abs=0.05)


@pytest.mark.parametrize("width", [4, 7, 11])
def test_text_has_the_same_size_on_the_page_whatever_the_figures_width(width):
    """13 pixels: a figure of 11 inches is 1210 pixels wide and shown at 744, so 13 pixels there
    are 13 · 1210 / 744 = 21.1 in the drawing, which at 110 to the inch are 13.8 points."""
    if width == 11:
        assert plotting.points(13, width) == pytest.approx(13.84, abs=0.01)
    picture = plotting.show(line_figure(size=(width, 3))[0], "a line")
    assert picture.smallest_text == pytest.approx(13, abs=0.05)
    assert f'data-smallest-text="{picture.smallest_text:.1f}"' in picture._repr_html_()


def test_the_smallest_text_is_found():
    """Five points in 7 inches: 770 pixels are shown as 744, so 5 · 110 / 72 · 744 / 770 = 7.38.
    A superscript has 0.7 of its text: 13 · 0.7 = 9.1. Ticks of a heat map: 13 · 0.833 = 10.8."""
    fig, axes = line_figure()
    axes.text(0, 2, "small", fontsize=5)
    assert plotting.show(fig, "a line").smallest_text == pytest.approx(7.38, abs=0.01)
    fig, axes = line_figure((1, 10, 1000))
    axes.set_yscale("log")
    assert plotting.show(fig, "a line").smallest_text == pytest.approx(9.1, abs=0.01)
    fig, axes = plotting.panels("masks", 3, size=(11, 3))
    plotting.heatmap(axes[0], np.eye(2), xticks="ab", yticks="cd", label="weight")
    assert plotting.show(fig, "cells").smallest_text == pytest.approx(10.83, abs=0.01)


def test_a_figure_without_text_has_no_smallest_text():
    fig, axes = plotting.panels("gone", 1)
    fig.suptitle("")
    axes[0].axis("off")
    picture = plotting.show(fig, "nothing")
    assert picture.smallest_text is None and 'data-smallest-text=""' in picture._repr_html_()


def test_labels_are_required():
    with pytest.raises(ValueError, match="needs ylabel"):
        plotting.figure("Loss", "tokens", " ")
    fig, axes = plotting.figure("Loss", "tokens", "nats")
    with pytest.raises(ValueError, match="needs alt"):
        plotting.show(fig, "")


def test_lines_differ_without_colour():
    fig, axes = plotting.figure("t", "x", "y")
    lines = [axes.plot([0, 1])[0] for _ in range(6)]
    assert len({str(line.get_linestyle()) + str(line._dash_pattern) for line in lines}) == 6


def test_what_is_drawn_later_is_in_the_style_too():
    """Legends once came with a white box and black letters, which a dark page cannot show."""
    fig, ax = plotting.figure("a", "b", "c")
    ax.plot([0, 1], label="line")
    note = ax.text(0, 0, "note")
    legend = ax.legend()
    assert not legend.get_frame_on()
    assert {note.get_color(), legend.get_texts()[0].get_color()} == {plotting.INK}


def test_heatmap_keeps_its_labels():
    fig, axes = plotting.figure("t", "key", "query")
    plotting.heatmap(axes, [[1, 0], [0, 1]], xticks=["a", "b"], yticks=["c", "d"], label="weight")
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b"]
    assert fig.axes[1].get_ylabel() == "weight"


def test_tokens_are_boxes_in_columns():
    """Two rows of three and two tokens: five boxes, the columns of equal width, no box for the gap;
    "unlikely" is the longest of its column and sets where the next one begins."""
    fig, axes = plotting.token_rows("t", {"ids": [("a", "blue"), ("unlikely", "pink"), ("b", None)],
                                          "labels": [("x", None), ("y", "orange")]})  # fmt: skip
    lefts = [bar.get_x() for bar in axes.patches]
    assert len(lefts) == 5 == len(axes.texts) and lefts[:2] == lefts[3:]
    assert lefts[2] - lefts[1] > lefts[1] - lefts[0]
    faint, strong = axes.patches[3], axes.patches[0]
    assert faint.get_alpha() < strong.get_alpha()
    with pytest.raises(ValueError, match="Unknown colours \\['red'\\]"):
        plotting.token_rows("t", {"ids": [("a", "red")]})
    with pytest.raises(ValueError, match="at least one row"):
        plotting.token_rows("t", {"ids": []})


def test_a_flow_has_an_arrow_less_than_boxes():
    fig, axes = plotting.flow("t", [("texts", "two"), ("tokens", "(B, T)"), ("loss", "a number")])
    written = [text.get_text() for text in axes.texts]
    assert written.count("") == 2 and "(B, T)" in written
    with pytest.raises(ValueError, match="two steps or more, got 1"):
        plotting.flow("t", [("texts", "")])
