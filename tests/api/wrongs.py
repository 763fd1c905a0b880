"""Changes of what an optimizer knows, and a check that all of them are refused."""

import copy
import math

from tests.api.runs import snapshot


def within(saved, *places, value=None, drop=False):
    """Return a deep copy with another value at a place."""
    saved = part = copy.deepcopy(saved)
    for place in places[:-1]:
        part = part[place]
    if drop:
        del part[places[-1]]
    else:
        part[places[-1]] = value
    return saved


class Unfit:
    def __float__(self):
        raise OverflowError


M = ("state", "w", "m")
JUNK = [None, 3, "x", b"x", [], [("w", 3)], {1}, True, math.nan]


def not_refused(make, wrongs, **options):
    """Return the wrong state dicts that are loaded, change something, or raise anything but a clear message."""
    opt, found = make(), []
    before = snapshot(opt)
    for label, wrong in wrongs:
        try:
            opt.load_state_dict(wrong, **options)
        except (TypeError, ValueError) as error:
            if ", expected " not in str(error) or snapshot(opt) != before:
                found.append((label, repr(error)))
        except Exception as error:
            found.append((label, repr(error)))
        else:
            found.append((label, "loaded"))
        if snapshot(opt) != before:
            opt = make()
            before = snapshot(opt)
    return found
