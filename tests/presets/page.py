"""The tables of the page of dialects: what other libraries are called with, the preset, and how far apart they are."""

import math
import re
from pathlib import Path
from typing import NamedTuple

import fusedstep as fs
from fusedstep import presets

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "dialects.md"


class Row(NamedTuple):
    """A row of a table; calls are Python."""

    library: str  # the name of its presets
    theirs: str
    preset: str  # empty where there is none
    spelled_out: str
    limits: dict[str, float]  # the largest difference, in units in the last place, by the name in RATES


def _limit(text):
    return float(text.replace(",", ""))


def rows():
    """Return all rows of all tables."""
    found, library = [], ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("###"):
            library = re.search(r"`presets\.(\w+)`", line)[1]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if library and len(cells) == 5 and cells[0].startswith("`"):
            calls = [cell.strip("`") for cell in cells[:3]]
            limits = zip(("constant", "changing"), cells[3:], strict=True)
            found.append(Row(library, *calls, {name: _limit(cell) for name, cell in limits if cell}))
    return found


def make(call, lr=0.01):
    """Return the optimizer that a cell of the second or third column makes."""
    names = {"fs": fs, "lr": lr, "math": math, "presets": presets} | {"Uncorrected": presets.mlx.Uncorrected}
    return eval(call, names)
