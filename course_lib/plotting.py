"""One style for every figure: readable on light and dark pages and without colour vision.

Ink is a mid grey with enough contrast on white and on near-black; the ground is transparent. The
colours are those of Okabe and Ito (2008) that keep their contrast on both; lines also differ in
dash and marker. The first figure puts the style on for the whole process.
"""

import base64
import io
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
