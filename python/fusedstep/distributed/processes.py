"""A job as processes of this machine: started, given signals, ended as a whole, and nothing of it left behind."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Job", "Relay"]

_SHARED = Path("/dev/shm")  # noqa: S108 (where MPI puts the memory that ranks share)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Job:
    """
    A command, all processes that come of it, and the files in shared memory that these have made.

    Parameters
    ----------
    command : sequence of str
        What to start.
    environment : mapping of str to str
        All of its environment.
    rank : str
        The program that every rank runs: the second word of its command line.

    Notes
    -----
    The job has a session of its own, so that a Ctrl-C of the terminal reaches it once, through `send`, and no standard
    input. On Linux, it dies when this process is killed, and orphans in it become children of this process.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], rank: str) -> None:
        self._shared = _SharedFiles()
        self._kill_at = float("inf")
        self._rank = rank
        self._look_at = time.monotonic() + 1
        self._process = subprocess.Popen(  # noqa: S603 (what the user has asked for)
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_adopt(),
        )

    def send(self, number: int, seconds: float = float("inf")) -> None:
        """Send a signal to the command, which passes it on to the ranks, and kill all that is there `seconds` later."""
        self._kill_at = min(self._kill_at, time.monotonic() + seconds)
        self._process.send_signal(number)

    def wait(self) -> int:
        """
        Wait until the command has ended, end what it has left, and return its exit code: 128 + n for signal n.

        Files in shared memory that no process has mapped any more are removed if processes of the job had mapped them.
        """
        watchful = time.monotonic() + 5  # ranks meet, and share memory
        while True:
            try:
                code = self._process.wait(0.1 if time.monotonic() > watchful else 0.02)
                break
            except subprocess.TimeoutExpired:
                self._shared.look()
                self._end_orphans()
            if time.monotonic() > self._kill_at:
                self._end()
        self._end(0.5)
        self._shared.remove()
        return code if code >= 0 else 128 - code

    def _end_orphans(self) -> None:
        """
        Kill what ranks have started and left, once no rank is there any more.

        The command waits until nobody holds the output of a rank, and such a process may hold it for ever.
        """
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + 1
        all_ = list(_descendants())
        orphans = set(all_) - {self._process.pid, *_descendants(self._process.pid)}
        commands = (_read(f"/proc/{process}/cmdline").split("\0") for process in all_)
        if orphans and not any(self._rank in its[1:2] for its in commands):
            for process in orphans:
                _kill(process)

    def _end(self, patience: float = 0.0) -> None:
        """Kill all processes of the job that are there after `patience` seconds."""
        limit = time.monotonic() + patience
        while left := list(_descendants()):
            if time.monotonic() >= limit:
                for process in left:
                    _kill(process)
            if self._process.returncode is None:
                break  # its exit code is for `wait`
            _reap()
            if time.monotonic() > limit + 10:
                break  # processes that the kernel does not let go of
            time.sleep(0.005)


class Relay:
    """
    Signals to this process, passed on to the job that runs.

    SIGINT, SIGTERM and SIGHUP end the job: `stopped` is then the number of the signal. A second one kills it, and so
    does time: 10 s after SIGINT, which a rank that computes or waits in C does not notice, and 60 s after the others,
    which leaves time to save. SIGUSR1 and SIGUSR2 are passed on as they are. What this process has been told to ignore
    stays ignored.
    """

    def __init__(self) -> None:
        self.stopped: int | None = None
        self.job: Job | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._handle(number, self._stop)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            self._handle(number, self._pass_on)

    def _handle(self, number: int, function: Callable[[int, FrameType | None], Any]) -> None:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, function)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.job:
            soft = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
            self.job.send(soft, 0 if self.stopped else 10 if number == signal.SIGINT else 60)
        self.stopped = number

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        if self.job:
            self.job.send(number)


def _adopt() -> Callable[[], None] | None:
    """Let orphans of the job become children of this process; return what binds the job's life to this process."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _descendants(root: int | None = None) -> Iterator[int]:
    """Yield the processes that come of one, by default of this one, parents first."""
    parents: dict[int, list[int]] = {}
    for process in _processes():
        words = _read(f"/proc/{process}/stat").rpartition(") ")[2].split()
        if words:
            parents.setdefault(int(words[1]), []).append(process)
    found = [root or os.getpid()]
    for process in found:
        found += parents.get(process, [])
    yield from found[1:]


def _processes() -> Iterator[int]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    yield from (int(name) for name in names if name.isdecimal())


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:  # the process has ended, or is somebody else's
        return ""


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _reap() -> None:
    """Take the exit codes of children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


class _SharedFiles:
    """
    The files in shared memory that processes of a job have mapped, and that were not there before it.

    A job that is killed leaves such files behind, some megabytes each time, and containers often have room for 64 MB.
    Who has mapped a file can be seen only while it lives, so `look` is called now and then; it reads the maps of
    processes only where the folder has changed a moment ago.
    """

    def __init__(self) -> None:
        self._before = set(self._names())
        self._ours: set[str] = set()
        self._changed = 0.0
        self._until = 0.0

    def look(self) -> None:
        """Remember new files that processes of the job have mapped."""
        changed = self._time_of_change()
        if changed != self._changed:
            self._changed = changed
            self._until = time.monotonic() + 1  # a file is mapped shortly after it is made
        if time.monotonic() < self._until:
            new = set(self._names()) - self._before - self._ours
            if new:
                self._ours |= new & _mapped(_descendants())

    def remove(self) -> None:
        """Remove the files that are still there, are this user's, and that no process has mapped any more."""
        left = self._ours & set(self._names())
        if left:
            left -= _mapped(_processes())
        for name in left:
            try:
                if (_SHARED / name).stat().st_uid == os.geteuid():
                    (_SHARED / name).unlink()
            except OSError:
                pass  # somebody has been quicker

    def _names(self) -> list[str]:
        try:
            return os.listdir(_SHARED)
        except OSError:
            return []

    def _time_of_change(self) -> float:
        try:
            return _SHARED.stat().st_mtime
        except OSError:
            return 0.0


def _mapped(processes: Iterator[int]) -> set[str]:
    """Return the names of the files in shared memory that processes have mapped."""
    found = set()
    for process in processes:
        for line in _read(f"/proc/{process}/maps").splitlines():
            place = line.partition(f"{_SHARED}/")[2]
            if place:
                found.add(place.removesuffix(" (deleted)"))
    return found
