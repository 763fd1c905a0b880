"""A look at the interpreter before the compiled module is loaded, which would hang in a sub-interpreter of 3.11."""

import ctypes
import sys

__all__ = ["check"]


def check() -> None:
    """Refuse a sub-interpreter; from Python 3.12 on, Python itself does so."""
    if sys.version_info < (3, 12):
        pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p)
        now, main = (pointer((f"PyInterpreterState_{name}", ctypes.pythonapi))() for name in ("Get", "Main"))
        if now != main:
            raise ImportError(
                "fusedstep is imported in a sub-interpreter, expected the main one, since it would wait for ever: with "
                "mod_wsgi, set WSGIApplicationGroup %{GLOBAL}",
                name="fusedstep",
            )


check()
