"""More of what people try in a rule: each is refused in the line where it stands, and nothing is defined."""

import math

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu


def added(g, m, lr, t):
    m[...] += g


NO_FLOAT = r"a symbol is no float, expected fs.sqrt"
NO_BRANCH = r"expected np.where\(condition, x, y\)"
NO_ELEMENTS = r"a symbol has no elements to look at one by one"
NO_REDUCTION = r"a rule computes each element by itself, so it has no reductions over a tensor"
NO_OPERATION = r"is no operation of a rule, expected one of absolute, add"
OPERAND = r"an operand is of type \w+, expected a number or what the rule computes"

REFUSED = {
    "abs of math": (lambda g, m, lr, t: math.fabs(g), NO_FLOAT),
    "exp of math": (lambda g, m, lr, t: math.exp(-lr) * g, NO_FLOAT),
    "pow of math": (lambda g, m, lr, t: math.pow(lr, t) * g, NO_FLOAT),
    "int": (lambda g, m, lr, t: g * int(t), NO_FLOAT),
    "float": (lambda g, m, lr, t: g * float(lr), NO_FLOAT),
    "range": (lambda g, m, lr, t: [g for _ in range(t)], NO_FLOAT),
    "not": (lambda g, m, lr, t: not g, NO_BRANCH),
    "or": (lambda g, m, lr, t: g > 0 or m > 0, NO_BRANCH),
    "a chain": (lambda g, m, lr, t: 0 < g < 1, NO_BRANCH),
    "max": (lambda g, m, lr, t: max(g, m), NO_BRANCH),
    "a branch on the count": (lambda g, m, lr, t: g if t == 1 else m, r"a number that may be scheduled"),
    "log of elements": (lambda g, m, lr, t: np.log(g), r"exp, log and the like differ between machines: a number"),
    "isnan": (lambda g, m, lr, t: np.where(np.isnan(g), 0.0, g), rf"np.isnan {NO_OPERATION}"),
    "floor": (lambda g, m, lr, t: g // 2, rf"np.floor_divide {NO_OPERATION}"),
    "xor": (lambda g, m, lr, t: (g > 0) ^ (m > 0), rf"np.bitwise_xor {NO_OPERATION}"),
    "zeros": (lambda g, m, lr, t: np.zeros_like(g), rf"np.zeros_like {NO_OPERATION}"),
    "stack": (lambda g, m, lr, t: np.stack([g, m]), rf"np.stack {NO_OPERATION}"),
    "cube": (lambda g, m, lr, t: g**3, r"elements to a power other than 2, 0.5 or -1, expected products: x \* x \* x"),
    "power of elements": (lambda g, m, lr, t: g**m, r"elements to a power other than 2, 0.5 or -1"),
    "negative power": (lambda g, m, lr, t: lr**-2 * g, r"a power of -2, expected 0.5, -1, or a whole number"),
    "np.max": (lambda g, m, lr, t: np.max(g), rf"np.max: {NO_REDUCTION}"),
    "reduce": (lambda g, m, lr, t: np.maximum.reduce(g), rf"np.maximum.reduce: {NO_REDUCTION}"),
    "matmul": (lambda g, m, lr, t: np.matmul(g, m), rf"np.matmul: {NO_REDUCTION}"),
    "einsum": (lambda g, m, lr, t: np.einsum("i,i", g, m), rf"np.einsum: {NO_REDUCTION}"),
    "cumsum": (lambda g, m, lr, t: np.cumsum(g), rf"np.cumsum: {NO_REDUCTION}"),
    "std": (lambda g, m, lr, t: g / g.std(), rf"\.std: {NO_REDUCTION}"),
    "sum": (lambda g, m, lr, t: sum(g), NO_ELEMENTS),
    "a loop": (lambda g, m, lr, t: list(g), NO_ELEMENTS),
    "in": (lambda g, m, lr, t: 0 in g, NO_ELEMENTS),
    "len": (lambda g, m, lr, t: g * len(g), NO_ELEMENTS),
    "an added assignment": (added, NO_ELEMENTS),
    "format": (lambda g, m, lr, t: f"{g:.3f}", r"a symbol has no value to show"),
    "an array of symbols": (lambda g, m, lr, t: np.array([g, m]), r"a symbol is no array"),
    "an array of a symbol": (lambda g, m, lr, t: np.asarray(g), r"a symbol is no array"),
    "copy": (lambda g, m, lr, t: g.copy(), r"\.copy is no part of a symbol"),
    "method": (lambda g, m, lr, t: g.clip(0, 1), r"\.clip is no part of a symbol"),
    "where with one": (lambda g, m, lr, t: np.where(g > 0), r"np.where has other arguments, expected np.where\(cond"),
    "clip by name": (lambda g, m, lr, t: np.clip(g, a_min=0, a_max=1), r"np.clip has other arguments, expected np.cl"),
    "where of conditions": (lambda g, m, lr, t: np.where(g > 0, g > 1, m > 1), r"np.where selects between conditions"),
    "compared conditions": (lambda g, m, lr, t: (g > 0) == (m > 0), r"conditions are compared, expected numbers"),
    "product of conditions": (lambda g, m, lr, t: (g > 0) * (m > 0), r"both operands are conditions"),
    "bits": (lambda g, m, lr, t: g & m, r"an operand of logical_and is no condition, expected a comparison"),
    "no condition": (lambda g, m, lr, t: ~g, r"an operand of logical_not is no condition, expected a comparison"),
    "dtype": (lambda g, m, lr, t: np.sqrt(g, dtype="f4"), r"np.sqrt has dtype, expected a plain call"),
    "where=": (lambda g, m, lr, t: np.sqrt(g, where=True), r"np.sqrt has where, expected a plain call"),
    "in place": (lambda g, m, lr, t: np.multiply(g, m, out=m), r"np.multiply has out, expected a plain call"),
    "an integer of NumPy": (lambda g, m, lr, t: np.int64(2) * g, r"is a number of NumPy, expected a Python number"),
    "an array of no dimensions": (lambda g, m, lr, t: g * np.array(2.0), r"an array that is no argument of the rule"),
    "complex": (lambda g, m, lr, t: g * 1j, OPERAND),
    "list": (lambda g, m, lr, t: g * [1.0], OPERAND),
    "text": (lambda g, m, lr, t: "a" + g, OPERAND),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_its_line(case):
    computed, message = REFUSED[case]
    before = dict(_cpu.rules)
    with pytest.raises(TypeError, match=rf"^mine, line \d+ of \S+test_refusals.py: `.+`: .*{message}"):

        @fs.rule(states="m")
        def mine(g, m, *, t, lr=0.1):
            u = computed(g, m, lr, t)
            return u, m

    assert before == _cpu.rules


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("None", r"^mine, line \d+ of .*: returns 1 results, expected 2: the update, state m$"),
        ("(g,)", r"^mine, line \d+ of .*: returns 1 results, expected 2"),
        ("(g, m, m)", r"^mine, line \d+ of .*: returns 3 results, expected 2"),
        ("{'u': g}", r"^mine, line \d+ of .*: returns 1 results, expected 2"),
        ("(1.0, m)", r"^mine, line \d+ of .*: the update is 1.0, expected elements"),
        ("(lr, m)", r"^mine, line \d+ of .*: the update is a number, expected elements"),
        ("(g, lr)", r"^mine, line \d+ of .*: state m is a number, expected elements"),
        ("(g, g > 0)", r"^mine, line \d+ of .*: state m is a condition, expected elements"),
        ("(np.zeros(3), m)", r"^mine, line \d+ of .*: the update is array\(.*\), expected elements"),
    ],
)
def test_results_that_are_none(result, message):
    namespace = {"np": np}
    exec(f"def mine(g, m, *, lr=0.1): return {result}", namespace)
    with pytest.raises((TypeError, ValueError), match=message):
        fs.rule(states="m")(namespace["mine"])
