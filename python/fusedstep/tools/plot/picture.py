"""The common ground of all pictures: an empty figure, the look of lines, and writing files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["LOOKS", "alike", "blank", "name_ends", "style", "write"]

# Looks of lines. With 7 dashes and 11 markers, no two of the first 77 lines look alike, even without colours.
COLOURS = (
    *("black", "#0072b2", "#d55e00", "#009e73", "#a01c48", "#4aa3df"),
    *("#332288", "#e07b00", "#117733", "#aa4499", "#d6459a", "#8c6d1f"),
)
DASHES: tuple[Any, ...] = (
    "-",
    *((0, gaps) for gaps in ((5, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5), (9, 2), (3, 1), (4, 2, 1, 2, 1, 2))),
)
MARKERS = "osDv^P<X>hd"
LOOKS = len(DASHES) * len(MARKERS)


def blank(height: float) -> Any:
    """Return an empty figure, 9 inches wide: letters of 8 points can be read where it is as wide as a page of text."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    return Figure(figsize=(9, height), layout="constrained")


def alike(i: int, j: int) -> bool:
    """Return whether lines number `i` and `j` share their dashes or their marker."""
    return i % len(DASHES) == j % len(DASHES) or i % len(MARKERS) == j % len(MARKERS)


def style(i: int) -> dict[str, Any]:
    """Return the look of line number `i`: colour, dashes and marker differ from those of its neighbours."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": DASHES[i % len(DASHES)],
        "linewidth": 1.5,
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 6,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
        "zorder": 2.1 if i % len(DASHES) else 2,  # a line without gaps lies below the dashed ones
    }


def name_ends(axes: Any, gap: float = 0.07) -> None:
    """Write the label of each line to the right of its end, in its colour; `gap` is a share of the height."""
    axes.autoscale_view()
    ends = sorted(axes.lines, key=lambda line: line.get_ydata()[-1])
    heights = [axes.transAxes.inverted().transform(axes.transData.transform(line.get_xydata()[-1]))[1] for line in ends]
    for _ in range(100):  # neighbours push each other apart
        for i in range(1, len(heights)):
            push = max(0.0, gap - (heights[i] - heights[i - 1])) / 2
            heights[i - 1], heights[i] = heights[i - 1] - push, heights[i] + push
    for line, height in zip(ends, heights, strict=True):
        colour = line.get_color()
        axes.annotate(
            line.get_label(),
            line.get_xydata()[-1],
            (1.05, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 5},
        )


def write(figure: Any, paths: Iterable[Path]) -> None:
    """
    Write a figure to files, PNG or SVG by their suffix.

    Equal figures make equal SVG files, byte for byte. Their text is drawn as shapes, so that no fonts are needed.
    """
    from matplotlib import rc_context

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # frozen: computed anew for each file, it would differ a little
    with rc_context({"svg.hashsalt": "fusedstep", "svg.fonttype": "path"}):
        for path in paths:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
