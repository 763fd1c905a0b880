"""Runs with workers that are not equally fast, and the record of several that `benchmarks/stragglers.py` writes."""

from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .record import load

__all__ = ["Run", "Stragglers", "stragglers"]


class Run(NamedTuple):
    """A run: who is slow, what workers do about it, and what came of it."""

    case: str
    way: str
    lr: float
    seed: int
    gradients: int  # of all workers together
    updates: int
    late: float  # updates between the pull and the push of a gradient, on average
    latest: int  # the most of them
    curve: list[tuple[float, float]]  # seconds, and the mean loss on the training images

    @property
    def loss(self) -> float:
        """The last loss."""
        return self.curve[-1][1]


class Stragglers(NamedTuple):
    """A record: what it depends on, its settings, and its runs."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    runs: list[Run]

    @property
    def cases(self) -> list[str]:
        """The cases, in order."""
        return list(dict.fromkeys(run.case for run in self.runs))

    @property
    def ways(self) -> list[str]:
        """The ways, in order."""
        return list(dict.fromkeys(run.way for run in self.runs))

    def best(self, case: str, way: str) -> list[Run]:
        """Return the runs of all seeds with the learning rate whose median of the last loss is least."""
        by_rate: dict[float, list[Run]] = {}
        for run in self.runs:
            if (run.case, run.way) == (case, way):
                by_rate.setdefault(run.lr, []).append(run)
        return min(by_rate.values(), key=lambda runs: median(run.loss for run in runs))


def stragglers(path: Path) -> Stragglers:
    """Read a record; raise ValueError if the file has none."""
    found = load(path)
    try:
        runs = [Run(**each | {"curve": [(at, loss) for at, loss in each["curve"]]}) for each in found["runs"]]
        return Stragglers(found["machine"], found["settings"], runs)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} has no runs, expected a record of benchmarks/stragglers.py: {error}") from error
