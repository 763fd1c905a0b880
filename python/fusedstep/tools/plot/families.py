"""The optimizers in pictures: which of them share a panel, and their lines, the same everywhere."""

from typing import Any

import numpy as np

from fusedstep import optimizers
from fusedstep.optimizers import classes

from .picture import style

__all__ = ["FAMILIES", "family", "legend", "line"]

FAMILIES = (
    "gradient, its mean, or the mean's sign",
    "gradient, each coordinate scaled",
    "mean, each coordinate scaled",
)


def family(name: str) -> str:
    """Return along what an optimizer steps, by its states: a mean of gradients, or what scales them, or both."""
    optimizer = getattr(optimizers, name)()
    optimizer.step(np.ones(1), np.ones(1))
    states = set(optimizer.state.get(0, {}))
    means = states & {"b", "m"}
    return FAMILIES[0 if states == means else 2 if means else 1]


def line(axes: Any, name: str, rate: float, points: int) -> dict[str, Any]:
    """Return how the line of an optimizer looks, the next in a panel, and its label."""
    every = max(1, points // 10)
    drawn = len(axes.get_legend_handles_labels()[1])
    return {
        **style([cls.__name__ for cls in classes()].index(name)),
        "label": f"{name} {rate:g}",
        "markevery": (drawn * every // 4, every),  # markers do not hide each other where lines do
    }


def legend(axes: Any) -> None:
    """Put a legend under a panel, unless nothing in it has a name."""
    where: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.08), "ncols": 2}
    if axes.get_legend_handles_labels()[1]:
        axes.legend(**where, fontsize=8, frameon=False, handlelength=3.2, columnspacing=1.2)
