"""Packages that only some commands need."""

import sys
from collections.abc import Mapping
from importlib.util import find_spec

__all__ = ["is_missing"]


def is_missing(command: str, needed: Mapping[str, tuple[str, str]]) -> bool:
    """
    Return whether a module is missing that a command needs, and print how to install what is.

    Parameters
    ----------
    command : str
        Who needs it.
    needed : mapping
        The package that has a module, and our extra that has the package, by the name of the module.
    """
    found = [each for module, each in needed.items() if find_spec(module) is None]
    if found:
        packages, extras = zip(*found, strict=True)
        wanted = f"fusedstep[{','.join(dict.fromkeys(extras))}]"
        print(f'{command} needs {", ".join(packages)}: python -m pip install "{wanted}"', file=sys.stderr)
    return bool(found)
