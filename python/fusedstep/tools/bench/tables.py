"""
Tables of timings in Markdown pages, made from records: `python -m fusedstep bench tables PAGE.md ...`.

A page says where a table stands, what it shows, and the record that its numbers come from, as a path from the page::

    <!-- table: axis ../benchmarks/results/2026-11-26-10a446d-bench.json rule size=1e7 peers=numpy,torch_fused -->
    whatever stands here is replaced
    <!-- end -->

Eight kinds of table can be asked for; `bench` below means a record of ``bench --json``, `cases` one of ``pytest
benchmarks --benchmark-json``, `tuning` one of ``benchmarks/tune.py``, `ranks` one of ``benchmarks/ranks``, `stragglers`
one of ``benchmarks/stragglers.py``.

machine
    One sentence about the machine and the packages, of any kind of record.
axis FIELD [FIELD=VALUE ...] [peers=NAME,...]
    Of `bench`: a row for each value of a field of `Case`, all other fields as they are in the usual case, or as given.
tests NAME ... [FIELD=VALUE ...]
    Of `cases`: a row for each test of these names, with the given values of its parameters.
grid TEST ROW COLUMN NUMBER [FIELD=VALUE ...] [also=NUMBER]
    Of `cases`: one number of one test, over two of its parameters, and another that is the same in a row.
searches
    Of `tuning`: a row for each search. Epochs and the least validation loss are medians over the seeds; `least` and
    `most` are the least validation losses of the best and of the worst seed. All columns from `lr` on are of seed 0.
ranks size=N
    Of `ranks`: a row for each way to make a step, with the time of the fastest one on each number of ranks. Of the
    largest number: the bytes per parameter that a rank sends in a step, and those that all ranks hold together.
seconds start, seconds overlap
    Of `ranks`: the least time of each row.
stragglers
    Of `stragglers`: a row for each case and way, with the learning rate whose last loss is least. All numbers are
    medians over the seeds, but the greatest lateness, which is that of all of them.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from .cases import Case
from .ranks import ranks
from .record import Measured, Record, load, ratios_of, read, tests
from .searches import searches
from .stragglers import stragglers

__all__ = ["main", "rewritten"]

_REGION = re.compile(r"(<!-- table: (?P<words>[^\n]*?) -->\n).*?(?=<!-- end -->)", re.DOTALL)
_WHERE = {"device", "threads", "isa"}  # fields of a case that tell where it runs


def rewritten(text: str, folder: Path) -> str:
    """
    Return a page with all its tables made anew.

    Parameters
    ----------
    text : str
        The page.
    folder : Path
        Where the page is: the paths of its records begin there.

    Raises
    ------
    ValueError
        If a kind of table is unknown, a record cannot be read, or it has nothing to show.
    """

    def made(region: re.Match[str]) -> str:
        kind, record, *words = region["words"].split()
        if kind not in _KINDS:
            raise ValueError(f"table is {kind!r}, expected one of {', '.join(_KINDS)}")
        return f"{region[1]}\n" + "\n".join(_KINDS[kind](folder / record, words)) + "\n\n"

    return _REGION.sub(made, text)


def _machine(path: Path, words: Sequence[str]) -> list[str]:
    _no_more("machine", words)
    found = load(path)
    about = found.get("machine", found.get("machine_info", {}))
    ours, packages = about["fusedstep"], about["packages"]
    named = ", ".join(f"{name} {version}" for name, version in packages.items() if name != "threadpoolctl")
    gpus = "".join(f"{gpu['name']}, " for gpu in about["gpus"].values())
    where = f"{gpus}{about['cpu']}, {about['cores']} cores, {ours['isa']}"
    return [
        f"Measured on {about['date'][:10]} at commit {ours['commit']}: {where}; {ours['compiler']}; {named}.",
        f"Record: `{path.name}`.",
    ]


def _axis(path: Path, words: Sequence[str]) -> list[str]:
    record = read(path)
    field, *more = words
    fixed, peers = _given(more)
    usual = _usual(record, {name: type(getattr(Case, name))(_plain(value)) for name, value in fixed.items()})
    found: dict[Any, Measured] = {}
    for each in record.cases:
        value = getattr(each.case, field)
        if replace(each.case, **{field: getattr(usual, field)}) == usual:
            found.setdefault(value, each)
    if not found:
        raise ValueError(f"{path} has no case like {usual}, expected some with another {field}")
    present = dict.fromkeys(row.name for each in found.values() for row in each.rows)
    others = [name for name in present if name not in ("fusedstep", "limit") and (not peers or name in peers)]
    head = [field, "time", "GB/s", "limit", *others]
    return _table(head, [[_text(value), *_timed(each), *_times(each, others)] for value, each in found.items()])


def _usual(record: Record, fixed: Mapping[str, Any]) -> Case:
    """Return the case that a record varies: of all that have the fixed fields, as near as can be to Adam in float32."""
    first = next((each.case for each in record.cases if _is(each.case, fixed)), Case())
    where = {name: getattr(first, name) for name in _WHERE if name not in fixed}
    most = max((each.case.threads for each in record.cases), default=1)
    if "threads" in where:
        where["threads"] = most
    if "isa" in where and first.device == "cpu":
        where["isa"] = record.machine["fusedstep"]["isa"]
    return replace(Case(), **where, **fixed)


def _is(case: Case, fixed: Mapping[str, Any]) -> bool:
    return all(getattr(case, name) == value for name, value in fixed.items())


def _timed(each: Measured) -> list[str]:
    share = each.share
    return [_time(each.ours.timing.median), _rate(each.gb_per_s), f"{share.median:.2f}" if share else ""]


def _times(each: Measured, names: Sequence[str]) -> list[str]:
    ratios, rows = each.ratios, {row.name: row for row in each.rows}
    return [_ratio(ratios[name].median) + "!" * (not rows[name].agrees) if name in ratios else "" for name in names]


def _tests(path: Path, words: Sequence[str]) -> list[str]:
    fixed, _ = _given([word for word in words if "=" in word])
    named = [each for name in words if "=" not in name for each in _benchmarks(path, name)]
    found = [each for each in named if _has(each, fixed)]
    if not found:
        raise ValueError(f"{path} has no test with {' '.join(words)!r}, expected at least one")
    columns = list(dict.fromkeys(name for each in found for name in ratios_of(each)))
    rates = any("gb_per_s" in each["extra_info"] for each in found)
    rows = []
    for each in found:
        info, ratios = each["extra_info"], ratios_of(each)
        rate = [_rate(info["gb_per_s"]) if "gb_per_s" in info else ""] if rates else []
        numbers = [_ratio(ratios[name]) if name in ratios else "" for name in columns]
        rows.append([_named(each), _time(info["seconds"]), *rate, *numbers])
    return _table(["test", "time", *["GB/s"] * rates, *columns], rows)


def _grid(path: Path, words: Sequence[str]) -> list[str]:
    test, row, column, number, *more = words
    fixed, _ = _given(more)
    also = fixed.pop("also", "")
    found: dict[Any, dict[Any, str]] = {}
    for each in _benchmarks(path, test):
        params, info = each["params"], each["extra_info"]
        if _has(each, fixed) and number in info:
            cells = found.setdefault(params[row], {})
            cells[params[column]] = _ratio(info[number])
            if also:
                cells[also] = _ratio(info[also])
    columns = list(dict.fromkeys(value for cells in found.values() for value in cells if value != also))
    columns += [also] * bool(also)
    if not found:
        raise ValueError(f"{path} has no {number} of {test}, expected a test with it")
    rows = [[_text(value), *(cells.get(each, "") for each in columns)] for value, cells in found.items()]
    return _table([row, *map(_text, columns)], rows)


def _searches(path: Path, words: Sequence[str]) -> list[str]:
    _no_more("searches", words)
    head = [
        "search",
        "trainings",
        "epochs",
        "loss",
        "least",
        "most",
        "lr",
        "weight_decay",
        "test loss",
        "test accuracy",
    ]
    rows = []
    for name, some in searches(path).by_name.items():
        first, losses = some[0], sorted(search.best.loss for search in some)
        epochs = median(sum(trial.epochs for trial in search.trials) for search in some)
        numbers = [f"{loss:.3f}" for loss in (median(losses), losses[0], losses[-1])]
        point = [f"{rate:.2g}" for rate in (first.best.lr, first.best.weight_decay)]
        test = [f"{first.test['loss']:.3f}", f"{100 * first.test['accuracy']:.1f} %"]
        rows.append([name, str(len(first.trials)), f"{epochs:.0f}", *numbers, *point, *test])
    return _table(head, rows)


def _ranks(path: Path, words: Sequence[str]) -> list[str]:
    fields, _ = _given(words)
    if fields.keys() != {"size"}:
        raise ValueError(f"table ranks has the words {' '.join(words)!r}, expected size=N")
    races = ranks(path).of(int(float(fields["size"])))
    most = races[-1].ranks
    counts = [f"{race.ranks} rank{'s' * (race.ranks > 1)}" for race in races]
    rows = []
    for name in dict.fromkeys(name for race in races for name in race.sides):
        sides = [race.sides.get(name) for race in races]
        last = sides[-1]
        sent = f"{last.sent:.2f}" if last and last.sent is not None else ""
        rows.append([name, *(_time(side.least) if side else "" for side in sides), sent])
        rows[-1].append(f"{last.memory:.1f}" if last else "")
    return _table(["step", *counts, f"sent by 1 of {most}", f"held by all {most}"], rows)


def _seconds(path: Path, words: Sequence[str]) -> list[str]:
    found = ranks(path)
    lists = {"start": found.start, "overlap": found.overlap}
    name = " ".join(words)
    if not lists.get(name):
        raise ValueError(f"{path} has no {name!r}, expected one of {', '.join(filter(lists.get, lists))}")
    return _table([name, "time"], [[row, _time(min(seconds))] for row, seconds in lists[name].items()])


def _stragglers(path: Path, words: Sequence[str]) -> list[str]:
    _no_more("stragglers", words)
    found, rows = stragglers(path), []
    for case in found.cases:
        for way in found.ways:
            runs = found.best(case, way)
            counts = [f"{median(getattr(run, name) for run in runs):.0f}" for name in ("gradients", "updates")]
            late = [f"{median(run.late for run in runs):.1f}", str(max(run.latest for run in runs))]
            rows.append([case, way, *counts, *late, f"{runs[0].lr:g}", f"{median(run.loss for run in runs):.3f}"])
    head = ["workers", "training", "gradients", "updates", "late by", "at most", "lr", "last loss"]
    return _table(head, rows)


_KINDS = {
    "machine": _machine,
    "axis": _axis,
    "tests": _tests,
    "grid": _grid,
    "searches": _searches,
    "ranks": _ranks,
    "seconds": _seconds,
    "stragglers": _stragglers,
}


# Records, and words of the marks.


def _no_more(kind: str, words: Sequence[str]) -> None:
    if words:
        raise ValueError(f"table {kind} has the words {' '.join(words)!r}, expected none after the record")


def _benchmarks(path: Path, test: str) -> list[Any]:
    found = tests(load(path), test)
    if not found:
        raise ValueError(f"{path} has no {test}, expected the name of a test in it")
    return found


def _has(benchmark: Any, fixed: Mapping[str, str]) -> bool:
    params = benchmark["params"] or {}
    return all(str(params.get(name)) == value for name, value in fixed.items())


def _given(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the fixed fields and the peers that a mark names; an underscore stands for a space."""
    fields = dict(word.split("=", 1) for word in words)
    peers = fields.pop("peers", "")
    return fields, [name.replace("_", " ") for name in peers.split(",") if name]


def _plain(value: str) -> Any:
    return float(value) if re.fullmatch(r"[\d.]+(e\d+)?", value) else value


# The cells of a table.


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _time(seconds: float) -> str:
    """Return 0.0144 as 14.4 ms."""
    units = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
    unit = next((unit for unit, factor in units.items() if seconds < 999.5 * factor), "s")
    number = seconds / units[unit]
    return f"{number:.{max(0, 3 - len(str(int(number))))}f} {unit}"


def _rate(gb_per_s: float) -> str:
    return f"{gb_per_s:,.0f}" if gb_per_s >= 1000 else f"{gb_per_s:.3g}"


def _ratio(x: float) -> str:
    return f"{x:.0f}" if x >= 10 else f"{x:.1f}" if x >= 2 else f"{x:.2f}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _named(benchmark: Any) -> str:
    """Return test_host[same arrays-10000] as "host: same arrays, 10,000"."""
    name, _, values = benchmark["name"].partition("[")
    parts = [_text(int(part)) if part.isdecimal() else part for part in values.removesuffix("]").split("-") if part]
    return ": ".join(filter(None, [name.removeprefix("test_").replace("_", " "), ", ".join(parts)]))


def main(argv: list[str]) -> int:
    """
    Make the tables of some pages anew.

    Parameters
    ----------
    argv : list of str
        The arguments of ``python -m fusedstep bench tables``: Markdown files.

    Returns
    -------
    int
        0, or 2 if a page or a record cannot be read or has not what a table asks for; pages before it are written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fusedstep bench tables",
        description="Write the tables of timings in Markdown pages anew, from the records that the pages name.",
    )
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE.md")
    for page in parser.parse_args(argv).pages:
        try:
            before = page.read_text()
            after = rewritten(before, page.parent)
        except (OSError, ValueError) as error:
            print(f"{page}: {error}", file=sys.stderr)
            return 2
        if after != before:
            page.write_text(after)
        print(f"{page}: {'written' if after != before else 'up to date'}")
    return 0
