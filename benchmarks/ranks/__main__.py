"""
Measure steps of many ranks: python benchmarks/ranks FILE.json.

What is measured stands in benchmarks/README.md; `python -m fusedstep plot ranks FILE.json` draws it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from link import BITS, hosts, missing

from fusedstep.distributed import mpiexec
from fusedstep.tools.bench import machine

__all__ = ["main", "record", "write"]

HERE = Path(__file__).parent
PACKAGES = ("mpi4py", "mpich", "openmpi", "impi-rt")
TIMEOUT = 600  # seconds of a launch


def launched(
    ranks: int, *program: Any, within: tuple[str, ...] = (), options: tuple[str, ...] = (), **variables: str
) -> Any:
    """Run a program of this folder on some ranks, and return what its last line says."""
    words = [*within, sys.executable, "-m", "fusedstep", "run", "--ranks", ranks, "--threads", 1, *options]
    command = [*map(str, words), str(HERE / program[0]), *map(str, program[1:])]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, timeout=TIMEOUT, env={**os.environ, **variables}
    )
    return json.loads(done.stdout.splitlines()[-1])


def start(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of a program that does nothing, by itself and as two ranks."""
    program = str(HERE / "start.py")
    run = [sys.executable, "-m", "fusedstep", "run", "--ranks", "2", program]
    seconds: dict[str, list[float]] = {"python": [], "run --ranks 2": []}
    for _ in range(rounds):
        for name, command in zip(seconds, ([sys.executable, program], run), strict=True):
            begin = time.perf_counter()
            subprocess.run(command, check=True, timeout=TIMEOUT)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def link() -> dict[str, Any]:
    """Return what two hosts with a slow link between them find, or why there are none."""
    found = mpiexec.find()
    if reason := missing() or ("" if found.family == "MPICH" else f"two hosts need MPICH, and this is {found.family}"):
        return {"absent": {"link": reason}}
    with hosts() as (names, within, ssh):
        command = f"{found.words[0]} -localhost {names[0]} -launcher ssh -launcher-exec {ssh}"
        options = ("--hosts", ",".join(f"{name}:1" for name in names), "--mpiexec", command)
        tcp = {"UCX_TLS": "tcp,self"}  # the hosts share memory, which a network must not use
        return {"bits_per_second": BITS} | {
            name: launched(2, f"{name}.py", within=within, options=options, **tcp) for name in ("messages", "overlap")
        }


def record(sizes: list[int], ranks: list[int], rounds: int) -> dict[str, Any]:
    """Return everything that is measured."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    about = machine.about(["cpu"])
    about["packages"] = {**about["packages"], **packages}
    say("link")  # first, as most can go wrong with it
    slow = link()
    races = []
    for size in sizes:
        for count in ranks:
            say(f"{size:.0e} parameters, {count} ranks")
            races.append(launched(count, "race.py", size, rounds))
    say("computing, messages, start")
    return {
        "machine": about,
        "settings": {"rounds": rounds},
        "races": races,
        "computing": {count: launched(count, "computing.py") for count in sorted({1, machine.processors()})},
        "messages": launched(2, "messages.py"),
        "start": start(rounds),
        "link": slow,
    }


def say(what: str) -> None:
    """Tell how far this is."""
    print(f"{time.strftime('%H:%M:%S')}  {what}", file=sys.stderr, flush=True)


def write(found: dict[str, Any], path: Path) -> None:
    """Write a record as JSON, with a line for each side of a race."""
    heads = []
    for each in found["races"]:
        sides = ",\n    ".join(json.dumps(side) for side in each["sides"])
        head = json.dumps({name: value for name, value in each.items() if name != "sides"})
        heads.append(f'  {head[:-1]}, "sides": [\n    {sides}\n  ]}}')
    rest = json.dumps({name: value for name, value in found.items() if name != "races"}, indent=1)
    path.write_text(f'{rest[:-2]},\n "races": [\n' + ",\n".join(heads) + "\n ]\n}\n")


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(prog="python benchmarks/ranks", description=__doc__)
    parser.add_argument("record", type=Path, metavar="FILE.json", help="the file to write")
    sizes = [10**4, 10**6, 10**7, 3 * 10**7]
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=sizes, metavar="N", help="parameters (1e4 1e6 1e7 3e7)"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], metavar="N", help="of a race (1 2 4)")
    parser.add_argument("--rounds", type=int, default=11, help="of each race (%(default)s)")
    options = parser.parse_args()
    if min(options.sizes) < 10**4 or min(*options.ranks, options.rounds) < 1:
        parser.error("--sizes are at least 1e4, --ranks and --rounds at least 1")
    write(record([int(size) for size in options.sizes], options.ranks, options.rounds), options.record)


if __name__ == "__main__":
    main()
