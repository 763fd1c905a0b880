"""What a function computes becomes exactly those operations, in that order, and no others."""

import math

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu


def shown(function, **options):
    """Return the lines of a program: those of numbers, and those of elements."""
    *numbers, elements, _ = fs.rule(**options)(function).program.show().split("\n\n")
    return "".join(numbers).splitlines(), elements.splitlines()


def operations(function, **options):
    """Return the names of the operations on elements, in their order."""
    return [_cpu.operations[op[0]] for op in fs.rule(**options)(function).program.elements]


ELEMENTS = {
    "add": lambda g, m: g + m,
    "subtract": lambda g, m: g - m,
    "multiply": lambda g, m: g * m,
    "divide": lambda g, m: g / m,
    "sqrt": lambda g, m: fs.sqrt(g) * m,
    "maximum": lambda g, m: np.maximum(g, m),
    "minimum": lambda g, m: np.minimum(g, m),
    "sign": lambda g, m: np.sign(g),
    "absolute": lambda g, m: abs(g) * m,
    "negative": lambda g, m: -g * m,
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_operations(name):
    assert operations(lambda g, m, *, lr=0.1: (ELEMENTS[name](g, m), lr * m), states="m")[0] == name


SAME = {
    "square": (lambda g: g**2, lambda g: g * g),
    "np.square": (lambda g: np.square(g), lambda g: g * g),
    "root": (lambda g: g**0.5, lambda g: fs.sqrt(g)),
    "np.sqrt": (lambda g: np.sqrt(g), lambda g: fs.sqrt(g)),
    "reciprocal": (lambda g: g**-1, lambda g: 1 / g),
    "np.reciprocal": (lambda g: np.reciprocal(g), lambda g: 1.0 / g),
    "positive": (lambda g: +g, lambda g: g),
    "magnitude": (lambda g: np.abs(g), abs),
    "functions": (lambda g: np.add(np.multiply(g, 2), np.divide(g, 3)), lambda g: g * 2.0 + g / 3.0),
    "greater": (lambda g: np.where(g > 1, g, 0.0), lambda g: np.where(1 < g, g, 0.0)),  # noqa: SIM300
    "at least": (lambda g: np.where(g >= 1, g, 0.0), lambda g: np.where(np.less_equal(1.0, g), g, 0.0)),
    "other": (lambda g: np.where(g != 1, g, 0.0), lambda g: np.where(~(g == 1), g, 0.0)),
    "logic": (lambda g: np.where((g < 1) & ~(g < 0), g, 1.0),
              lambda g: np.where(np.logical_and(g < 1, np.logical_not(g < 0)), g, 1.0)),
    "condition": (lambda g: (g > 0) * g, lambda g: np.where(g > 0, 1.0, 0.0) * g),
    "clip": (lambda g: np.clip(g, -1, 1), lambda g: np.minimum(np.maximum(g, -1.0), 1.0)),
    "in place": (lambda g: inplace(g), lambda g: (g + 1.0) * 2.0),
}  # fmt: skip


def inplace(g):
    g += 1.0
    g *= 2
    return g


@pytest.mark.parametrize("name", SAME)
def test_spellings_of_one_program(name):
    first, second = (traced_of(each) for each in SAME[name])
    assert first == second


def traced_of(computed):
    @fs.rule()
    def mine(g):
        return computed(g)

    return mine.program


def test_groups_and_orders_are_the_users():
    assert shown(lambda g, m, *, k=0.5: (k * g * m, k * (g * m)), states="m")[1] == [
        "x0 = k * g",
        "x1 = x0 * m",
        "x2 = g * m",
        "x3 = k * x2",
        "m = x3",
        "p = p - x1",
    ]
    first, second = (traced_of(each) for each in (lambda g: g * 2 + 1, lambda g: 1 + g * 2))
    assert first != second


def test_equal_operations_are_one():
    assert operations(lambda g, m: (g * m + g * m, g * m), states="m") == ["multiply", "add"]
    assert operations(lambda g, m: (g * m, m * g), states="m") == ["multiply", "multiply"]


def test_what_nobody_needs_is_dropped():
    def mine(g, m, *, lr=0.1, k=0.5):
        unused = np.sqrt(m) / (k * lr)
        del unused
        return lr * g, lr * m

    numbers, elements = shown(mine, states="m")
    assert numbers == []
    assert elements == ["x0 = lr * g", "x1 = lr * m", "m = x1", "p = p - x0"]


def test_numbers_are_derived_once():
    def mine(g, *, t, lr=0.1, beta=0.9):
        return lr * fs.sqrt(1 - beta**t) / (1 - beta**t) * g

    program = fs.rule()(mine).program
    assert [_cpu.operations[op[0]] for op in program.numbers] == ["power", "subtract", "sqrt", "multiply", "divide"]
    assert [_cpu.operations[op[0]] for op in program.elements] == ["multiply"]
    assert program.show().endswith("1 operations on each element, 0 of them divisions or roots")


def test_a_number_is_applied_where_it_stands():
    assert operations(lambda g, *, lr=0.1, beta=0.9: lr * g / (1 - beta)) == ["multiply", "divide"]
    assert operations(lambda g, *, lr=0.1, beta=0.9: lr / (1 - beta) * g) == ["multiply"]


def test_constants_are_told_apart_by_bits():
    program = traced_of(lambda g: np.where(g > 0.0, np.where(g == 1, -0.0, 0.0), g + 1))
    assert [math.copysign(1, x) for x in program.constants if x == 0] == [1.0, -1.0]
    assert len(program.constants) == 3
    assert traced_of(lambda g: g + 0.0).digest != traced_of(lambda g: g + -0.0).digest
    assert len(traced_of(lambda g: (g * math.nan) * math.nan).constants) == 1


# Results, and how many operations they are: a result that is only moved has one more, which drops subnormal numbers.
RESULTS = {
    "inputs": (lambda g, m: (g, m), 2),
    "signs": (lambda g, m: (-g, abs(m)), 4),
    "selections": (lambda g, m: (np.where(g > 0, g, m), np.maximum(m, 0.0)), 5),
    "computed": (lambda g, m: (g + m, g + m), 1),
    "selections of computed": (lambda g, m: (-(g + m), np.where(g > 0, g + m, 0.0)), 4),
    "constants": (lambda g, m: (np.where(g > 0, 1.0, 0.0), np.sign(m)), 3),
    "one of two": (lambda g, m: (np.where(g > 0, g * m, m), g * m), 4),
}


@pytest.mark.parametrize("name", RESULTS)
def test_what_is_only_moved_is_multiplied_by_one(name):
    computed, count = RESULTS[name]
    assert len(operations(lambda g, m: computed(g, m), states="m")) == count


def test_the_parameter_stands_before_or_behind_the_gradient():
    first = shown(lambda p, g, m, *, lr=0.1: (lr * p - g, lr * m), states="m")
    assert first == shown(lambda g, p, m, *, lr=0.1: (lr * p - g, lr * m), states="m")
    assert first[1] == ["x0 = lr * p", "x1 = x0 - g", "x2 = lr * m", "m = x2", "p = p - x1"]


def test_memory():
    numbers, elements = shown(lambda g, *, t, k, j: (k * g, k * t, 1.0), memory={"k": 1.0, "j": 2.0})
    assert numbers == ["n0 = k * t", "k = n0", "j = 1.0"]
    assert elements == ["x0 = k * g", "p = p - x0"]


def test_the_learning_rate_comes_first():
    program = fs.rule()(lambda g, *, beta=0.5, lr=0.1: lr * beta * g).program
    assert program.hypers == ("lr", "beta")


def test_a_program_for_each_choice():
    calls = []

    @fs.rule()
    def mine(g, *, lr=0.1, halved=False):
        calls.append(halved)
        return lr * (0.5 * g if halved else g)

    assert calls == [False]
    mine(halved=True), mine(halved=True), mine()
    assert calls == [False, True]


def test_divisions_and_roots_are_counted():
    text = str(traced_of(lambda g: g / fs.sqrt(g * g + 1) + g**-1))
    assert text.endswith("6 operations on each element, 3 of them divisions or roots")


def of_operations(g, lr, count):
    for _ in range(count):
        g = g * g
    return g


def of_numbers(g, lr, count):
    for _ in range(count):
        lr = lr * lr
    return lr * g


def of_constants(g, lr, count):
    for i in range(count):
        lr = lr + (i + 3.5)
    return lr * g


def of_scalars(g, lr, count):
    for i in range(count):
        g = g * (lr + i if i else lr)
    return g


LIMITS = {
    "operations on elements": (of_operations, 64),
    "operations on numbers": (of_numbers, 64),
    "constants": (of_constants, 32),
    "numbers that elements are computed from": (of_scalars, 24),
}


@pytest.mark.parametrize("what", LIMITS)
def test_limits(what):
    computed, most = LIMITS[what]

    def define(count):
        @fs.rule()
        def mine(g, *, lr=0.1):
            return computed(g, lr, count)

        return mine

    p = np.ones(3)
    define(most)().step(p, np.ones(3))
    with pytest.raises(ValueError, match=rf"^mine, line \d+ of .*: has {most + 1} {what}, expected at most {most}$"):
        define(most + 1)
