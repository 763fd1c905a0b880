"""What a rule may choose, and what its class, its function and its reference make of unusual forms of a rule."""

import pickle

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu
from fusedstep.tools.verify import difference, outcome


def defined(source, **options):
    """Return the class of a rule that is called mine, from its text."""
    namespace = {"fs": fs, "np": np}
    exec(source, namespace)
    return fs.rule(**options)(namespace["mine"])


def with_hyper(name):
    return defined(f"def mine(g, *, lr=0.1, {name}=0.5): return lr * {name} * g")


def test_no_hyperparameter_is_taken_for_an_option():
    around = set.intersection(*(set(rule.hypers) for rule in _cpu.rules.values())) - {"lr"}
    assert {"low", "high", "master", "rounding_stochastic"} < around  # low and high are the bounds of parameters
    for name in sorted(around):
        with pytest.raises(ValueError, match=rf"^mine, line \d+ of .*: {name} is "):
            with_hyper(name)


@pytest.mark.parametrize("name", ["k", "x", "h", "least", "size", "beta", "inner", "start"])
def test_hyperparameters_that_are_their_own(name):
    cls, options = with_hyper(name), {"clip_global_norm": 1.0, "weight_decay": 0.1}
    for dtype in (np.float32, np.float64):
        found, expected = (outcome(each(**options), dtype, (1, 5, 33)) for each in (cls, cls.reference))
        assert difference(found, expected) == 0, dtype


def test_choices_are_text_or_bools():
    """A number would be one of the numbers of the reference, where a branch on it is always taken."""
    with pytest.raises(
        TypeError, match=r"^mine, line \d+ of .*: form has the choices \(1, 2\), expected text, True or False"
    ):
        defined("from typing import Literal\ndef mine(g, *, form: Literal[1, 2] = 1): return g")


def test_a_choice_that_cannot_be_is_refused_before_a_step():
    cls = defined("def mine(g, *, lr=0.5, soft=False): return lr * (np.tanh(g) if soft else g)")
    with pytest.raises(TypeError, match=r"^mine, line 1 of .*np.tanh"):
        cls(soft=True)
    opt, p = cls(), np.zeros(1)
    with pytest.raises(TypeError, match=r"^mine, line 1 of .*np.tanh"):
        opt.soft = True
    with pytest.raises(TypeError, match=r"^soft is 1, expected True or False"):
        opt.soft = 1
    assert opt.soft is False
    opt.step(p, np.ones(1))
    assert p.tolist() == [-0.5]


def test_a_choice_may_change_between_steps():
    cls = defined("def mine(g, *, lr=0.5, twice=False): return lr * (2 * g if twice else g)")
    opt, p = cls(), np.zeros(1)
    opt.step(p, np.ones(1))
    opt.twice = True
    opt.step(p, np.ones(1))
    assert p.tolist() == [-1.5]


def test_states_are_there_after_a_gradient():
    cls = defined("def mine(g, s, *, lr=0.5): return lr * g, s + g", states={"s": 0.5})
    for each in (cls, cls.reference):
        opt = each(ema=0.5)
        opt.step({"a": np.ones(2), "b": np.ones(2)}, {"a": np.ones(2)})
        assert {key: list(names) for key, names in opt.state.items() if names} == {"a": ["s"]}


def test_functions_of_rules_whose_hyperparameters_have_no_default():
    cls = defined("def mine(g, b, *, mu, lr=0.5): return lr * g, mu * b + g", states="b")
    p, b = np.zeros(2), np.ones(2)
    cls.functional(p, np.ones(2), b, mu=0.25, lr=2.0)
    assert (p.tolist(), b.tolist()) == ([-2.0, -2.0], [1.25, 1.25])
    with pytest.raises(TypeError, match="mu"):
        cls.functional(p, np.ones(2), b, lr=2.0)


def test_functions_of_rules_without_hyperparameters():
    cls = defined("def mine(g, *, k): return k * g, k / 2", memory={"k": 1.0})
    p = np.zeros(1)
    assert cls.functional(p, np.ones(1), t=1, k=1.0) == 0.5
    assert p.tolist() == [-1.0]


@fs.rule(states="m")
def plain(g, m, *, lr=0.1):
    return lr * g, m + g


def test_references_are_pickled():
    opt = plain.reference(lr=0.5)
    opt.step([np.ones(2)], [np.ones(2)])
    other = pickle.loads(pickle.dumps(opt))
    assert type(other) is plain.reference
    assert other.state[0]["m"].tolist() == [1.0, 1.0]
