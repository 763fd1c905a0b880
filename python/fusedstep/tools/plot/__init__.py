"""Draw pictures: `python -m fusedstep plot PICTURE`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fusedstep.tools.bench.ranks import ranks as read_ranks
from fusedstep.tools.bench.record import load, read
from fusedstep.tools.bench.searches import searches
from fusedstep.tools.bench.stragglers import stragglers
from fusedstep.tools.extras import is_missing

from .losses import draw_losses
from .measurements import draw_ratios, draw_roofline, draw_rules, draw_small, draw_throughput
from .ranks import draw_ranks
from .schedules import draw_schedules
from .trajectories import draw_trajectories
from .tuning import draw_tuning
from .workers import draw_stragglers

__all__ = [
    "PICTURES",
    "Picture",
    "draw_losses",
    "draw_ranks",
    "draw_ratios",
    "draw_roofline",
    "draw_rules",
    "draw_schedules",
    "draw_small",
    "draw_stragglers",
    "draw_throughput",
    "draw_trajectories",
    "draw_tuning",
    "main",
]

PACKAGES = {"plot": {"matplotlib": "matplotlib"}, "demo": {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}}


class Kind(NamedTuple):
    """A kind of record: what writes it, and the function that reads it."""

    written_by: str
    read: Callable[[Path], Any]


class Picture(NamedTuple):
    """A picture: a summary, the function that draws it, the extra with its packages, and the record that it shows."""

    summary: str
    draw: Callable[..., object]
    extra: str = "plot"
    record: Kind | None = None


BENCH = Kind("bench --json FILE", read)
CASES = Kind("pytest benchmarks --benchmark-json=FILE", load)
RANKS = Kind("python benchmarks/ranks FILE", read_ranks)
TUNING = Kind("python benchmarks/tune.py FILE", searches)
STRAGGLERS = Kind("python benchmarks/stragglers.py FILE", stragglers)

PICTURES = {
    "throughput": Picture("GB/s of a step over its size, beside limit and peers", draw_throughput, record=BENCH),
    "ratios": Picture("the times of the peers over ours, for every rule", draw_ratios, record=BENCH),
    "roofline": Picture("operations per second of every rule, under its roof", draw_roofline, record=BENCH),
    "small": Picture("the cost of a tensor in a step of many", draw_small, record=BENCH),
    "rules": Picture("the cost of a rule of one's own, beside other ways to have it", draw_rules, record=CASES),
    "ranks": Picture("the time of a step that ranks share, over their number", draw_ranks, record=RANKS),
    "tuning": Picture("searches of learning rate and weight decay on the digits", draw_tuning, record=TUNING),
    "stragglers": Picture(
        "the loss over time with workers that are not equally fast", draw_stragglers, record=STRAGGLERS
    ),
    "schedules": Picture("the value of every schedule over the finished updates", draw_schedules),
    "losses": Picture("the loss of every optimizer on handwritten digits", draw_losses, "demo"),
    "trajectories": Picture("the paths of all optimizers over functions of two variables", draw_trajectories),
}


def main(argv: list[str]) -> int:
    """
    Draw a picture.

    Parameters
    ----------
    argv : list of str
        The arguments of ``python -m fusedstep plot``.

    Returns
    -------
    int
        0, or 2 if a package is missing, or the record cannot be read or lacks the cases that the picture shows.
    """
    parser = argparse.ArgumentParser(prog="python -m fusedstep plot", description="Draw a picture.")
    pictures = parser.add_subparsers(dest="picture", required=True, metavar="PICTURE")
    for name, picture in PICTURES.items():
        command = pictures.add_parser(name, help=picture.summary, description=f"Draw {picture.summary}.")
        if picture.record:
            written = f"what `{picture.record.written_by}` has written"
            command.add_argument("record", type=Path, metavar="FILE", help=written)
        both = [Path(f"fusedstep-{name}.{suffix}") for suffix in ("png", "svg")]
        command.add_argument(
            "--output",
            type=Path,
            nargs="+",
            default=both,
            metavar="PATH",
            help=f"PNG and SVG files to write ({both[0]} and {both[1]})",
        )
    options = parser.parse_args(argv)
    for path in options.output:
        if path.suffix not in (".png", ".svg") or not path.parent.is_dir():
            parser.error(f"--output is {path}, expected a .png or .svg file in a folder that exists")
    picture = PICTURES[options.picture]
    if is_missing("plot", {module: (package, picture.extra) for module, package in PACKAGES[picture.extra].items()}):
        return 2
    try:
        picture.draw(*([picture.record.read(options.record)] if picture.record else []), *options.output)
    except ValueError as error:
        if not picture.record:
            raise
        print(f"plot {options.picture}: {error}", file=sys.stderr)
        return 2
    for path in options.output:
        print(f"{options.picture.capitalize()}: {path}")
    return 0
