"""What a search of hyperparameters has tried, and the record of several that `benchmarks/tune.py` writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .record import load

__all__ = ["Search", "Searches", "Trial", "searches"]


class Trial(NamedTuple):
    """A training: its learning rate and weight decay, the last loss on images for validation, finished epochs."""

    lr: float
    weight_decay: float
    loss: float
    epochs: int


@dataclass
class Search:
    """
    A search of hyperparameters.

    Parameters
    ----------
    name : str
        What tells the next point.
    seed : int
        Where its random numbers begin.
    trials : list of Trial
        All trainings, in order.
    epochs : int
        The epochs of a training that was not ended early.
    test : dict
        "loss" and "accuracy" of the best point in the test, or nothing.
    """

    name: str
    seed: int
    trials: list[Trial]
    epochs: int
    test: dict[str, float]

    @property
    def finished(self) -> list[Trial]:
        """The trainings that were not ended early."""
        return [trial for trial in self.trials if trial.epochs == self.epochs]

    @property
    def best(self) -> Trial:
        """The finished training with the least loss."""
        return min(self.finished, key=lambda trial: trial.loss)

    @property
    def so_far(self) -> list[float]:
        """The least loss of all finished trainings so far, after each training; infinite before the first."""
        least, found = float("inf"), []
        for trial in self.trials:
            least = min(least, trial.loss) if trial.epochs == self.epochs else least
            found.append(least)
        return found


class Searches(NamedTuple):
    """A record: what it depends on, its settings, and its searches by name, the seeds of each in order."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    by_name: dict[str, list[Search]]


def searches(path: Path) -> Searches:
    """Read a record; raise ValueError if the file has none."""
    found = load(path)
    try:
        by_name: dict[str, list[Search]] = {}
        for each in found["searches"]:
            trials = [Trial(*trial) for trial in each["trials"]]
            one = Search(each["name"], each["seed"], trials, found["settings"]["epochs"], each.get("test", {}))
            by_name.setdefault(one.name, []).append(one)
        return Searches(found["machine"], found["settings"], by_name)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} has no searches, expected a record of benchmarks/tune.py: {error}") from error
