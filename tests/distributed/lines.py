"""Something that happens at any line of the package, on the thread that runs it."""

import sys


def at_line(number, act, call, *arguments, file=""):
    """
    Call a function, do something when the number-th line is about to run in the package, and return the place.

    What `act` raises is raised there. With `file`, only lines of files whose paths end so are counted. Without so many
    lines, the place is empty. Lines of the world of threads do not count: an error at the end of a `with`, where none
    can come but from here, would leave its lock closed for ever.
    """
    left, place = number, ""

    def trace(frame, event, _):
        nonlocal left, place
        path = frame.f_code.co_filename
        if "/fusedstep/" not in path or not path.endswith(file) or path.endswith("distributed/threaded.py"):
            return None
        if event == "line":
            left -= 1
            if not left:
                place = f"{path.rpartition('/')[2]}:{frame.f_lineno}"
                act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call(*arguments)
    finally:
        sys.settrace(before)
    return place
