"""``python -m fusedstep run``: ranks of a program, started and ended together, and started again after a death."""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, Signals
from subprocess import DEVNULL

from fusedstep.core.settings import processors

from .mpiexec import Host, Mpiexec, find, hosts_in
from .processes import Job, Relay

__all__ = ["main"]

_RANK = Path(__file__).with_name("rank.py")
_BLAS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # which both look at OMP_NUM_THREADS too
_SEEN_BY_RANKS = ("OMP_NUM_THREADS", *_BLAS, "FUSEDSTEP_NUM_THREADS", "FUSEDSTEP_ATTEMPT", "PYTHONPATH")


def main(argv: list[str]) -> int:
    """
    Run a program in several ranks.

    Parameters
    ----------
    argv : list of str
        The arguments of ``python -m fusedstep run``.

    Returns
    -------
    int
        The exit code of the last attempt, 128 + n if signal n has ended it; 2 if it could not be started.
    """
    options = _options(argv)
    signals = Relay()
    try:
        mpiexec = find(options.mpiexec) if options.ranks > 1 or options.hosts else None
        if not options.hosts:
            return _run(options, mpiexec, signals, None)
        from tempfile import TemporaryDirectory

        with TemporaryDirectory(prefix="fusedstep-run-") as folder:
            return _run(options, mpiexec, signals, Path(folder))
    except RuntimeError as error:
        _say(error)
        return 2


def _run(options: argparse.Namespace, mpiexec: Mpiexec | None, signals: Relay, folder: Path | None) -> int:
    """Make attempts until one ends well, somebody stops this process, or no attempt is left; return the exit code."""
    ranks, hosts, same = options.ranks, options.hosts, 0
    for attempt in range(1, options.restarts + 2):
        begin = time.monotonic()
        placed = placement(ranks, hosts)
        environment = _environment(dict(os.environ), ranks, placed, options.threads, attempt, mpiexec)
        if mpiexec:
            seen = {name: environment[name] for name in _SEEN_BY_RANKS if name in environment}
            program = [sys.executable, str(_RANK), *options.program]
            command = mpiexec.command(ranks, program, placed, seen, folder)
        else:
            command = [sys.executable, *options.program]
        code = _attempt(command, environment, signals)
        if signals.stopped and code:
            _say(f"ended by {Signals(signals.stopped).name}")
            return 128 + signals.stopped
        if not code:
            return 0
        seconds = time.monotonic() - begin
        _say(f"attempt {attempt} with {_ranks(ranks)} has ended with exit code {code} after {seconds:.1f} s")
        if attempt <= options.restarts:
            hosts = _alive(hosts, mpiexec, folder)
            now = fewer(ranks, options.least_ranks, same := same + 1, hosts, options.hosts)
            same *= now == ranks
            ranks = now
            _say(f"starts again with {_ranks(ranks)}, restart {attempt} of {options.restarts}")
    return code


def _attempt(command: Sequence[str], environment: Mapping[str, str], signals: Relay) -> int:
    """Run one job, and return its exit code."""
    try:
        signals.job = job = Job(command, environment, str(_RANK))
    except OSError as error:
        raise RuntimeError(f"{command[0]} cannot be started: {error.strerror}") from None
    try:
        if signals.stopped:  # before there was a job to pass it on to
            job.send(SIGKILL)
        return job.wait()
    finally:
        signals.job = None


def fewer(ranks: int, least: int, same: int, hosts: Sequence[Host], wanted: Sequence[Host]) -> int:
    """
    Return how many ranks the next attempt has.

    Parameters
    ----------
    ranks : int
        How many the last attempt had.
    least : int
        How many there must be.
    same : int
        How many attempts in a row had as many as the last one, and died.
    hosts, wanted : sequence of Host
        Those that answer, and those that the user has named.

    Returns
    -------
    int
        The same number at first; one less when that number has died twice in a row; no more than hosts have slots.

    Raises
    ------
    RuntimeError
        If the hosts that answer have slots for fewer than `least` ranks.
    """
    if len(hosts) < len(wanted):
        names = {host.name for host in hosts}
        lost = ", ".join(host.name for host in wanted if host.name not in names)
        room = sum(host.slots or 0 for host in hosts)
        if room < least:
            raise RuntimeError(
                f"{lost}: no answer, and the other hosts have slots for {room} ranks, expected {least} or more "
                "(--least-ranks)"
            )
        _say(f"{lost}: no answer, goes on without")
        if room < ranks:
            return room
    return max(least, ranks - 1) if same >= 2 else ranks


def placement(ranks: int, hosts: Sequence[Host]) -> list[Host]:
    """Return hosts with the slots that are used: the first ones are filled first."""
    placed = []
    for host in hosts:
        slots = min(host.slots or 0, ranks)
        ranks -= slots
        if slots:
            placed.append(Host(host.name, slots))
    return placed


def _alive(hosts: Sequence[Host], mpiexec: Mpiexec | None, folder: Path | None) -> list[Host]:
    """Return the hosts on which mpiexec can start a command within 20 s."""
    if not mpiexec or len(hosts) < 2:
        return list(hosts)
    from concurrent.futures import ThreadPoolExecutor
    from socket import gethostname

    variables = mpiexec.variables() | os.environ

    def answers(host: Host) -> bool:
        if host.name in ("localhost", gethostname()):
            return True
        command = mpiexec.command(1, ["true"], [Host(host.name, 1)], {}, folder)
        try:
            done = subprocess.run(  # noqa: S603 (what `find` has found)
                command, env=variables, stdin=DEVNULL, capture_output=True, timeout=20
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    with ThreadPoolExecutor(32) as pool:
        return [host for host, alive in zip(hosts, pool.map(answers, hosts), strict=True) if alive]


def _environment(
    user: Mapping[str, str],
    ranks: int,
    placed: Sequence[Host],
    threads: int | None,
    attempt: int,
    mpiexec: Mpiexec | None,
) -> dict[str, str]:
    """Return the environment of a job: what the user has set stays, but for an empty value, which counts as not set."""
    found = dict(mpiexec.variables() if mpiexec else {})
    found["OMP_NUM_THREADS"] = "1"  # one number for any number of ranks: products have other bits with another one
    found |= dict.fromkeys(_BLAS, user.get("OMP_NUM_THREADS") or "1")
    found["FUSEDSTEP_NUM_THREADS"] = str(_threads(user, ranks, placed))
    found |= {name: value for name, value in user.items() if value or name not in found}
    if threads is not None:
        found["FUSEDSTEP_NUM_THREADS"] = str(threads)
    found["FUSEDSTEP_ATTEMPT"] = str(attempt)
    return found


def _threads(user: Mapping[str, str], ranks: int, placed: Sequence[Host]) -> int:
    """Return the threads of a rank: the cores that it shares with the other ranks of its host, at least 1."""
    if (granted := user.get("SLURM_CPUS_PER_TASK", "")).isdecimal() and not placed:
        return max(1, int(granted))
    nodes = user.get("SLURM_JOB_NUM_NODES", "")
    beside = max((host.slots or 0 for host in placed), default=0)
    beside = beside or math.ceil(ranks / max(1, int(nodes) if nodes.isdecimal() else 1))
    return max(1, processors()[0] // beside)


def _options(argv: list[str]) -> argparse.Namespace:
    """Return what the command line says, checked; `program` is what follows the interpreter."""
    parser = argparse.ArgumentParser(
        prog="python -m fusedstep run",
        usage="%(prog)s --ranks N [options] (train.py | -m module) ...",
        description="Run a program in several ranks with MPI, and again from its checkpoint when one of them dies.",
        epilog="All ranks end when one fails. FUSEDSTEP_ATTEMPT tells the program which attempt it is: 1, 2, ...",
    )
    parser.add_argument("--ranks", type=int, help="how many (in a job of Slurm: SLURM_NTASKS)")
    parser.add_argument(
        "--restarts", type=int, default=0, help="how often to start again after a death (%(default)s)", metavar="N"
    )
    parser.add_argument(
        "--least-ranks",
        type=int,
        metavar="N",
        help="go on with fewer ranks, down to this, if a host gives no answer or a number has died twice (--ranks)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="of fusedstep in each rank (cores of the host / ranks on it)"
    )
    parser.add_argument("--hosts", help="a,b:2 or a file of such lines: where ranks run, and how many on each")
    parser.add_argument("--mpiexec", metavar="COMMAND", help="to use in place of the one of mpi4py's MPI library")
    parser.add_argument("-m", nargs=argparse.REMAINDER, dest="module", help="run a module, as python -m does")
    parser.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)

    if options.module is not None:
        options.program = ["-m", *options.module]
    if not options.program or options.program == ["-m"]:
        parser.error("program is missing, expected a script, or -m and a module")
    if options.module is None and not os.path.exists(options.program[0]):
        parser.error(f"program is {options.program[0]}, expected a script that exists")
    copies = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    if copies.isdecimal() and int(copies) > 1:
        parser.error(f"this command was started {copies} times by srun, expected once: it starts the ranks itself")
    tasks = os.environ.get("SLURM_NTASKS", "")
    if options.ranks is None and tasks.isdecimal():
        options.ranks = int(tasks)
    if options.ranks is None:
        parser.error("--ranks is missing, expected how many")
    if options.ranks < 1:
        parser.error(f"--ranks is {options.ranks}, expected at least 1")
    if options.restarts < 0:
        parser.error(f"--restarts is {options.restarts}, expected at least 0")
    if options.threads is not None and not 1 <= options.threads <= 1024:
        parser.error(f"--threads is {options.threads}, expected 1 to 1024")
    if options.least_ranks is None:
        options.least_ranks = options.ranks
    if not 1 <= options.least_ranks <= options.ranks:
        parser.error(f"--least-ranks is {options.least_ranks}, expected 1 to {options.ranks}, as --ranks says")
    try:
        options.hosts = _with_slots(hosts_in(options.hosts), options.ranks) if options.hosts is not None else []
    except ValueError as error:
        parser.error(str(error))
    return options


def _with_slots(hosts: Sequence[Host], ranks: int) -> list[Host]:
    """Return hosts with slots for all ranks: those without a number share what the others leave, rounded up."""
    left = ranks - sum(host.slots or 0 for host in hosts)
    open_ = sum(host.slots is None for host in hosts)
    if left > 0 and not open_:
        raise ValueError(f"--hosts has slots for {ranks - left} ranks, expected {ranks}, as --ranks says")
    share = max(1, math.ceil(left / open_)) if open_ else 0
    return [Host(host.name, host.slots or share) for host in hosts]


def _ranks(number: int) -> str:
    return f"{number} rank{'s' * (number > 1)}"


def _say(what: object) -> None:
    print(f"run: {what}", file=sys.stderr, flush=True)
