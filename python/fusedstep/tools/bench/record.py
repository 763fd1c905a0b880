"""What a run of the benchmark found out, and the JSON file that keeps it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .cases import SHORT, Case, rules
from .harness import Ratio, Timing, ratio

__all__ = ["FORMAT", "Measured", "Record", "Row", "load", "ratios_of", "read", "tests", "write"]

FORMAT = 1
_ABOUT = {"gb_per_s", "seconds", "by_bytes", "launches", "threads_started"}  # numbers of a test that are no ratios


@dataclass
class Row:
    """
    The timings of a contestant, and how close its parameters came to the reference.

    Parameters
    ----------
    name : str
        "fusedstep", "limit", or a peer.
    seconds : list of float
        Seconds of a step, one number per round. All rows of a heat were timed in the same rounds, so that round i of
        one can be compared with round i of another.
    ulp, change : float or None
        How far its parameters were from the reference after some steps: in units in the last place, and as a share of
        the largest change; None if they were not compared.
    """

    name: str
    seconds: list[float]
    ulp: float | None = None
    change: float | None = None

    @property
    def timing(self) -> Timing:
        """The seconds of the row, as a timing."""
        return Timing(self.seconds)

    @property
    def agrees(self) -> bool:
        """Whether parameters agree but for rounding: peers round in another order and, in 16 bits, more often."""
        return self.ulp is None or self.change is None or self.ulp <= 4 or self.change <= 1e-3


@dataclass
class Measured:
    """
    A case, with all contestants that took part.

    Parameters
    ----------
    case : Case
        What was measured.
    heat : int
        Number of the heat: cases of one heat were timed in the same rounds.
    rows : list of Row
        The contestants.
    absent : dict
        Why other contestants did not take part, by name.
    disturbed : float
        How many processors were kept busy by other processes meanwhile.
    """

    case: Case
    heat: int
    rows: list[Row]
    absent: dict[str, str] = field(default_factory=dict)
    disturbed: float = 0.0

    def row(self, name: str) -> Row | None:
        """Return the row of a contestant, if it took part."""
        return next((row for row in self.rows if row.name == name), None)

    @property
    def ours(self) -> Row:
        """The row of fusedstep."""
        return next(row for row in self.rows if row.name == "fusedstep")

    @property
    def ns_per_parameter(self) -> float:
        """The nanoseconds that a step of fusedstep takes per parameter."""
        return 1e9 * self.ours.timing.median / self.case.parameters

    @property
    def gb_per_s(self) -> float:
        """The bytes that a step of fusedstep must move, over its time, in units of 10^9 bytes per second."""
        return self.case.moved / self.ours.timing.median / 1e9

    @property
    def share(self) -> Ratio | None:
        """The share of the limit: its time over ours, or None if it was not measured."""
        limit = self.row("limit")
        return ratio(limit.timing, self.ours.timing) if limit else None

    @property
    def ratios(self) -> dict[str, Ratio]:
        """How many times longer each peer took than ours."""
        ours = self.ours.timing
        return {row.name: ratio(row.timing, ours) for row in self.rows if row.name not in ("fusedstep", "limit")}


@dataclass
class Record:
    """
    A run of the benchmark.

    Parameters
    ----------
    machine : dict
        What timings depend on: `machine.about`.
    settings : dict
        Rounds and the like.
    cases : list of Measured
        What was measured.
    notes : list of str
        Sentences about the run: what was left out and why, for example.
    """

    machine: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    cases: list[Measured] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write(record: Record, path: Path) -> None:
    """Write a record as JSON, with a line for each contestant of each case."""
    head = {"format": FORMAT, "machine": record.machine, "settings": record.settings, "notes": record.notes}
    cases = []
    for each in record.cases:
        rows = ",\n   ".join(json.dumps(asdict(row)) for row in each.rows)
        known = {"case": _without_defaults(each.case), "heat": each.heat} | {"disturbed": each.disturbed}
        about = json.dumps(known | {"absent": each.absent})
        cases.append(f'  {about[:-1]}, "rows": [\n   {rows}]}}')
    text = f'{json.dumps(head, indent=1)[:-2]},\n "cases": [\n' + ",\n".join(cases) + "\n ]\n}\n"
    path.write_text(text)


def _without_defaults(case: Case) -> dict[str, Any]:
    return {f.name: value for f in fields(case) if (value := getattr(case, f.name)) != f.default}


def read(path: Path) -> Record:
    """
    Read a record.

    Raises
    ------
    ValueError
        If the file is no record; the message says where in the file, what was found and what was expected.
    """
    found, where = load(path), str(path)
    known = _keys(found, where, {"format": int, "machine": dict, "settings": dict, "notes": list, "cases": list})
    if known["format"] != FORMAT:
        raise ValueError(f"{where}: format is {known['format']}, expected {FORMAT}")
    about = {"cpu": str, "date": str, "packages": dict, "caches": dict, "gpus": dict, "flop_per_s": dict}
    _keys(known["machine"], f"{where}: machine", about | {"fusedstep": dict})
    return Record(
        known["machine"],
        known["settings"],
        [_measured(each, f"{where}: cases[{i}]") for i, each in enumerate(known["cases"])],
        known["notes"],
    )


def load(path: Path) -> Any:
    """Return what a JSON file has, unchecked, such as a record of pytest-benchmark; raise ValueError if it has none."""
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def tests(found: Any, name: str) -> list[Any]:
    """Return the tests of a name, whatever their parameters, of a record of pytest-benchmark."""
    return [each for each in found.get("benchmarks", []) if each["name"].partition("[")[0] == name]


def ratios_of(test: Any) -> dict[str, float]:
    """Return the ratios of a test: a peer's time over that of fusedstep, or fusedstep's over another time."""
    info = test["extra_info"]
    return {name: value for name, value in info.items() if isinstance(value, float) and name not in _ABOUT}


def _measured(found: Any, where: str) -> Measured:
    known = _keys(found, where, {"case": dict, "heat": int, "rows": list, "absent": dict, "disturbed": float})
    about = known["case"]
    types = {f.name: type(f.default) for f in fields(Case)}
    if unknown := about.keys() - types.keys():
        raise ValueError(f"{where}.case: {', '.join(sorted(unknown))} is unknown, expected {', '.join(types)}")
    _keys(about, f"{where}.case", {name: list if name == "options" else types[name] for name in about})
    for name, choices in (("rule", rules()), ("dtype", SHORT)):
        if about.get(name, getattr(Case, name)) not in choices:
            raise ValueError(f"{where}.case: {name} is {about[name]!r}, expected one of {', '.join(choices)}")
    if not all(isinstance(each, list) and len(each) == 2 for each in about.get("options", ())):
        raise ValueError(f"{where}.case: options is {about['options']}, expected pairs")
    if "options" in about:
        about = about | {"options": tuple(map(tuple, about["options"]))}
    rows = [_row(row, f"{where}.rows[{i}]") for i, row in enumerate(known["rows"])]
    measured = Measured(Case(**about), known["heat"], rows, known["absent"], known["disturbed"])
    if not measured.row("fusedstep"):
        raise ValueError(f"{where}: fusedstep is missing")
    rounds = len(measured.ours.seconds)
    for i, row in enumerate(rows):
        if len(row.seconds) != rounds:
            raise ValueError(f"{where}.rows[{i}] has {len(row.seconds)} rounds, expected {rounds}")
    return measured


def _row(found: Any, where: str) -> Row:
    number = (float, int, type(None))
    known = _keys(found, where, {"name": str, "seconds": list, "ulp": number, "change": number})
    seconds = known["seconds"]
    if not seconds or not all(isinstance(each, (float, int)) and each > 0 for each in seconds):
        raise ValueError(f"{where}.seconds is {seconds}, expected positive numbers")
    return Row(known["name"], seconds, known["ulp"], known["change"])


def _keys(found: Any, where: str, types: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a JSON object, after checking that the keys of `types` are there and have these types."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {type(found).__name__}, expected an object")
    for name, wanted in types.items():
        if name not in found:
            raise ValueError(f"{where}: {name} is missing")
        wanted = (float, int) if wanted is float else wanted
        if not isinstance(found[name], wanted):
            raise ValueError(f"{where}: {name} is {found[name]!r}, expected another type")
    return {name: found[name] for name in types}
