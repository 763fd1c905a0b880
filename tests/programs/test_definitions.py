"""What no rule can do is refused when it is defined, with the user's own line and what to write instead."""

import math
from typing import Literal

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu

OUTSIDE = np.ones(3)


def body(computed, states="m", **options):
    """Return a function that defines a rule whose update is `computed`, a function of g, m, lr and t."""

    def define():
        @fs.rule(states=states, **options)
        def mine(g, m, *, t, lr=0.1):
            u = computed(g, m, lr, t)
            return u, m

        return mine

    return define


def assigned(g, m, lr, t):
    m[...] = g


REFUSED = {
    "a branch": (lambda g, m, lr, t: g if g > 0 else m, r"a rule is the same for all elements: expected np.where"),
    "and": (lambda g, m, lr, t: g > 0 and m > 0, r"expected np.where"),
    "a branch on a number": (lambda g, m, lr, t: g if lr > 0 else m, r"a number that may be scheduled, expected np.wh"),
    "math": (lambda g, m, lr, t: math.sqrt(1 - lr) * g, r"expected fs.sqrt"),
    "exp": (lambda g, m, lr, t: np.exp(g), r"np.exp is no operation of a rule, expected one of absolute, add"),
    "log of a number": (lambda g, m, lr, t: np.log(lr) * g, r"a hyperparameter, which may be a function of the step"),
    "a power": (lambda g, m, lr, t: g**0.3, r"elements to a power other than 2, 0.5 or -1, expected products"),
    "a power of numbers": (lambda g, m, lr, t: lr**0.3 * g, r"a power of 0.3, expected 0.5, -1, or a whole number"),
    "an exponent of elements": (lambda g, m, lr, t: 2.0**g, r"a power whose exponent differs from element to element"),
    "a mean": (lambda g, m, lr, t: g - g.mean(), r"\.mean: a rule computes each element by itself, so it has no red"),
    "a sum": (lambda g, m, lr, t: np.sum(g) * g, r"np.add.reduce|np.sum: a rule computes each element by itself"),
    "a norm": (lambda g, m, lr, t: g / np.linalg.norm(g), r"np.norm: a rule computes each element by itself"),
    "a matrix": (lambda g, m, lr, t: g @ m, r"a matrix product: a rule computes each element by itself"),
    "an assignment": (assigned, r"an assignment to elements, expected a new value, which the rule returns"),
    "out": (lambda g, m, lr, t: np.add(g, m, out=g), r"np.add has out, expected a plain call"),
    "an outside array": (lambda g, m, lr, t: g + OUTSIDE, r"an array that is no argument of the rule, expected a sta"),
    "a number of NumPy": (lambda g, m, lr, t: g * np.float64(2), r"is a number of NumPy, expected a Python number"),
    "a bool": (lambda g, m, lr, t: g * True, r"True stands for a number, expected 1.0 or 0.0"),
    "None": (lambda g, m, lr, t: g * None, r"an operand is of type NoneType, expected a number or what the rule comp"),
    "an element": (lambda g, m, lr, t: g[0], r"a symbol has no elements to look at one by one"),
    "a shape": (lambda g, m, lr, t: g * g.size, r"\.size is no part of a symbol"),
    "a sum of conditions": (
        lambda g, m, lr, t: (g > 0) + (m > 0),
        r"both operands are conditions, expected np.logical",
    ),
    "no condition": (lambda g, m, lr, t: np.where(g, m, g), r"the condition of np.where is none, expected a compari"),
    "a remainder": (lambda g, m, lr, t: g % 2, r"np.remainder is no operation of a rule, expected one of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_rule_can_do(case):
    computed, message = REFUSED[case]
    before = dict(_cpu.rules)
    with pytest.raises(TypeError, match=rf"mine, line \d+ of .*test_definitions.py: `.*`: .*{message}"):
        body(computed)()
    assert before == _cpu.rules


def test_the_line_is_the_users_own():
    with pytest.raises(
        TypeError, match=r"shrunk, line \d+ of \S+test_definitions.py: `u = np.tanh\(g\)`: np.tanh is no"
    ):

        @fs.rule()
        def shrunk(g, *, lr=0.1):
            u = np.tanh(g)
            return lr * u


def test_results():
    with pytest.raises(TypeError, match=r"^mine, line \d+ of .*: the update is a number, expected elements"):
        body(lambda g, m, lr, t: lr * t)()
    with pytest.raises(TypeError, match=r"^mine, line \d+ of .*: the update is a condition, expected elements"):
        body(lambda g, m, lr, t: g > 0)()
    with pytest.raises(TypeError, match=r"^mine, line \d+ of .*: the update is None, expected elements"):
        body(lambda g, m, lr, t: None)()
    with pytest.raises(ValueError, match=r"^mine, line \d+ of .*: returns 1 results, expected 2: the update, state m$"):

        @fs.rule(states="m")
        def mine(g, m):
            return g + m

    with pytest.raises(TypeError, match=r"^mine, line \d+ of .*: memory k is an element, expected a number"):

        @fs.rule(memory={"k": 1.0})
        def mine(g, *, k):
            return g, g * k


def test_limits():
    def chained(n):
        @fs.rule()
        def mine(g, *, lr=0.1):
            for _ in range(n):
                g = g * g + lr
            return g

        return mine

    assert len(chained(32).program.elements) == 64
    with pytest.raises(ValueError, match=r"^mine, line \d+ of .*: has 66 operations on elements, expected at most 64$"):
        chained(33)
    with pytest.raises(
        ValueError, match=r"^mine, line \d+ of .*: has 26 numbers that elements are computed from, expected at most 24"
    ):

        @fs.rule()
        def mine(g, *, lr=0.1):
            return sum((lr + k) * g for k in range(1, 26))

    with pytest.raises(ValueError, match=r"^mine, line \d+ of .*: states has 5 names, expected at most 4"):
        body(lambda g, m, lr, t: g, states="m a b c d")()


def test_signatures():
    def refuse(function, message, error=TypeError, **options):
        with pytest.raises(error, match=message):
            fs.rule(**options)(function)

    refuse(lambda m, g: g, r"the positional arguments are m, g, expected g, m, or p too", states="m")
    refuse(lambda g: g, r"the positional arguments are g, expected g, m", states="m")
    refuse(lambda *args: args, r"\*args among the arguments")
    refuse(lambda g, **options: g, r"\*\*options among the arguments")
    refuse(lambda g, *, lr="fast": g, r'lr is text, expected its choices: lr: Literal\["fast", ...\]')
    refuse(lambda g, *, lr=None: g, r"lr has the default None, expected a finite number, a bool or a Literal")
    refuse(lambda g, *, k=1.0: g, r"k is memory and has a default", memory={"k": 1.0})
    refuse(lambda g: g, r"the memory k is no argument", memory={"k": 1.0})
    refuse(lambda g, *, ema=0.1: g, r"ema is the name of an option or a method", ValueError)
    refuse(lambda g, step: (g, step), r"step is the name of an option or a method", ValueError, states="step")
    refuse(lambda g, *, program=1.0: g, r"program is the name of an option", ValueError)
    refuse(lambda g, m: (g, m), r"states is 'm m', expected different names", ValueError, states="m m")
    refuse(lambda g, m: (g, m), r"m starts at 'zero', expected a number", states={"m": "zero"})
    with pytest.raises(TypeError, match=r"^learning_rate is no option of an optimizer, expected one of grad_scale"):
        fs.rule(learning_rate=0.1)


# What the engine checks once more.

PLAIN = {
    "name": "wrong",
    "states": ("m",),
    "hypers": ("lr",),
    "memory": (),
    "memory_start": [],
    "constants": [],
    "numbers": [],
    "memory_after": [],
    "scalars": [0],
    "elements": [(_cpu.operations.index("multiply"), -1, 1, 0)],
    "update": 6,
    "states_after": [2],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elements": [(0, 7, 1, 0)]}, "number 1 is not there"),
        ({"elements": [(0, 6, 1, 0)]}, "number 0 is not there"),
        ({"elements": [(0, 3, 1, 0)]}, "number 1 is not there"),
        ({"name": "adam"}, "there is a rule of this name already"),
        ({"elements": [(0, -2, 1, 0)]}, "number 1 is not there"),
        ({"elements": [(99, 1, 1, 0)]}, "there is no operation number"),
        ({"elements": [(-1, 1, 1, 0)]}, "there is no operation number"),
        ({"elements": [(_cpu.operations.index("power"), 1, 1, 0)]}, "a power is of numbers only"),
        ({"elements": [(0, -1, -1, 0)]}, "has numbers only"),
        ({"elements": [(_cpu.operations.index("where"), 1, 1, 1)]}, "a condition stands in place of an element"),
        ({"elements": [(_cpu.operations.index("less"), 1, 2, 0)]}, "a condition is no result"),
        ({"elements": [(0, 1, 1)]}, "an operation has a number and three operands"),
        ({"elements": [(0, 1, 1, 0)] * 65}, "elements has 65 items, expected at most 64"),
        ({"elements": [(0, 10**30, 1, 0)]}, "number 32761 is not there"),
        ({"elements": [(0, "1", 1, 0)]}, "an item is of type str, expected a whole number"),
        ({"elements": [[0, 1, 1, 0]]}, "an item is of type list, expected a tuple"),
        ({"constants": [None]}, "an item is of type NoneType, expected a number"),
        ({"constants": [10**400]}, "int too large to convert to float"),
        ({"update": 7}, "number 1 is not there"),
        ({"update": 6 + 2**16}, "number"),
        ({"states_after": []}, "expected a name for each state"),
        ({"scalars": [5]}, "number 5 is not there"),
        ({"scalars": [-1]}, "number -1 is not there"),
        ({"numbers": [(0, 2, 0, 0)]}, "number 2 is not there"),
        ({"constants": [1.0] * 33}, "constants has 33 items"),
        ({"memory_after": [0]}, "as many memories after as before"),
        ({"hypers": ("lr", "a b")}, "expected an identifier"),
        ({"hypers": tuple(f"h{i}" for i in range(13))}, "the number of hyperparameters is 13, expected at most 12"),
    ],
)
def test_a_program_that_is_none(change, message):
    with pytest.raises((TypeError, ValueError, OverflowError), match=message):
        _cpu.define(**PLAIN | change)
    assert "wrong" not in _cpu.rules


def test_choices():
    @fs.rule(states="b")
    def mine(g, b, *, lr=0.1, nesterov=False, form: Literal["sum", "mean"] = "sum"):
        b = 0.5 * b + (g if form == "sum" else 0.5 * g)
        return lr * (0.5 * b + g if nesterov else b), b

    p = np.ones(2)
    mine(lr=1.0, nesterov=True, form="mean").step(p, np.ones(2))
    assert p.tolist() == [-0.25, -0.25]
    with pytest.raises(ValueError, match=r"^form is 'max', expected one of 'sum', 'mean'"):
        mine(form="max")
    with pytest.raises(ValueError, match=r"overrides\['w'\] asks for the rule"):
        mine(overrides={"w": {"nesterov": True}})
    with pytest.raises(TypeError, match=r"^nesterov is no option of mine"):
        mine.functional(p, np.ones(2), np.ones(2), lr=0.1, nesterov=True)


def test_how_rules_run():
    assert fs.info()["rules"] in ("code", "machine")
    fs.use_rules("machine")
    try:
        assert fs.info()["rules"] == "machine"
        assert fs.info()["rules_from"] == "use_rules"
    finally:
        fs.use_rules("auto")
    with pytest.raises(ValueError, match=r"^name is 'jit', expected 'auto', 'machine' or 'code'"):
        fs.use_rules("jit")
    with pytest.raises(TypeError, match=r"^name is None"):
        fs.use_rules(None)
    isa = _cpu.isa()
    try:
        fs.use_isa(_cpu.isas[0])
        assert fs.info()["rules"] == "machine"
        with pytest.raises(ValueError, match=r"^name is 'code', expected 'auto' or 'machine': code is made for"):
            fs.use_rules("code")
    finally:
        fs.use_isa(isa)
