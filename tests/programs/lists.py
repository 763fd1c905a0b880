"""Programs as lists of numbers, as the engine takes them: drawn at random, and entered in the engine."""

from itertools import count

from fusedstep import _cpu

__all__ = ["CONDITIONS", "FIRST_RESULT", "MOST_SCALARS", "OPS", "TAKES", "crowded", "defined", "drawn", "program"]

OPS = {name: i for i, name in enumerate(_cpu.operations)}
CONDITIONS = ("less", "less_equal", "equal", "logical_and", "logical_or", "logical_not")  # what gives one
TAKES = dict.fromkeys(OPS, "xx") | dict.fromkeys(("sqrt", "negative", "absolute", "sign"), "x")
TAKES |= {"logical_and": "cc", "logical_or": "cc", "logical_not": "c", "where": "cxx"}  # elements and conditions
FIRST_RESULT = 6  # of operands of elements, behind p, g and four states
MOST_SCALARS = 24
CONSTANTS = (0.5, -2.0, 0.0, -0.0, 1.0, 1e-40, float("inf"), 3.0)  # that the scalars are

_numbers = count()


def defined(**lists):
    """Enter a program in the engine under a name of its own."""
    return _cpu.define(f"drawn:{next(_numbers)}", **lists)


def program(elements, update, states_after=(), scalars=0):
    """Return a program whose scalars are constants, as keywords of `define`."""
    return {
        "states": tuple("abcd"[: len(states_after)]),
        "hypers": (),
        "memory": (),
        "memory_start": [],
        "constants": [CONSTANTS[k % len(CONSTANTS)] for k in range(scalars)],
        "numbers": [],
        "memory_after": [],
        "scalars": [1 + k for k in range(scalars)],  # number 0 is t
        "elements": [(OPS[name], *([*operands, 0, 0, 0][:3])) for name, *operands in elements],
        "update": update,
        "states_after": [*states_after],
    }


def drawn(rng, operations, states=2, scalars=4, reach=0):
    """
    Return a random program.

    The operands of an operation are drawn from the last `reach` values before it, or from all: the more of them, the
    more are alive at once.
    """
    values, conditions, elements = list(range(2 + states)), [], []
    numbers = [-1 - k for k in range(scalars)]
    while len(elements) < operations:
        name = rng.choice([each for each in OPS if each != "power"])
        known = [conditions if kind == "c" else values[-reach:] for kind in TAKES[name]]
        pools = [numbers if numbers and (not some or rng.random() < 0.2) else some for some in known]
        if not all(pools) or all(pool is numbers for pool in pools):
            continue
        elements.append((name, *map(rng.choice, pools)))
        (conditions if name in CONDITIONS else values).append(FIRST_RESULT + len(elements) - 1)
    update = rng.choice(numbers if numbers and rng.random() < 0.1 else values[-6:])
    return program(elements, update, [rng.choice(values[-8:]) for _ in range(states)], scalars)


def crowded(values=0, conditions=0, scalars=0):
    """Return a program in which so many results, conditions and scalars are alive at once, and all arrays."""
    elements = [("multiply", i % 6, (i + 1 + i // 6) % 6) for i in range(values)]
    elements += [("less", i % 6, (i + 1 + i // 6) % 6) for i in range(conditions)]
    made = range(FIRST_RESULT, FIRST_RESULT + len(elements))
    last = 0
    for turn in ("add", "multiply"):  # each is needed twice
        for value in (*made, *(-1 - k for k in range(scalars if turn == "add" else 0))):
            is_condition = value >= FIRST_RESULT + values
            elements.append(("where", value, last, 1) if is_condition else (turn, last, value))
            last = FIRST_RESULT + len(elements) - 1
    for array in range(6):
        elements.append(("add", last, array))
        last += 1
    return program(elements, last, [last - 1, 2, 3, 4], scalars)
