"""The paths of all optimizers over three functions of two variables, from the same start."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusedstep import optimizers
from fusedstep.optimizers import classes

from .families import FAMILIES, family, legend, line
from .picture import blank, write

__all__ = ["SURFACES", "Surface", "draw_trajectories", "rate", "trajectory"]

Point = npt.NDArray[np.float64]
CAPTION = (
    "Ring: start. Star: minimum. Cross: saddle point. Markers: one in each tenth of the updates. "
    "Beside each name: the learning rate."
)


class Surface(NamedTuple):
    """A function of x and y, its gradient, and what is drawn of it."""

    formula: str
    value: Callable[[Any, Any], Any]
    slopes: Callable[[float, float], tuple[float, float]]
    start: tuple[float, float]
    rest: tuple[float, float]  # the minimum or saddle point, where the gradient is zero
    mark: str
    updates: int
    xlim: tuple[float, float]
    ylim: tuple[float, float]
    levels: list[float]

    def gradient(self, p: Point) -> Point:
        """Return the gradient at a point."""
        return np.array(self.slopes(*p.tolist()))


def _beale_slopes(x: float, y: float) -> tuple[float, float]:
    a, b, c = 1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3
    return (
        2 * (a * (y - 1) + b * (y**2 - 1) + c * (y**3 - 1)),
        2 * x * (a + 2 * b * y + 3 * c * y**2),
    )


SURFACES = {
    "Beale": Surface(
        formula="$(1.5 - x + xy)^2 + (2.25 - x + xy^2)^2 + (2.625 - x + xy^3)^2$",
        value=lambda x, y: (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2,
        slopes=_beale_slopes,
        start=(1.0, 1.5),
        rest=(3.0, 0.5),
        mark="*",
        updates=400,
        xlim=(-0.1, 4.2),
        ylim=(-1.2, 1.7),
        levels=[0.01 * 4**k for k in range(9)],
    ),
    "Rosenbrock": Surface(
        formula=r"$(1 - x)^2 + 100 \, (y - x^2)^2$",
        value=lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        slopes=lambda x, y: (-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)),
        start=(-0.5, 2.5),
        rest=(1.0, 1.0),
        mark="*",
        updates=1000,
        xlim=(-1.9, 1.7),
        ylim=(-0.9, 2.7),
        levels=[0.25 * 4**k for k in range(7)],
    ),
    "Saddle": Surface(
        formula="$x^2 - y^2$",
        value=lambda x, y: x**2 - y**2,
        slopes=lambda x, y: (2 * x, -2 * y),
        start=(-1.2, 0.01),
        rest=(0.0, 0.0),
        mark="x",
        updates=60,
        xlim=(-1.4, 1.0),
        ylim=(-0.6, 1.2),
        levels=[0.02 * 3**k for k in range(5)],
    ),
}
# Learning rates, on each surface in the order of SURFACES. An optimizer without an entry takes those of its family, or
# tenths and hundredths of them where it would leave the picture.
RATES = {
    "SGD": (0.01, 0.001, 0.05),
    "Momentum": (0.001, 0.0003, 0.02),
    "NAG": (0.001, 0.0005, 0.02),
    "Adagrad": (0.5, 1.0, 0.1),
    "RMSprop": (0.02, 0.02, 0.02),
    "Adadelta": (1.0, 1.0, 1.0),
    "Adam": (0.1, 0.2, 0.05),
    "AdamW": (0.1, 0.2, 0.05),
    "Adamax": (0.2, 1.0, 0.05),
    "Nadam": (0.1, 0.1, 0.05),
    "Lion": (0.05, 0.005, 0.02),
}
OTHER_RATES = dict(zip(FAMILIES, ((0.001, 0.0003, 0.02), (0.02, 0.02, 0.02), (0.1, 0.1, 0.05)), strict=True))
NEAR = 10  # a little beyond the edge of every picture
FAR = 1e6  # far beyond the edge of every picture, but near enough for the powers in the gradients


def rate(name: str, title: str) -> float:
    """Return the learning rate of an optimizer on a surface."""
    i = list(SURFACES).index(title)
    if name in RATES:
        return RATES[name][i]
    tried: list[float] = [OTHER_RATES[family(name)][i] / 10**tenths for tenths in range(4)]
    return next((rate for rate in tried if _stays(getattr(optimizers, name)(lr=rate), SURFACES[title])), tried[-1])


def _stays(optimizer: Any, surface: Surface) -> bool:
    return bool((np.abs(trajectory(optimizer, surface)) < NEAR).all())


def trajectory(optimizer: Any, surface: Surface) -> Point:
    """Return the points before and after each update, in float64; an optimizer that diverges ends early."""
    p = np.array(surface.start)
    points = [p.copy()]
    for _ in range(surface.updates):
        optimizer.step(p, surface.gradient(p))
        points.append(p.copy())
        if not (np.abs(p) < FAR).all():
            break
    return np.array(points)


def _draw_surface(axes: Any, surface: Surface) -> None:
    x, y = np.meshgrid(np.linspace(*surface.xlim, 201), np.linspace(*surface.ylim, 201))
    z = surface.value(x, y)
    look: Any = {"colors": "0.75", "linewidths": 0.7}
    axes.contour(x, y, z, surface.levels, **look)
    if z.min() < 0:
        axes.contour(x, y, -z, surface.levels, linestyles="dashed", **look)
    axes.plot(*surface.start, "o", color="black", markersize=10, fillstyle="none", zorder=3)
    axes.plot(*surface.rest, surface.mark, color="black", markersize=10, zorder=3)
    axes.set(xlim=surface.xlim, ylim=surface.ylim)
    axes.tick_params(labelsize=8)


def draw_trajectories(*paths: Path) -> dict[tuple[str, str], Any]:
    """
    Draw a row of panels for each function and in it one for each family, with the steps of the kernels.

    Parameters
    ----------
    *paths : Path
        PNG or SVG files to write.

    Returns
    -------
    dict
        The axes, by the names of function and family.
    """
    figure = blank(10.5)
    rows = figure.subfigures(len(SURFACES))
    found = {}
    for row, (title, surface) in zip(rows, SURFACES.items(), strict=True):
        row.suptitle(f"{title}:  {surface.formula},  {surface.updates} updates", fontsize=10, x=0.01, ha="left")
        for axes, kind in zip(row.subplots(1, len(FAMILIES)), FAMILIES, strict=True):
            _draw_surface(axes, surface)
            axes.set_title(kind, fontsize=9, loc="left")
            found[title, kind] = axes
        for name in (cls.__name__ for cls in classes()):
            axes, lr = found[title, family(name)], rate(name, title)
            points = trajectory(getattr(optimizers, name)(lr=lr), surface)
            axes.plot(*points.T, **line(axes, name, lr, surface.updates))
        for axes in row.axes:
            legend(axes)
    figure.supxlabel(CAPTION, fontsize=8)
    write(figure, paths)
    return found
