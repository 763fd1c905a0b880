"""Packages that only some of the commands need: the extras of the package."""

import sys
from collections.abc import Mapping
from importlib.util import find_spec

__all__ = ["is_missing"]


def is_missing(command: str, needed: Mapping[str, tuple[str, str]]) -> bool:
    """
    Return whether a module that a command needs is missing, and print how to install all missing ones.

    Parameters
    ----------
    command : str
        The name of the command.
    needed : mapping
        By the name of a module: the package that contains it, and the extra of fusedstep that installs the package.
    """
    found = [each for module, each in needed.items() if find_spec(module) is None]
    if found:
        packages, extras = zip(*found, strict=True)
        wanted = f"fusedstep[{','.join(dict.fromkeys(extras))}]"
        print(f'{command} needs {", ".join(packages)}: python -m pip install "{wanted}"', file=sys.stderr)
    return bool(found)
