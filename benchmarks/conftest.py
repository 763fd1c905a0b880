"""
Fixtures that connect the harness of `python -m fusedstep bench` with pytest-benchmark.

A test times contestants in interleaved rounds, and hands the timings of fusedstep and of the others to `tell`.
pytest-benchmark gets the rounds of fusedstep; its statistics, files and comparisons are as always. Ratios and goals are
printed in the end, and are in the `extra_info` of its files. A missed goal is a line in the table, never a failure.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

import fusedstep
from fusedstep.tools.bench import heats, machine
from fusedstep.tools.bench.cases import Case, crossed, devices, thread_counts
from fusedstep.tools.bench.contestants import Contestant
from fusedstep.tools.bench.harness import Entry, Timing, race, ratio
from fusedstep.tools.bench.record import Measured

OPERATORS = {">=": operator.ge, "<=": operator.le}
UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


class Replay:
    """A clock for pytest-benchmark, put forward by rounds that have been timed before."""

    seconds = 0.0

    def now(self) -> float:
        """Return the time."""
        return self.seconds

    def advance(self, seconds: Iterable[float]) -> Callable[[], None]:
        """Return a function that takes, by this clock, as long as the next round did."""
        left = iter(seconds)

        def step() -> None:
            self.seconds += next(left)

        return step


REPLAY = Replay()
LINES: list[str] = []
VERDICTS: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let pytest-benchmark look at the clock `REPLAY`."""
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=REPLAY.now))


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    """Return the machine as the records of the bench command have it."""
    return machine.about(devices())


@pytest.fixture(autouse=True)
def settings() -> Iterable[None]:
    """Leave the instruction set, the number of threads and the way to run rules as they were."""
    isa, threads = fusedstep.info()["isa"], fusedstep.info()["threads"]
    yield
    fusedstep.use_isa(isa)
    fusedstep.set_num_threads(threads)
    fusedstep.use_rules("auto")


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """Return the number of rounds: --benchmark-min-rounds."""
    return int(request.config.getoption("benchmark_min_rounds"))


@pytest.fixture
def run(rounds: int) -> Callable[..., list[Measured]]:
    """Return a function that measures a heat, on all threads and the widest instruction set unless told otherwise."""

    def run(peers: Iterable[type[Contestant]] = (), **axes: Any) -> list[Measured]:
        here = {"threads": thread_counts()[-1], "isa": fusedstep.info()["isas"][-1]}
        listed = {name: each if isinstance(each, list) else [each] for name, each in (here | axes).items()}
        (heat,) = crossed(**listed)
        if not heats.fits(heat, list(peers)):
            pytest.skip("does not fit into the memory that is free")
        return heats.run(heat, peers, rounds)

    return run


@pytest.fixture
def timed(rounds: int) -> Callable[..., dict[str, Timing]]:
    """Return a function that races entries, given by name."""

    def timed(entries: Mapping[str, Entry], **options: Any) -> dict[str, Timing]:
        return dict(zip(entries, race(list(entries.values()), rounds, **options), strict=True))

    return timed


@pytest.fixture
def tell(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function that reports timings to pytest-benchmark and to the table of ratios and goals."""

    def tell(
        ours: Timing,
        faster_than: Mapping[str, Timing] | None = None,
        relative_to: Mapping[str, Timing] | None = None,
        goals: Mapping[str, str] | None = None,
        moved: int = 0,
        **about: Any,
    ) -> None:
        """
        Report the time of fusedstep, and how it compares.

        Parameters
        ----------
        ours : Timing
            A step of fusedstep.
        faster_than, relative_to : dict of Timing
            Other timings of the race, by name. Reported is their time over `ours`, or `ours` over their time.
        goals : dict
            What a ratio should be, by name, or the time of `ours`, as "ours": ">= 0.95", "<= 30 us".
        moved : int
            The bytes that a step reads and writes.
        **about
            More to report, by name.
        """
        goals = dict(goals or {})
        rate = {"gb_per_s": moved / ours.median / 1e9} if moved else {}
        benchmark.extra_info |= rate | about
        text = f"{ours.median / UNITS['us']:.4g} us" + "".join(f", {each:.1f} GB/s" for each in rate.values())
        _add(benchmark, request.node.name, text, "ours", ours.median, goals.pop("ours", ""))
        for others, sign in ((faster_than, 1), (relative_to, -1)):
            for name, other in (others or {}).items():
                found = ratio(*(other, ours)[::sign])
                text = f"{'against' if sign > 0 else 'relative to'} {name}: {found.median:.3g} +- {found.iqr:.2g}"
                _add(benchmark, "", text, name, found.median, goals.pop(name, ""))
        LINES.extend(f"{'':60} {name}: {value}" for name, value in about.items())
        benchmark.pedantic(REPLAY.advance(ours.seconds), rounds=len(ours.seconds))

    return tell


def _add(benchmark: Any, test: str, text: str, name: str, value: float, goal: str) -> None:
    """Add a line with a number to the table, and the number to `extra_info`, with whether it meets its goal."""
    verdict = ""
    if goal:
        sign, number, *unit = goal.split()
        wanted = float(number) * (UNITS[unit[0]] if unit else 1)
        verdict = "met" if OPERATORS[sign](value, wanted) else "MISSED"
        VERDICTS.append(verdict)
    benchmark.extra_info["seconds" if name == "ours" else name] = value
    if goal:
        benchmark.extra_info[f"{name}, goal"] = f"{goal}: {verdict}"
    LINES.append(f"{test:60} {text:52} {goal:12} {verdict}".rstrip())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print ratios and goals."""
    if LINES:
        terminalreporter.section("ratios and goals")
        for line in LINES:
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"{VERDICTS.count('met')} goals met, {VERDICTS.count('MISSED')} missed")


@pytest.fixture
def tell_case(tell: Callable[..., None]) -> Callable[..., None]:
    """Return a function that reports all contestants of a case with `tell`."""

    def tell_case(measured: Measured, goals: Mapping[str, str] | None = None) -> None:
        case: Case = measured.case
        others = {row.name: row.timing for row in measured.rows if row.name != "fusedstep"}
        ulp = {f"ulp of {row.name}": row.ulp for row in measured.rows if row.ulp is not None and not row.agrees}
        known = {name: goal for name, goal in (goals or {}).items() if name in others or name == "ours"}
        tell(measured.ours.timing, others, goals=known, moved=case.moved, **ulp)

    return tell_case
