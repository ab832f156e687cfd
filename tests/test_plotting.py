"""Figures: contrast on both grounds, labels required, alternative text in the page."""

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


@pytest.mark.parametrize("ground", ["#ffffff", "#14181e"])
def test_colours_and_ink_stand_out_on_both_grounds(ground):
    """WCAG asks for 3:1 of graphics, 4.5:1 of small text; one grey cannot reach more on both."""
    for name, colour in plotting.COLOURS.items():
        assert contrast(colour, ground) >= 3, name
    assert contrast(plotting.INK, ground) >= 4


def test_labels_are_required():
    with pytest.raises(ValueError, match="needs ylabel"):
        plotting.figure("Loss", "tokens", " ")
    fig, axes = plotting.figure("Loss", "tokens", "nats")
    with pytest.raises(ValueError, match="needs alt"):
        plotting.show(fig, "")


def test_the_same_figure_gives_the_same_small_bytes_and_its_alt_text():
    def draw():
        fig, axes = plotting.figure("Loss", "tokens", "nats a token")
        axes.plot([0, 1, 2], [3, 2, 1])
        return plotting.show(fig, 'a line that falls from "3" to 1')

    first, second = draw(), draw()
    assert first.png == second.png and len(first.png) < 100_000
    assert 'alt="a line that falls from &quot;3&quot; to 1"' in first._repr_html_()
    assert repr(first) == '[figure: a line that falls from "3" to 1]'


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
