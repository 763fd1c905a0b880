"""Loss over time, synchronous and asynchronous, where workers are not equally fast."""

from pathlib import Path
from typing import Any

import numpy as np

from fusedstep.tools.bench.stragglers import Stragglers

from .picture import blank, style, write

__all__ = ["draw_stragglers"]


def draw_stragglers(found: Stragglers, *paths: Path) -> dict[str, Any]:
    """
    Draw the loss over the seconds, in a panel for each case, with a line for each way.

    A line is the median over the seeds, within the least and the greatest, each way with the learning rate that suits
    it best in that case.

    Parameters
    ----------
    found : Stragglers
        What `benchmarks/stragglers.py` has written.
    *paths : Path
        PNG or SVG files to write.

    Returns
    -------
    dict
        The axes, by the name of the case.
    """
    figure = blank(4.6)
    panels = dict(zip(found.cases, figure.subplots(1, len(found.cases), sharey=True, squeeze=False)[0], strict=True))
    for case, axes in panels.items():
        for i, way in enumerate(found.ways):
            runs = found.best(case, way)
            seconds = max((run.curve for run in runs), key=len)
            at = np.array([second for second, _ in seconds])
            losses = np.array([np.interp(at, *np.transpose(run.curve)) for run in runs])
            look = style(i) | {"markevery": max(1, len(at) // 8)}
            axes.semilogy(at, np.median(losses, axis=0), label=f"{way} (lr {runs[0].lr:g})", **look)
            axes.fill_between(at, losses.min(0), losses.max(0), color=look["color"], alpha=0.15, linewidth=0)
        axes.set_title(case, fontsize=9, loc="left")
        axes.set_xlabel("seconds", fontsize=8)
        axes.margins(x=0)
        axes.grid(alpha=0.3, which="both")
        axes.tick_params(which="both", labelsize=8)
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.17), frameon=False)
    next(iter(panels.values())).set_ylabel("mean loss on the training images", fontsize=8)
    workers = found.settings["workers"]
    figure.suptitle(f"The digits with AdamW and {workers} workers", fontsize=10, x=0.01, ha="left")
    figure.supxlabel(_caption(found), fontsize=8, x=0.01, ha="left")
    write(figure, paths)
    return panels


def _caption(found: Stragglers) -> str:
    about, settings = found.machine, found.settings
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    takes = f"A gradient of {settings['batch']} images takes {1000 * settings['gradient']:g} ms, of fewer images less."
    return (
        f"{takes} Lines: median over {settings['seeds']} seeds; bands: least and greatest.\n"
        f"fusedstep at {about['fusedstep']['commit']}, {packages}. {about['date'][:10]}"
    )
