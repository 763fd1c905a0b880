"""Names and defaults that a rule may have: each works in the class, its reference and its function, or is refused."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import pytest

import fusedstep as fs


def defined(arrays="g, m", numbers="lr=0.1", update="lr * g", after=", m", **options):
    """Return a class made of a function with these arguments and results."""
    namespace = {}
    exec(f"def mine({arrays}, *, {numbers}):\n    return {update}{after}", namespace)
    return fs.rule(**{"states": "m", **options})(namespace["mine"])


@pytest.mark.parametrize(
    "name", ["k", "rho", "h", "key", "value", "args", "inf", "T", "scale", "bool", "factor", "norm", "computed"]
)
def test_hyperparameters_of_many_names(name):
    cls = defined(numbers=f"lr=0.1, {name}=0.5", update=f"lr * {name} * g")
    p, q, r = np.ones(3), np.ones(3), np.ones(3)
    cls(**{name: 0.25}).step(p, p.copy())
    cls.reference(**{name: 0.25}).step(q, q.copy())
    cls.functional(r, r.copy(), np.zeros(3), lr=0.1, **{name: 0.25})
    assert p.tolist() == q.tolist() == r.tolist() == [0.975] * 3


@pytest.mark.parametrize(
    "name",
    # Those of methods of the reference would be called as numbers; those of what it keeps would be other numbers.
    ["initial", "average", "follow", "elem", "memory", "names", "param", "rule", "self", "cls", "options"],
)
def test_hyperparameters_whose_name_is_taken(name):
    with pytest.raises(ValueError, match=rf"^mine, line \d+ of .*: {name} is the name of"):
        defined(numbers=f"lr=0.1, {name}=0.5")


@pytest.mark.parametrize("name", ["self", "options", "master", "remainder"])
def test_states_whose_name_is_taken(name):
    with pytest.raises(ValueError, match=rf"^mine, line \d+ of .*: {name} is the name of"):
        defined(arrays=f"g, {name}", after=f", {name}", states=name)


@pytest.mark.parametrize("name", ["factor", "norm", "memory", "average", "k", "key"])
def test_states_of_many_names(name):
    cls = defined(arrays=f"g, {name}", update=f"lr * {name}", after=f", {name} + g", states=name)
    p, q, r, s = np.ones(3), np.ones(3), np.ones(3), np.zeros(3)
    mine, theirs = cls(), cls.reference()
    for _ in range(3):
        mine.step(p, np.full(3, 0.5))
        theirs.step(q, np.full(3, 0.5))
        cls.functional(r, np.full(3, 0.5), s, lr=0.1)
    assert p.tolist() == q.tolist() == r.tolist()
    assert p[0] < 1


def test_memory_has_no_range():
    """A memory that is called like a hyperparameter may be any number."""
    cls = defined("g", "beta1, lr=0.1", "lr * beta1 * g", ", beta1 * 3", states="", memory={"beta1": -2.0})
    p, mine, other = np.ones(2), cls(), cls()
    for _ in range(3):
        mine.step(p, np.ones(2))
    other.load_state_dict(mine.state_dict())
    assert other.state_dict()["memory"] == {0: {"beta1": -54.0}}
    assert cls.functional(p, np.ones(2), t=2, beta1=-7.0, lr=0.1) == -21.0


def test_a_state_that_starts_at_minus_zero_is_zero():
    cls = defined(update="m", states={"m": -0.0})
    p, q = -np.zeros(2), -np.zeros(2)
    cls().step(p, np.ones(2))
    cls.reference().step(q, np.ones(2))
    assert p.tobytes() == q.tobytes()


OPTIONS = [
    {"ema": 0.5},
    {"weight_decay": 0.1, "decoupled": True},
    {"bounds": (-1, 0.5)},
    {"frozen": True},
    {"measure": "update"},
    {"master_weights": True},
    {"clip_norm": 1.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=map(str, OPTIONS))
def test_defaults_of_options(options):
    cls = defined(**options)
    mine, told, theirs = cls(), defined()(**options), cls.reference()
    p, q, r = np.ones(3), np.ones(3), np.ones(3)
    for opt, array in ((mine, p), (told, q), (theirs, r)):
        for _ in range(3):
            opt.step(array, np.full(3, 0.5))
    assert p.tolist() == q.tolist() == r.tolist()
    assert repr(mine) == "mine(lr=0.1)"
    assert {name: mine.state_dict()["hyperparameters"][name] for name in options} == {
        name: told.state_dict()["hyperparameters"][name] for name in options
    }
    if "ema" in options:
        assert mine.ema[0].tolist() == told.ema[0].tolist() == theirs.ema[0].tolist()


@pytest.mark.parametrize("options", OPTIONS, ids=map(str, OPTIONS))
def test_functions_have_the_defaults_that_they_know(options):
    """A function of one update has no averages, and takes part in every step."""
    p, q = np.ones(3), np.ones(3)
    defined(**options).functional(p, np.full(3, 0.5), np.zeros(3), lr=0.1)
    known = {
        name: value for name, value in options.items() if name not in ("ema", "frozen", "measure", "master_weights")
    }
    defined().functional(q, np.full(3, 0.5), np.zeros(3), lr=0.1, **known)
    assert p.tolist() == q.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": -1.0}, r"^weight_decay is -1.0, expected 0 <= weight_decay < inf"),
        ({"weight_decay": "much"}, r"^weight_decay is 'much', expected a number"),
        ({"grad_scale": lambda t: 1.0}, r"^grad_scale is .*, expected a value, since the class has it, not one opt"),
        ({"clip_norm": 1.0, "clip_value": 1.0}, r"^clip_norm stands beside clip_value|^clip_value stands beside"),
        (
            {"states": ["m"]},
            r"^mine, line \d+ of .*: states is \['m'\], expected names in one string, or a mapping: name -> number",
        ),
        ({"memory": "k"}, r"^mine, line \d+ of .*: memory is 'k', expected a mapping: name -> number at the start"),
        ({"numbers": "lr=-0.1"}, r"^mine, line \d+ of .*: lr is -0.1, expected 0 <= lr < inf"),
        ({"numbers": "k=float('inf')"}, r"^mine, line \d+ of .*: k is inf, expected -inf < k < inf"),
        (
            {"numbers": "lr=lambda t: 0.1"},
            r"^mine, line \d+ of .*: lr has the default <function .*, expected a finite number, a b",
        ),
        ({"numbers": "t=1, lr=0.1"}, r"^mine, line \d+ of .*: t has a default, expected none"),
        ({"arrays": "g, m=None"}, r"^mine, line \d+ of .*: m has a default, expected none"),
        (
            {"numbers": ", ".join(f"k{i}=0.1" for i in range(13))},
            r"^mine, line \d+ of .*: has 13 hyperparameters, expected at most 12",
        ),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        defined(**options)


def test_only_functions_are_rules():
    with pytest.raises(TypeError, match=r"^fs.rule is given a function, expected parentheses behind it: @fs.rule"):
        fs.rule(lambda g: g)
    with pytest.raises(TypeError, match=r"^a rule is of type partial, expected a function"):
        fs.rule()(functools.partial(lambda g, *, k: g, k=1.0))


def test_annotations_may_be_text():
    @fs.rule()
    def mine(g, *, lr: float = 0.1, form: Literal["once", "twice"] = "once"):
        return lr * g if form == "once" else 2 * lr * g

    p = np.ones(1)
    mine(lr=0.25, form="twice").step(p, np.ones(1))
    assert p.tolist() == [0.5]


def test_a_lambda_has_a_function():
    p = np.ones(1)
    fs.rule()(lambda g, *, lr=0.1: lr * g).functional(p, np.ones(1), lr=0.5)
    assert p.tolist() == [0.5]


# What a function does with symbols.


def test_exponents_are_whole():
    cls = defined(numbers="t, lr=0.1", update="lr ** (2 * t - 1) * g")
    p = np.ones(1)
    cls(lr=0.5).step(p, np.ones(1))
    assert p.tolist() == [0.5]
    for exponent in ("lr", "(t / 2)", "(t + 0.5)", "float('inf')"):
        with pytest.raises(TypeError, match=r"^mine.*: (a power whose exponent may be no whole number|a power of inf)"):
            defined(numbers="t, lr=0.1", update=f"0.9**{exponent} * lr**{exponent} * g")


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ("{g: 1.0}[g] * m", "a symbol is no key of a dict"),
        ("round(g)", "rounding to whole numbers is no operation of a rule"),
        ("10**400 * g", "an integer that is too large for a float"),
    ],
)
def test_other_uses_of_symbols(update, message):
    with pytest.raises(TypeError, match=rf"^mine.*: {message}"):
        defined(update=update)


def test_symbols_of_another_call():
    kept = []

    @fs.rule()
    def first(g, *, lr=0.1):
        kept.append(lr * g)
        return kept[0]

    with pytest.raises(TypeError, match=r"second, line \d+ .*: a value that another call has computed"):

        @fs.rule()
        def second(g):
            return g + kept[0]

    with pytest.raises(TypeError, match=r"^third, line \d+ of .*: the update is "):

        @fs.rule()
        def third(g):
            return kept[0]


def test_long_functions_are_traced_in_no_time():
    """Selections that share operands are looked at once, and not in all combinations."""
    with pytest.raises(
        ValueError, match=r"^mine, line \d+ of .*: has 9002 operations on elements, expected at most 64"
    ):

        @fs.rule()
        def mine(g, *, lr=0.1):
            x = lr * g
            for _ in range(3000):
                x = np.maximum(np.where(g > 0, x, -x), x)
            return x
