"""The command line: `python -m fusedstep info | verify | bench | demo | plot | run`."""

import sys
from importlib import import_module
from typing import Any

from fusedstep import _cpu
from fusedstep.core.settings import info

COMMANDS = {
    "info": "what was built, detected and chosen",
    "verify": "compare the kernels with the NumPy reference, bit for bit",
    "bench": "measure the kernels beside the memory's limit and other people's optimizers",
    "demo": "train a small network with every optimizer",
    "plot": "draw pictures: of measurements, of runs, of schedules",
    "run": "run a program in several ranks with MPI, and again when one of them dies",
}


def main(argv: list[str]) -> int:
    """Run the command that `argv` begins with, and return its exit code: 2 for a command that does not exist."""
    command, *rest = argv or ["--help"]
    if command in ("-V", "--version"):
        print(f"fusedstep {_cpu.version}")
        return 0
    if command in ("-h", "--help"):
        print("usage: python -m fusedstep COMMAND ...\n       python -m fusedstep --version\n")
        for name, summary in COMMANDS.items():
            print(f"  {name:8}{summary}")
        return 0
    if command not in COMMANDS:
        print(f"command is {command!r}, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if command == "info":
        for key, value in info().items():
            print(f"{key}: {_readable(value)}")
        return 0
    place = "distributed.launch" if command == "run" else f"tools.{command}"
    code: int = import_module(f"fusedstep.{place}").main(rest)
    return code


def _readable(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_readable, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
