"""
Measure on this machine: `python -m fusedstep bench`.

Each step is timed beside the limit, a loop over the same buffers that computes next to nothing and so shows what the
memory allows, and beside other people's optimizers, where they are installed. All run in one process, over the same
numbers, with the same hyperparameters, in interleaved rounds, and their results are compared.
"""

import argparse
import time
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fusedstep import _cpu
from fusedstep.tools.extras import is_missing

from .cases import SIZES, Heat, crossed, devices, dtypes, rules, thread_counts, tour

__all__ = ["main"]

ROUNDS, QUICK_ROUNDS = 15, 6  # `bench compare` needs 6 rounds for a verdict
REST, QUICK_REST = 0.02, 0.01  # seconds of sleep before a turn; threads of other pools spin for less than 0.02
QUICK_MINUTES = 0.7


def _choices() -> dict[str, list[Any]]:
    """Return the values that "all" stands for on each axis."""
    return {
        "rule": list(rules()),
        "dtype": dtypes(),
        "size": list(SIZES),
        "count": [1, 10, 100, 1000, 10_000],
        "odd": ["no", "yes"],
        "threads": thread_counts(),
        "isa": list(_cpu.isas),
        "device": devices(),
    }


def _parser(choices: dict[str, list[Any]]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fusedstep bench",
        description="Measure optimizer steps beside the memory's limit and other people's optimizers. Without axes: a "
        "tour that varies each by itself, around Adam in float32; with axes: all their combinations.",
        epilog='"python -m fusedstep bench compare A.json B.json" tells what has become faster or slower; '
        '"bench tables PAGE.md" writes the tables of timings in pages anew, from records.',
    )
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer rounds and cases, no slow starters")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, after each heat")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"interleaved rounds ({ROUNDS}, quick {QUICK_ROUNDS})")
    parser.add_argument("--minutes", type=float, metavar="M", help="begin nothing after so many minutes")
    parser.add_argument("--peers", nargs="*", metavar="NAME", help="only these, by the names in the table")
    axes = parser.add_argument_group("axes", 'one value, several, or "all"')
    for name, known in choices.items():
        text = f"(all: {', '.join(map(str, known))})"
        axes.add_argument(f"--{name}", nargs="+", metavar=name.upper(), help=text)
    return parser


def _axis(parser: argparse.ArgumentParser, name: str, given: list[str], known: list[Any]) -> list[Any]:
    """Return the values of an axis that the command line asks for."""
    if given == ["all"]:
        return known
    if name in ("size", "count"):
        values = []
        for text in given:
            try:
                number = float(text)
                if number != int(number) or not 1 <= number <= 10**12:
                    raise ValueError
            except (ValueError, OverflowError):
                parser.error(f"--{name} is {text!r}, expected whole numbers from 1, like 1000 or 1e6, or all")
            values.append(int(number))
        return values
    by_text = {str(each): each for each in known}
    if name == "threads":
        by_text |= {text: int(text) for text in given if text.isdecimal() and 1 <= int(text) <= 1024}
    if unknown := [text for text in given if text not in by_text]:
        parser.error(f"--{name} is {unknown[0]!r}, expected {', '.join(by_text)} or all")
    return [by_text[text] for text in given]


def _heats(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Heat]:
    choices = _choices()
    named = {name: given for name in choices if (given := getattr(options, name)) is not None}
    axes = {name: _axis(parser, name, given, choices[name]) for name, given in named.items()}
    if "odd" in axes:
        axes["odd"] = [each == "yes" for each in axes["odd"]]
    if axes.keys() - {"device"}:
        here = {"threads": choices["threads"][-1:], "isa": choices["isa"][-1:], "device": ["cpu"]}
        return crossed(**(here | axes))
    where = axes.get("device", choices["device"])
    # Devices take turns: if time runs out, each has had some heats.
    tours = zip_longest(*(tour(device, options.quick) for device in where))
    return [heat for heats in tours for heat in heats if heat]


def main(argv: list[str]) -> int:
    """
    Measure, compare two measurements, or write tables of them.

    Parameters
    ----------
    argv : list of str
        The arguments of ``python -m fusedstep bench``.

    Returns
    -------
    int
        0, or 1 if results of fusedstep differ from the reference, or 2 if a package is missing or a file cannot be
        read, or 130 after an interrupt: what had been measured by then is printed and written.
    """
    if argv[:1] == ["compare"]:
        from .compare import main as compare

        return compare(argv[1:])
    if argv[:1] == ["tables"]:
        from .tables import main as tables

        return tables(argv[1:])
    parser = _parser(_choices())
    options = parser.parse_args(argv)
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}, expected at least 1")
    if options.minutes is not None and not options.minutes > 0:
        parser.error(f"--minutes is {options.minutes}, expected more than 0")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json is {options.json}, expected a file in a folder that exists")
    if is_missing("bench", {"rich": ("rich", "bench"), "threadpoolctl": ("threadpoolctl", "bench")}):
        return 2
    return _run(_heats(parser, options), options, parser)


def _peers(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Any]:
    """Return the classes of the peers that the command line asks for."""
    from .peers import PEERS

    names = [cls.name for cls in PEERS]
    wanted = ["numpy" if name == "cupy" else name for name in options.peers or ()]  # the class of numpy also runs CuPy
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"--peers is {unknown[0]!r}, expected {', '.join(names)}")
    if options.peers is None:
        return [cls for cls in PEERS if not (options.quick and cls.starts_slowly)]
    return [cls for cls in PEERS if cls.name in wanted]


def _run(heats: list[Heat], options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Run the heats under a progress bar, print a line for each case, and write the record."""
    from rich.console import Console

    from . import machine, table
    from .record import Record, write

    start = time.perf_counter()
    peers = _peers(parser, options)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    rest = QUICK_REST if options.quick else REST
    minutes = options.minutes or (QUICK_MINUTES if options.quick else float("inf"))
    about = machine.about(sorted({heat[0].device for heat in heats}))
    record = Record(about, {"quick": options.quick, "rounds": rounds, "rest": rest})

    console = Console(highlight=False, soft_wrap=True)
    say = partial(console.print, markup=False)
    say(table.titles(record))
    if options.json:
        try:
            write(record, options.json)
        except OSError as error:
            parser.error(f"--json is {options.json}, expected a file that can be written: {error.strerror}")
    columns: list[str] | None = None
    begun = 0
    try:
        for found in _measured(heats, peers, record, console, start + 60 * minutes, rounds, rest):
            begun += 1
            record.cases += found
            record.settings["seconds"] = time.perf_counter() - start
            new = {row.name: None for each in found for row in each.rows if row.name not in table.OURS}
            if columns is None or new.keys() - set(columns):
                columns = list(dict.fromkeys([*(columns or ()), *new]))
                say(table.head(columns))
            for each in found:
                say(table.line(each, columns))
            if options.json:
                write(record, options.json)
        if begun < len(heats):
            record.notes.append(f"{len(heats) - begun} heats not begun: {minutes:g} minutes were over")
    except KeyboardInterrupt:
        record.notes.append("interrupted")
    say(f"\n{table.LEGEND}")
    for text in table.remarks(record):
        say(text)
    if options.json:
        write(record, options.json)
        say(f"Record: {options.json}")
    return 130 if "interrupted" in record.notes else int(any(each.ours.ulp for each in record.cases))


def _measured(
    heats: list[Heat], peers: list[Any], record: Any, console: Any, deadline: float, rounds: int, rest: float
) -> Iterator[list[Any]]:
    """Measure heat after heat under a progress bar, until the deadline, and yield the cases of each."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from .heats import entries, estimate

    weights = [estimate(heat, peers, rounds) for heat in heats]
    bars = BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*bars, console=console, transient=True) as progress:
        task = progress.add_task("", total=sum(weights))
        for number, (heat, weight) in enumerate(zip(heats, weights, strict=True)):
            if time.perf_counter() > deadline:
                return
            progress.update(task, description=str(heat[0]), completed=sum(weights[:number]))
            turn = partial(progress.advance, task, weight / (rounds * entries(heat, peers)))
            yield _raced(heat, peers, record, rounds=rounds, rest=rest, number=number, after_turn=turn)


def _raced(heat: Heat, peers: list[Any], record: Any, **options: Any) -> list[Any]:
    """Return the cases of a heat, without peers where they fail or do not fit into memory; the record notes it."""
    from .heats import fits, run

    if not fits(heat, []):
        record.notes.append(f"{heat[0]}: left out, for lack of memory")
        return []
    why = "for lack of memory"
    if fits(heat, peers):
        try:
            return run(heat, peers, **options)
        except Exception as error:  # an error of fusedstep itself is raised again below, without peers
            why = f"{type(error).__name__}: {error}"
    record.notes.append(f"{heat[0]}: without peers, {why}")
    return run(heat, [], **options)
