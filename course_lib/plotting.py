"""One style for every figure: readable on light and dark pages and without colour vision.

Ink is a mid grey with enough contrast on white and on near-black; the ground is transparent. The
colours are those of Okabe and Ito (2008) that keep their contrast on both; lines also differ in
dash and marker. The first figure puts the style on for the whole process.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import matplotlib
from cycler import cycler

INK = "#7a7a7a"
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

STYLE = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.edgecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "grid.color": INK, "grid.alpha": 0.25,
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "font.size": 10.5,
    "axes.titlesize": 12, "axes.titleweight": "bold", "lines.linewidth": 2,
    "lines.markersize": 5, "figure.dpi": 110, "savefig.dpi": 110, "svg.hashsalt": "course_lib",
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

    matplotlib.rcParams.update(STYLE)  # it stays on: legends and texts are drawn later
    fig = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(fig)
    return fig, list(fig.subplots(rows, columns, squeeze=False, sharey=sharey).flat)


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
        axes.set_xticks(range(len(xticks)), xticks, rotation=90, fontsize=8)
    if yticks is not None:
        axes.set_yticks(range(len(yticks)), yticks, fontsize=8)
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


def to_png(fig) -> bytes:
    """The figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


class Picture:
    """A figure with its text for those who cannot see it, as notebooks and the book show it."""

    def __init__(self, fig, alt: str):
        _require_text(alt=alt)
        self.alt = alt
        self.png = to_png(fig)
        self.width = round(fig.get_figwidth() * fig.dpi)

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.png).decode()
        return (
            f'<img alt="{escape(self.alt, quote=True)}" width="{self.width}" '
            f'style="max-width:100%;height:auto;background:transparent" '
            f'src="data:image/png;base64,{data}">'
        )

    def __repr__(self) -> str:
        return f"[figure: {self.alt}]"


def show(fig, alt: str) -> Picture:
    """Show a figure with its alternative text: the last line of a cell.

    Raises:
        ValueError: no alternative text.
    """
    return Picture(fig, alt)
