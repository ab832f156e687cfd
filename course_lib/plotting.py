"""One style for every figure: readable on light and dark pages and without colour vision.

A figure is shown as an SVG inside the page, and everything drawn in ``INK`` takes the colour of
the page's own text: black on a white page, nearly white on a dark one, in the book as in Jupyter,
Colab and editors. The ground is transparent. The colours are those of Okabe and Ito (2008), shifted
until they keep their contrast on both grounds; lines also differ in dash and marker. The first
figure puts the style on for the whole process.
"""

import hashlib
import io
import re
from collections.abc import Sequence
from html import escape

import matplotlib
from matplotlib import cycler

INK = "#7a7a7a"
"""Stands for the page's text colour: ``show`` replaces it. A grey where it stays (rasters)."""
COLOURS = {
    "blue": "#2a86c8",
    "orange": "#d97a00",
    "green": "#0b9a73",
    "pink": "#c4709f",
    "vermilion": "#d9632a",
    "violet": "#8f7bd0",
}
"""Okabe and Ito's hues, a little darker or lighter so that each has contrast 3 on both grounds."""
HEATMAP = "cividis"
"""Perceptually even and the same to colour-blind readers."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")

COLUMN = 744
"""Pixels that an output of the book has at most, in a window of 1366 pixels with a scroll bar."""
TEXT = 13
"""Pixels of a figure's text as the page shows it; superscripts have 0.7 of it, ticks of heat maps
0.83: both stay above the 9 pixels that the pages' test asks for."""
DPI = 110
LARGEST = 400_000
"""Characters of a figure. Above it, the data are drawn as a raster of twice the shown size."""

STYLE = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.edgecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "grid.color": INK, "grid.alpha": 0.25,
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "axes.titlesize": "large",
    "figure.titlesize": "large", "axes.titleweight": "bold", "lines.linewidth": 2,
    "lines.markersize": 5, "figure.dpi": DPI, "svg.fonttype": "path", "svg.hashsalt": "course_lib",
    "axes.prop_cycle": cycler(color=list(COLOURS.values())) + cycler(linestyle=list(DASHES)),
    "image.cmap": HEATMAP,
}  # fmt: skip


def figure(title: str, xlabel: str, ylabel: str, *, size: tuple[float, float] = (7, 3.6)):
    """An empty plot in the course's style.

    Args:
        title, xlabel, ylabel: all three must say something; give units in the labels.
        size: inches.

    Returns:
        (figure, axes) of matplotlib.

    Raises:
        ValueError: an empty title or label.
    """
    _require_text(title=title, xlabel=xlabel, ylabel=ylabel)
    fig, axes = _subplots(1, 1, size)
    axes[0].set(title=title, xlabel=xlabel, ylabel=ylabel)
    return fig, axes[0]


def panels(title: str, count: int, *, size: tuple[float, float] = (9, 3.2), sharey: bool = False):
    """A row of ``count`` plots under one title. Returns (figure, list of axes)."""
    _require_text(title=title)
    fig, axes = _subplots(1, count, size, sharey)
    fig.suptitle(title, fontweight="bold", color=INK)
    return fig, axes


def _subplots(rows: int, columns: int, size: tuple[float, float], sharey: bool = False):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # They stay on: legends and texts are drawn later. A wide figure is shown smaller than it is
    # drawn, so its text is larger.
    matplotlib.rcParams.update(STYLE | {"font.size": points(TEXT, size[0])})
    fig = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(fig)
    return fig, list(fig.subplots(rows, columns, squeeze=False, sharey=sharey).flat)


def points(pixels: float, width: float) -> float:
    """The font size, in points, of text that the page shows at ``pixels``.

    Args:
        width: of the figure, in inches.

    Example:
        >>> points(10, 5)  # 5 inches have 360 points and are shown at 550 pixels
        6.545454545454546
    """
    return pixels * width * 72 / min(width * DPI, COLUMN)


def _require_text(**texts: str) -> None:
    if empty := [name for name, text in texts.items() if not text.strip()]:
        raise ValueError(f"A plot needs {' and '.join(empty)}: say what is shown, with units.")


def heatmap(axes, values, *, xticks=None, yticks=None, vmin=None, vmax=None, label: str = ""):
    """Draw a matrix with a colour bar.

    Args:
        axes: from ``figure`` or ``panels``.
        values: (rows, columns) array or tensor.
        xticks, yticks: labels of the columns and rows, e.g. tokens.
        label: of the colour bar, with units; no bar when empty.
    """
    image = axes.imshow(values, aspect="auto", vmin=vmin, vmax=vmax, cmap=HEATMAP)
    axes.grid(False)
    if xticks is not None:
        axes.set_xticks(range(len(xticks)), xticks, rotation=90, fontsize="small")
    if yticks is not None:
        axes.set_yticks(range(len(yticks)), yticks, fontsize="small")
    if label:
        bar = axes.figure.colorbar(image, ax=axes)
        bar.set_label(label, color=INK)
        bar.outline.set_edgecolor(INK)
        bar.ax.tick_params(colors=INK)
    return image


def flow(title: str, steps: Sequence[tuple[str, str]]):
    """A chain of boxes with arrows between them: what becomes of the data.

    Args:
        steps: (what it is, a detail below it, e.g. its shape) of each box.

    Returns:
        (figure, axes).

    Raises:
        ValueError: fewer than two steps, or a step without a name.
    """
    if len(steps) < 2:
        raise ValueError(f"A flow needs two steps or more, got {len(steps)}.")
    for name, _ in steps:
        _require_text(step=name)
    fig, (axes,) = panels(title, 1, size=(7.2, 1.5))
    axes.axis("off")
    for x, (name, detail) in enumerate(steps):
        axes.text(x, 0.62, name, ha="center", va="center", fontsize=9, bbox={
            "boxstyle": "round,pad=0.5", "facecolor": "none", "edgecolor": COLOURS["blue"]})
        axes.text(x, 0.08, detail, ha="center", va="center", fontsize=8)
        if x:
            axes.annotate("", (x - 0.4, 0.62), (x - 0.6, 0.62),
                          arrowprops={"arrowstyle": "->", "color": INK})  # fmt: skip
    axes.set(xlim=(-0.5, len(steps) - 0.5), ylim=(-0.1, 1.1))
    return fig, axes


def token_rows(title: str, rows: dict[str, list[tuple[str, str | None]]]):
    """Sequences of tokens as rows of boxes, column below column.

    Args:
        title: what is shown.
        rows: name of a row -> (text, colour) of each token; the colour is a name of ``COLOURS``, or
            None for a token that takes no part. Rows may differ in length.

    Returns:
        (figure, axes).

    Raises:
        ValueError: no rows or tokens, an unknown colour.

    Example:
        >>> fig, axes = token_rows("A row", {"input_ids": [("dog", "blue"), ("<pad>", None)]})
        >>> [text.get_text() for text in axes.texts]
        ['dog', '<pad>']
    """
    if not rows or not all(rows.values()):
        raise ValueError("Rows of tokens need at least one row, and each row a token.")
    colours = {colour for row in rows.values() for _, colour in row if colour is not None}
    if unknown := sorted(colours - set(COLOURS)):
        raise ValueError(f"Unknown colours {unknown}: choose from {list(COLOURS)}.")
    count = max(map(len, rows.values()))
    widths = [max(len(row[i][0]) for row in rows.values() if i < len(row)) + 1.5
              for i in range(count)]  # fmt: skip
    fig, axes = figure(title, "position (token)", "tensor", size=(7.2, 1.1 + 0.36 * len(rows)))
    lefts = [sum(widths[:i]) for i in range(count)]
    for y, row in enumerate(rows.values()):
        for left, width, (text, colour) in zip(lefts, widths, row, strict=False):
            axes.barh(y, width * 0.95, left=left, height=0.8, alpha=0.35 if colour else 0.1,
                      color=COLOURS[colour] if colour else INK)  # fmt: skip
            axes.text(left + width * 0.475, y, text, ha="center", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.set_xticks([left + width / 2 for left, width in zip(lefts, widths, strict=True)],
                    range(count), fontsize=8)  # fmt: skip
    axes.set_xlim(0, sum(widths))
    axes.invert_yaxis()
    axes.grid(visible=False)
    return fig, axes


def to_svg(fig) -> str:
    """The figure as SVG for the inside of a page: the same text for the same figure.

    What is drawn in ``INK`` has the page's colour. No rule of style reaches out of the figure, and
    identifiers begin with a digest of the content, so that figures of one page do not meet.
    """
    svg = _draw(fig)
    if len(svg) > LARGEST:
        for axes in fig.axes:
            for artist in (*axes.lines, *axes.collections, *axes.patches):
                artist.set_rasterized(True)
        svg = _draw(fig)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = svg.replace(INK, "currentColor")
    salt = "f" + hashlib.sha256(svg.encode()).hexdigest()[:10]
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{salt}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#{salt}-", svg)
    return re.sub(r">\s+<", "><", svg).strip()


def _draw(fig) -> str:
    """matplotlib's SVG; rasters inside it at twice the shown size."""
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", dpi=2 * DPI, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def smallest_text(svg: str, width: float) -> float | None:
    """The smallest text of a figure in pixels as the page shows it; None without text.

    Args:
        svg: from ``to_svg``. There a text of n points has the scale n / 100, and a part of a
            formula (a superscript, say) a scale of its own inside it.
        width: of the figure in pixels, before the page makes it smaller.
    """
    sizes = []
    for scale, glyphs in re.findall(r"scale\(([\d.]+) -[\d.]+\)\"?>(.*?)</g>", svg, flags=re.S):
        parts = re.findall(r"<use [^>]*?transform=\"([^\"]*)\"", glyphs)
        inner = [float(m[1]) if (m := re.search(r"scale\(([\d.]+)", p)) else 1.0 for p in parts]
        sizes.append(100 * float(scale) * min(inner, default=1.0))
    if not sizes:
        return None
    drawn = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    return min(sizes) * min(width, COLUMN) / drawn


class Picture:
    """A figure with its text for those who cannot see it, as notebooks and the book show it."""

    def __init__(self, fig, alt: str):
        _require_text(alt=alt)
        self.alt = alt
        self.svg = to_svg(fig)
        self.width = round(fig.get_figwidth() * DPI)
        self.smallest_text = smallest_text(self.svg, self.width)

    def _repr_html_(self) -> str:
        view = re.search(r'viewBox="[^"]+"', self.svg)[0]
        size = "" if self.smallest_text is None else f"{self.smallest_text:.1f}"
        return (
            f'<svg role="img" aria-label="{escape(self.alt)}" data-smallest-text="{size}" '
            f'width="{self.width}" {view} xmlns="http://www.w3.org/2000/svg" '
            'xmlns:xlink="http://www.w3.org/1999/xlink" style="max-width:100%;height:auto;'
            f'stroke-linejoin:round;stroke-linecap:butt">{self.svg[self.svg.index(">") + 1 :]}'
        )

    def __repr__(self) -> str:
        return f"[figure: {self.alt}]"


def show(fig, alt: str) -> Picture:
    """Show a figure with its alternative text: the last line of a cell.

    Raises:
        ValueError: no alternative text.
    """
    return Picture(fig, alt)
