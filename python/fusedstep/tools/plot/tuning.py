"""Searches of learning rate and weight decay: where they looked, and how soon they found something."""

from pathlib import Path
from typing import Any

import numpy as np

from fusedstep.tools.bench.searches import Search, Searches

from .picture import blank, name_ends, style, write

__all__ = ["draw_tuning"]

GRID, POINTS = "grid", "TPE"  # the searches that have a map
AXES = {"xscale": "log", "yscale": "log"}


def draw_tuning(found: Searches, *paths: Path) -> dict[str, Any]:
    """
    Draw two searches as maps of the loss over learning rate and weight decay, and the least loss so far of every one.

    The maps are a grid, and a search by points, each with its first seed. A line is the median over the seeds, within
    the quartiles.

    Parameters
    ----------
    found : Searches
        What `benchmarks/tune.py` has written.
    *paths : Path
        PNG or SVG files to write.

    Returns
    -------
    dict
        The axes: those of the two maps by the name of the search, and "so far".

    Raises
    ------
    ValueError
        If one of the two searches is missing.
    """
    from matplotlib.colors import LogNorm

    if missing := {GRID, POINTS} - found.by_name.keys():
        raise ValueError(f"the record has no search {', '.join(sorted(missing))}, expected those of benchmarks/tune.py")
    grid, points = (found.by_name[name][0] for name in (GRID, POINTS))
    losses = [trial.loss for search in (grid, points) for trial in search.finished]
    look = {"norm": LogNorm(min(losses), max(losses)), "cmap": "viridis_r"}
    figure = blank(7)
    above, below = figure.subfigures(2, height_ratios=(1.15, 1))
    left, right = above.subplots(1, 2, sharex=True, sharey=True)
    _draw_grid(left, grid, look)
    mesh = _draw_points(right, points, look)
    for axes, search in ((left, grid), (right, points)):
        _mark_best(axes, search)
        axes.set_xlabel("weight decay", fontsize=8)
    left.set_ylabel("learning rate at the start", fontsize=8)
    bar = above.colorbar(mesh, ax=[left, right], pad=0.01, format="{x:g}")
    bar.set_ticks([tick for tick in (0.1, 0.15, 0.2, 0.3, 0.5, 1, 1.5, 2) if min(losses) <= tick <= max(losses)])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8)
    bar.set_label("validation loss, nats per image", fontsize=8)
    lower = below.subplots()
    _draw_so_far(lower, found)
    figure.suptitle("Search of learning rate and weight decay of AdamW on the digits", fontsize=10, x=0.01, ha="left")
    figure.supxlabel(_caption(found), fontsize=8, x=0.01, ha="left")
    write(figure, paths)
    return {GRID: left, POINTS: right, "so far": lower}


def _draw_grid(axes: Any, search: Search, look: dict[str, Any]) -> None:
    values = {(trial.lr, trial.weight_decay): trial.loss for trial in search.trials}
    rates, decays = (sorted({point[i] for point in values}) for i in (0, 1))
    cells = np.array([[values.get((rate, decay), np.nan) for decay in decays] for rate in rates])
    axes.set(**AXES)
    axes.pcolormesh(_edges(decays), _edges(rates), cells, **look)


def _edges(values: list[float]) -> Any:
    """Return the edges of cells around values whose logarithms lie equally far apart."""
    logs = np.log(values)
    half = (logs[1] - logs[0]) / 2
    return np.exp([*(logs - half), logs[-1] + half])


def _draw_points(axes: Any, search: Search, look: dict[str, Any]) -> Any:
    axes.set(**AXES)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    decays, rates, losses = zip(*((t.weight_decay, t.lr, t.loss) for t in search.finished), strict=True)
    return axes.scatter(decays, rates, s=44, c=losses, edgecolor="black", linewidth=0.5, **look)


def _mark_best(axes: Any, search: Search) -> None:
    best = search.best
    ring = {"markersize": 12, "fillstyle": "none", "linestyle": "none", "marker": "o", "markeredgewidth": 2}
    axes.plot(best.weight_decay, best.lr, color="#d55e00", zorder=4, **ring)
    axes.set_title(f"{search.name}: {len(search.trials)} trainings, least loss {best.loss:.3f}", fontsize=9, loc="left")
    axes.tick_params(which="both", labelsize=8)


def _draw_so_far(axes: Any, found: Searches) -> None:
    """Draw a line for each search; the first tenth of it, where it falls from anywhere, is left out."""
    several = {name: some for name, some in found.by_name.items() if len(some[0].trials) > 1}
    for i, (name, some) in enumerate(several.items()):
        low, middle, high = np.quantile([search.so_far for search in some], (0.25, 0.5, 0.75), axis=0, method="nearest")
        tenth = len(middle) // 10
        trainings = np.arange(1, len(middle) + 1)
        look = style(i) | {"markevery": max(1, tenth)}
        axes.plot(trainings[tenth:], middle[tenth:], label=name, **look)
        axes.fill_between(trainings[tenth:], low[tenth:], high[tenth:], color=look["color"], alpha=0.12, linewidth=0)
    axes.set_yscale("log")
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("trainings", fontsize=8)
    axes.set_ylabel("least validation loss so far", fontsize=8)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(which="both", labelsize=8)
    axes.grid(alpha=0.3, which="both")
    axes.margins(x=0.01)
    name_ends(axes)


def _caption(found: Searches) -> str:
    """Return what is drawn, versions and date."""
    about, settings = found.machine, found.settings
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    drawn = "Ring: the best. Lines: median over the seeds; bands: quartiles."
    seeds = f"{settings['seeds']} seeds, {settings['epochs']} epochs in a training."
    return f"{drawn} {seeds}\nfusedstep at {about['fusedstep']['commit']}, {packages}. {about['date'][:10]}"
