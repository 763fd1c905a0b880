"""Steps of many ranks: how long they take, over the number of ranks."""

from pathlib import Path
from typing import Any

from fusedstep.tools.bench.cases import short
from fusedstep.tools.bench.ranks import Ranks

from .picture import blank, style, write

__all__ = ["draw_ranks"]

ALONE = "one process"  # how the names of sides begin that have no other rank


def draw_ranks(found: Ranks, *paths: Path) -> dict[int, Any]:
    """
    Draw the least time of a step over the number of ranks, with a line for each way to make it.

    Parameters
    ----------
    found : Ranks
        What `benchmarks/ranks` has written.
    *paths : Path
        PNG or SVG files to write.

    Returns
    -------
    dict
        The axes, by the number of parameters.

    Raises
    ------
    ValueError
        If the record has races of one number of ranks only, which make no line.
    """
    from matplotlib.ticker import LogFormatter

    counts = sorted({race.ranks for race in found.races})
    if len(counts) < 2:
        raise ValueError(f"the record has races of {len(counts)} numbers of ranks, expected at least 2")
    names = list(dict.fromkeys(name for race in found.races for name in race.sides))
    rows = -(-len(found.sizes) // 2)
    figure = blank(1.4 + 2.6 * rows)
    panels = figure.subplots(rows, min(2, len(found.sizes)), squeeze=False).ravel()
    for axes, size in zip(panels, found.sizes, strict=False):
        for name in names:
            points = [(race.ranks, 1e3 * race.sides[name].least) for race in found.of(size) if name in race.sides]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, **_look(name, names))
        axes.set(xscale="log", yscale="log", xlim=(counts[0] / 1.15, counts[-1] * 1.15))
        axes.set_xticks(counts, list(map(str, counts)))
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(
            LogFormatter(minor_thresholds=(1, 0.4))
        )  # labels where there is less than a decade
        axes.tick_params(which="both", labelsize=8)
        axes.grid(alpha=0.3, which="both")
        axes.set_title(f"{short(size)} parameters", fontsize=9, loc="left")
    for axes in panels[len(found.sizes) :]:
        axes.set_axis_off()
    for axes in panels[: len(found.sizes)][-2:]:
        axes.set_xlabel("ranks", fontsize=8)
    figure.supylabel("ms of a step of Adam in float32", fontsize=8)
    lines = {line.get_label(): line for axes in panels for line in axes.lines}
    legend = [lines[name] for name in names]
    figure.legend(handles=legend, loc="outside right upper", fontsize=8, frameon=False, handlelength=3.5)
    figure.suptitle("A step that ranks share, on one machine", fontsize=10, x=0.01, ha="left")
    figure.supxlabel(_caption(found), fontsize=8, x=0.01, ha="left")
    write(figure, paths)
    return dict(zip(found.sizes, panels, strict=False))


def _look(name: str, names: list[str]) -> dict[str, Any]:
    """Return the look of a line: one process is grey, and lines of fusedstep are thicker than those of others."""
    if name.startswith(ALONE):
        return style(names.index(name)) | {"color": "0.5", "markersize": 4, "zorder": 1.9}
    return style(names.index(name)) | {"linewidth": 2.2 if name.startswith("Synchronous") else 1.2}


def _caption(found: Ranks) -> str:
    """Return what is drawn, machine, versions and date."""
    about = found.machine
    shown = ("numpy", "mpi4py", "mpich", "openmpi", "impi-rt", "torch")
    packages = ", ".join(f"{name} {about['packages'][name]}" for name in shown if name in about["packages"])
    ours = about["fusedstep"]
    machine = f"{about['cpu']}, {about['cores']} cores, {ours['isa']}; one thread for each rank; the fastest step."
    return f"{machine}\nfusedstep at {ours['commit']}, {packages}. {about['date'][:10]}"
