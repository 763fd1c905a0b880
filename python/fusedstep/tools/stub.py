"""
The signatures of `fusedstep.functional` for editors and type checkers, which do not run the code that makes them.

``python -m fusedstep.tools.stub > python/fusedstep/functional.pyi``
"""

from fusedstep.core.functions import outlines, signature
from fusedstep.optimizers import classes

__all__ = ["text"]

_HEAD = '''\
"""Made by `python -m fusedstep.tools.stub`."""

from typing import Any, Literal, Unpack

from fusedstep.core.functions import DecoupledOptions as DecoupledOptions
from fusedstep.core.functions import Options as Options

__all__: list[str]

'''
_REST = "def __getattr__(name: str) -> Any: ...  # a rule that is not written out above\n"


def text() -> str:
    """Return the stub with all functions that the package has."""
    return _HEAD + "".join(f"{signature(outline)} ...\n" for outline in outlines(classes())) + _REST


if __name__ == "__main__":
    print(text(), end="")
