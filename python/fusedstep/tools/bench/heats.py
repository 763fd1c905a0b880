"""Run a heat: make the contestants of each case, compare their results, and time all of them in a race."""

import gc
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from fusedstep import _cpu
from fusedstep.core.settings import info, set_num_threads, use_isa

from . import gpu
from .cases import Case, Heat
from .contestants import AbsentError, Contestant, Copy, Fusedstep, Job, Limit, disagreements, on_device
from .harness import Clock, Entry, host_time, race
from .machine import available_bytes, busy
from .record import Measured, Row

__all__ = ["entries", "estimate", "fits", "run"]


def run(
    heat: Heat,
    peers: Iterable[type[Contestant]],
    rounds: int,
    *,
    number: int = 0,
    inner: float = 0.01,
    rest: float = 0.02,
    clock: Clock | None = None,
    after_turn: Callable[[], object] = lambda: None,
) -> list[Measured]:
    """
    Time everybody who can take part, in all cases of a heat.

    Parameters
    ----------
    heat : tuple of Case
        Cases, all on the same device.
    peers : iterable of Contestant classes
        Who else is to take part, where they are installed and can do the job.
    rounds, inner, rest, after_turn
        As for `harness.race`.
    number : int
        Number of the heat, for the record.
    clock : function, optional
        How time is taken: by default with the clock of the host, or of the GPU.

    Returns
    -------
    list of Measured
        One for each case. Instruction set and number of threads are as before.
    """
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    device = heat[0].device
    clock = clock or (host_time if device == "cpu" else gpu.gpu_time)
    before, isa, threads = busy(), info()["isa"], info()["threads"]
    with on_device(device):
        found: list[Measured] = []
        everyone: list[Entry] = []
        wanted = [_invited(case, peers) for case in heat]
        jobs = [Job(case) for case in heat]
        built = [_build(job, some) for job, some in zip(jobs, wanted, strict=True)]
        pools = ThreadpoolController()  # created late: it controls only libraries that are loaded by now
        try:
            with pools.limit(limits=threads):
                for job, (ours, others, absent) in zip(jobs, built, strict=True):
                    prepare = partial(_prepare, job.case, pools)
                    prepare()
                    rows, own = _enter(job, ours, others, prepare)
                    found.append(Measured(job.case, number, rows, absent))
                    everyone += own
                timings = iter(race(everyone, rounds, inner, rest, clock, after_turn))
        finally:
            if device == "cpu":
                use_isa(isa)
                set_num_threads(threads)
    for measured in found:
        for row in measured.rows:
            row.seconds = next(timings).seconds
    elapsed, all_busy, own_busy = (b - a for a, b in zip(before, busy(), strict=True))
    for measured in found:
        measured.disturbed = max(0.0, all_busy - own_busy) / elapsed
    return found


def _invited(case: Case, peers: Iterable[type[Contestant]]) -> list[type[Contestant]]:
    """Return who is to take part: peers run beside the widest instruction set only, as they do not depend on ours."""
    kind = case.device.partition(":")[0]
    return [cls for cls in peers if kind in cls.kinds] if case.isa in ("", _cpu.isas[-1]) else []


def _build(job: Job, wanted: list[type[Contestant]]) -> tuple[Fusedstep, list[Contestant], dict[str, str]]:
    """Return the contestant of fusedstep, the peers that can do the job, and why the others cannot."""
    present: list[Contestant] = []
    absent: dict[str, str] = {}
    few = Job(replace(job.case, size=64, count=1, odd=False))
    for cls in wanted:
        try:
            if job.case.states and cls.set_states is Contestant.set_states:
                raise AbsentError("its states cannot be set")
            cls(few).step()  # a peer that lacks a kernel may say so only when it needs it
            present.append(cls(job))
        except AbsentError as reason:
            absent[cls.name] = str(reason)
        except Exception as error:  # whatever goes wrong in other people's code, the heat goes on
            absent[cls.name] = f"fails: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return Fusedstep(job), present, absent


def _prepare(case: Case, pools: Any) -> None:
    """Set the number of threads of everybody, and the instruction set of fusedstep."""
    if case.device == "cpu":
        pools.limit(limits=case.threads)
        set_num_threads(case.threads)
        use_isa(case.isa or "auto")


def _enter(
    job: Job, ours: Fusedstep, others: list[Contestant], prepare: Callable[[], object]
) -> tuple[list[Row], list[Entry]]:
    """Let the contestants of a case make their first steps, compare them, and return their rows and entries."""
    everyone = [ours, *others]
    if job.case.states:
        for one in everyone:
            one.step()  # the first step makes the states
        return [Row(one.name, []) for one in everyone], [
            Entry(_refilled(one, job.case.states), _before(one, prepare)) for one in everyone
        ]
    rows = [Row(one.name, [], *apart) for one, apart in zip(everyone, disagreements(job, everyone), strict=True)]
    limits: list[Contestant] = [Limit(ours)] if job.case.limit else []
    limits += [Copy(job)] if job.case.device != "cpu" else []
    rows[1:1] = [Row(one.name, []) for one in limits]
    return rows, [Entry(one.step, _before(one, prepare), one.steps) for one in (ours, *limits, *others)]


def _before(contestant: Contestant, prepare: Callable[[], object]) -> Callable[[], None]:
    """Return what is done before a turn: what the case asks for, then what the contestant does."""

    def before() -> None:
        prepare()
        contestant.prepare()

    return before


def _refilled(contestant: Contestant, value: float) -> Callable[[], None]:
    """Return a step that sets all states first: a step that flushes subnormal states would leave none to the next."""

    def step() -> None:
        contestant.set_states(value)
        contestant.step()

    return step


def entries(heat: Heat, peers: list[type[Contestant]]) -> int:
    """Return how many contestants a heat has at most."""
    return sum(2 + (case.device != "cpu") + len(_invited(case, peers)) for case in heat)


def estimate(heat: Heat, peers: list[type[Contestant]], rounds: int) -> float:
    """Return roughly how many seconds a heat takes; the progress bar needs only how heats compare."""
    each = [(2 + len(_invited(case, peers)), case.moved / 4e9) for case in heat]
    return sum(turns * (rounds * (0.05 + 2 * seconds) + 4 * seconds) for turns, seconds in each)


def fits(heat: Heat, peers: list[type[Contestant]]) -> bool:
    """Return whether the arrays of a heat, with what expressions and copies take, fit into the memory that is free."""
    gc.collect()
    device = heat[0].device
    needed = sum((0.6 * (1 + len(_invited(case, peers))) + (device != "cpu")) * case.moved for case in heat)
    return needed < 0.9 * available_bytes(device)
