"""Optimizers in pictures: which of them share a panel, and how the line of each looks in every picture."""

from typing import Any

import numpy as np

from fusedstep import optimizers
from fusedstep.optimizers import classes

from .picture import LOOKS, alike, style

__all__ = ["FAMILIES", "family", "legend", "line", "places"]

FAMILIES = (
    "gradient, its mean, or the mean's sign",
    "gradient, each coordinate scaled",
    "mean, each coordinate scaled",
)


def family(name: str) -> str:
    """
    Return along what an optimizer steps: a mean of gradients, a gradient that is scaled per coordinate, or both.

    The states of one step along a negative gradient tell. A negative state is a mean of gradients; any other one, such
    as a mean of squares, scales.
    """
    optimizer = getattr(optimizers, name)()
    optimizer.step(np.ones(1), -np.ones(1))
    states = list(optimizer.state.get(0, {}).values())
    means = [state for state in states if state[0] < 0]
    return FAMILIES[0 if len(means) == len(states) else 2 if means else 1]


def places() -> dict[str, int]:
    """Return the number of the look of each optimizer: the first that is free, and unlike all others in its panel."""
    kinds: dict[str, str] = {}
    found: dict[str, int] = {}
    for name in (cls.__name__ for cls in classes()):
        kinds[name] = family(name)
        beside = [found[other] for other in found if kinds[other] == kinds[name]]
        free = [i for i in range(LOOKS) if i not in found.values()]
        found[name] = next((i for i in free if not any(alike(i, j) for j in beside)), free[0])
    return found


def line(axes: Any, name: str, rate: float, points: int) -> dict[str, Any]:
    """Return label and look of the line of an optimizer, which is about to be drawn in a panel."""
    every = max(1, points // 10)
    drawn = len(axes.get_legend_handles_labels()[1])
    look = style(places()[name])
    return {
        **look,
        "label": f"{name} {rate:g}",
        # Lines that lie on others are narrower, and let them show through their gaps.
        "linewidth": 3.6 if look["linestyle"] == "-" else max(2.2 - 0.25 * drawn, 1.0),
        "zorder": look["zorder"] + 0.001 * drawn,
        "markevery": (drawn * every // 5, every),  # shifted, so that lines on top of each other show all markers
    }


def legend(axes: Any) -> None:
    """Put a legend under a panel that has lines with labels."""
    where: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.08), "ncols": 2}
    if axes.get_legend_handles_labels()[1]:
        axes.legend(**where, fontsize=8, frameon=False, handlelength=3.2, columnspacing=1.2)
