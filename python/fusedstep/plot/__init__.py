"""Draw pictures: `python -m fusedstep plot PICTURE`."""

import argparse
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from .losses import draw_losses
from .schedules import draw_schedules
from .trajectories import draw_trajectories

__all__ = ["PICTURES", "Picture", "draw_losses", "draw_schedules", "draw_trajectories", "main"]

PACKAGES = {"plot": {"matplotlib": "matplotlib"}, "demo": {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}}


class Picture(NamedTuple):
    """What is seen, what draws it into the files it is given, and the extra that has the packages it needs."""

    summary: str
    draw: Callable[..., object]
    extra: str = "plot"


PICTURES = {
    "schedules": Picture("the value of every schedule over the finished updates", draw_schedules),
    "losses": Picture("the loss of every optimizer on handwritten digits", draw_losses, "demo"),
    "trajectories": Picture("the way of every optimizer over functions of two variables", draw_trajectories),
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
        0, or 2 if a package is missing.
    """
    parser = argparse.ArgumentParser(prog="python -m fusedstep plot", description="Draw a picture.")
    pictures = parser.add_subparsers(dest="picture", required=True, metavar="PICTURE")
    for name, picture in PICTURES.items():
        command = pictures.add_parser(name, help=picture.summary, description=f"Draw {picture.summary}.")
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
    if missing := [package for module, package in PACKAGES[picture.extra].items() if find_spec(module) is None]:
        wanted = f"fusedstep[{picture.extra}]"
        print(f'plot needs {", ".join(missing)}: python -m pip install "{wanted}"', file=sys.stderr)
        return 2
    picture.draw(*options.output)
    for path in options.output:
        print(f"{options.picture.capitalize()}: {path}")
    return 0
