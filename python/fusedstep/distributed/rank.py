"""
What one rank of a job runs: the user's program, as ``python -m mpi4py`` runs it, with lines that are not torn.

This file is started by its path, as a program, and imports nothing of fusedstep: a rank pays for what its own program
imports, and for nothing else.
"""

import os
import sys
from io import TextIOWrapper
from runpy import run_module


def main() -> None:
    """
    Run the program that the command line names, and end all ranks if it fails.

    mpi4py ends the whole job when the program raises or calls `sys.exit` with something else than 0; without it, the
    other ranks would wait for this one for ever. An interrupt ends this rank without a traceback.
    """
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()  # as with `python -m`: the folder of this file has modules of the names torch and ray
    if isinstance(sys.stdout, TextIOWrapper):
        # A pipe to mpiexec gets lines, neither blocks as by default nor pieces of lines as with PYTHONUNBUFFERED.
        sys.stdout.reconfigure(line_buffering=True, write_through=False)
    try:
        run_module("mpi4py", run_name="__main__")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
