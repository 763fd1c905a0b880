"""Interrupts by the user at any line of the package."""

import linecache
import sys
from collections import Counter


def interrupted(call, number, most=1000):
    """
    Call a function with an interrupt at the number-th line that is run in the package; return whether.

    A line counts at most `most` times. Two kinds of events are left out, since CPython looks for signals at neither:
    the second one of a `with`, which comes when its block has been left and before `__exit__` is called, and that of a
    `try`, an instruction that does nothing and belongs to no block.
    """
    left, visits = number, Counter()

    def trace(frame, event, arg):
        nonlocal left
        code, line = frame.f_code, frame.f_lineno
        if "fusedstep" not in code.co_filename:
            return None
        if event == "line":
            text = linecache.getline(code.co_filename, line).strip()
            visits[code, line] += 1
            visits[frame, line] += 1
            is_end = text.startswith("with ") and visits[frame, line] % 2 == 0
            if visits[code, line] <= most and text != "try:" and not is_end:
                left -= 1
                if not left:
                    raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
