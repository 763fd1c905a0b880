"""What steps of many ranks have taken: the record that `benchmarks/ranks` writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .record import load

__all__ = ["Race", "Ranks", "Side", "ranks"]


@dataclass
class Side:
    """
    A way to make a step, in a race.

    Parameters
    ----------
    name : str
        What it is.
    seconds : list of float
        Those of each step, on the slowest rank.
    memory : float
        Bytes per parameter that all ranks hold together, with parameters and gradients; what they share counts once.
    parameters : str
        "equal bits" if it had the parameters of one process, or "near".
    sent : float or None
        Bytes per parameter that a rank sends in a step, where they can be counted.
    """

    name: str
    seconds: list[float]
    memory: float
    parameters: str
    sent: float | None = None

    @property
    def least(self) -> float:
        """The seconds of the fastest step."""
        return min(self.seconds)


class Race(NamedTuple):
    """A race: parameters, ranks, its sides by name, and why others took no part."""

    size: int
    ranks: int
    sides: dict[str, Side]
    absent: dict[str, str]


class Ranks(NamedTuple):
    """
    A record: what it depends on, its races, and what else was measured, by name.

    `computing` has bytes per second of a rank, by the number of ranks that compute at once; `messages` the seconds of a
    small message, and the bytes per second that a rank sends while it receives as many; `start` and `overlap` have
    lists of seconds; `link` is the bits per second between the two hosts of `overlap`, or None where there were none.
    """

    machine: dict[str, Any]
    races: list[Race]
    computing: dict[int, dict[str, float]]
    messages: dict[str, float]
    start: dict[str, list[float]]
    overlap: dict[str, list[float]]
    link: float | None

    @property
    def sizes(self) -> list[int]:
        """The numbers of parameters, in order."""
        return sorted({race.size for race in self.races})

    def of(self, size: int) -> list[Race]:
        """Return the races of a size, by their number of ranks; raise ValueError if there are none."""
        found = sorted((race for race in self.races if race.size == size), key=lambda race: race.ranks)
        if not found:
            sizes = ", ".join(f"{each:g}" for each in self.sizes)
            raise ValueError(f"size is {size:g}, expected one of the record: {sizes}")
        return found


def ranks(path: Path) -> Ranks:
    """Read a record; raise ValueError if the file has none."""
    found = load(path)
    try:
        races = [
            Race(each["size"], each["ranks"], {side["name"]: Side(**side) for side in each["sides"]}, each["absent"])
            for each in found["races"]
        ]
        link = found["link"]
        return Ranks(
            found["machine"],
            races,
            {int(count): rates for count, rates in found["computing"].items()},
            found["messages"],
            found["start"],
            link.get("overlap", {}).get("seconds", {}),
            link.get("bits_per_second"),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has no races, expected a record of benchmarks/ranks: {error}") from error
