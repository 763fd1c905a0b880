"""The reference of a rule that is a function: numbers worked out by hand, and the bits of what is easily mistaken."""

import math

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu
from fusedstep.tools.verify import difference, outcome

TINY = 1e-40  # subnormal in float32
SMALL = 1e-300


pytestmark = pytest.mark.usefixtures("both_ways")


def same_bits(cls, **options):
    """Compare a class with its reference, on every instruction set."""
    for dtype in (np.float32, np.float64):
        expected = outcome(cls.reference(**options), dtype, (1, 5, 33, 129))
        for isa in _cpu.isas:
            fs.use_isa(isa)
            assert difference(outcome(cls(**options), dtype, (1, 5, 33, 129)), expected) == 0, (dtype, isa)


def stepped(cls, p, g, **options):
    """Return a parameter after one step of a reference, its states and its memory."""
    opt = cls.reference(**options)
    opt.step([p], [np.asarray(g, p.dtype)])
    return p, opt.state[0], opt.memory[0]


# By hand.


def test_momentum():
    @fs.rule(states="b")
    def heavy(g, b, *, lr=0.5, mu=0.25):
        b = mu * b + g
        return lr * b, b

    opt, p = heavy.reference(), np.array([1.0, -1.0])
    for _ in range(2):
        opt.step([p], [np.array([2.0, 4.0])])
    assert opt.state[0]["b"].tolist() == [2.5, 5.0]
    assert p.tolist() == [1 - 0.5 * 2.0 - 0.5 * 2.5, -1 - 0.5 * 4.0 - 0.5 * 5.0]


def test_counts_starts_memory_and_parameters():
    @fs.rule(states={"s": 0.5}, memory={"k": 2.0})
    def mixed(g, p, s, *, t, k, rate=0.25):
        s = s + np.abs(g)
        return rate * k * p + np.where(t == 1, 0.0, s), s, k * t + 1

    opt, p = mixed.reference(), np.array([4.0, -8.0])
    opt.step([p], [np.array([-1.0, 2.0])])
    assert p.tolist() == [4 - 0.5 * 4, -8 + 0.5 * 8]
    assert opt.state[0]["s"].tolist() == [1.5, 2.5]
    assert opt.memory[0] == {"k": 3.0}
    opt.step([p], [np.zeros(2)])
    assert p.tolist() == [2 - (0.75 * 2 + 1.5), -4 - (0.75 * -4 + 2.5)]
    assert opt.memory[0] == {"k": 7.0}


def test_numbers_are_float64_and_rounded_once():
    @fs.rule()
    def once(g, *, t, lr=0.1, beta=0.9):
        return lr / (1 - beta**t) * g

    p, _, _ = stepped(once, np.zeros(1, np.float32), [1.0])
    assert p[0] == -np.float32(0.1 / (1 - 0.9))
    assert p[0] != -np.float32(0.1) / (1 - np.float32(0.9))


def test_powers_are_products():
    @fs.rule(memory={"k": 0.0})
    def powers(g, *, k, beta=0.9):
        return g, beta**7

    square = 0.9 * 0.9
    assert stepped(powers, np.zeros(1), [1.0])[2] == {"k": 0.9 * square * (square * square)}


def test_numbers_that_are_no_finite_ones():
    @fs.rule(memory={"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0})
    def strange(g, *, t, a, b, c, d, zero=0.0):
        return g, 1 / zero, zero / zero, fs.sqrt(zero - 1), (2 + zero) ** (t - 2)

    memory = stepped(strange, np.zeros(1), [1.0])[2]
    assert memory["a"] == math.inf
    assert all(math.isnan(memory[name]) for name in "bcd")


def test_selections():
    @fs.rule(states="m")
    def selected(g, m, *, lr=1.0):
        return np.maximum(g, 1.0), np.sign(np.minimum(g, 0.0))

    p, state, _ = stepped(selected, np.zeros(4), [2.0, -3.0, math.nan, -0.0])
    assert p.tolist()[:2] == [-2.0, -1.0]
    assert math.isnan(p[2])
    assert p[3] == -1.0
    m = state["m"]
    assert m[:2].tolist() == [0.0, -1.0]
    assert math.isnan(m[2])
    assert not np.signbit(m[3])


# What is moved, what is computed, and in which mode.


def test_results_that_are_only_moved_have_no_subnormal_numbers():
    @fs.rule(states="a b c d")
    def moved(g, a, b, c, d):
        return +g, -g, np.abs(+g), np.where(a > 1, a, +g), np.clip(g, -1.0, 1.0)

    p, state, _ = stepped(moved, np.zeros(1, np.float32), [-TINY])
    assert p.tolist() == [0.0]
    assert [state[name].tolist() for name in "abcd"] == [[0.0]] * 4
    assert [bool(np.signbit(state[name][0])) for name in "abcd"] == [False, False, True, True]
    same_bits(moved)


def test_constants_that_python_computes_are_not_flushed():
    @fs.rule(states="m")
    def scaled(g, m):
        k = SMALL * 1e-15  # subnormal in float64
        return g * (k * 1e300 * 1e15), m + fs.sqrt(k) * g

    p, _, _ = stepped(scaled, np.zeros(1, np.float32), [1.0])
    assert p[0] == pytest.approx(-1.0, rel=1e-6)
    same_bits(scaled)


def test_a_subnormal_number_beside_elements_is_zero():
    @fs.rule(states="m")
    def beside(g, m, *, least=TINY):
        return np.where(g > 0, least, -least), np.maximum(m, least)

    p, state, _ = stepped(beside, np.ones(2, np.float32), [1.0, -1.0])
    assert p.tolist() == [1.0, 1.0]
    assert state["m"].tolist() == [0.0, 0.0]
    same_bits(beside)


@pytest.mark.parametrize("constant", [0.0, -0.0, 1e-45, -1e-310, math.inf, math.nan])
def test_constants(constant):
    @fs.rule(states="m")
    def constants(g, m):
        return g + constant, np.where(g > 0, constant, m * constant)

    same_bits(constants)


def test_conditions_of_numbers():
    @fs.rule(states="m")
    def conditions(g, m, *, t, k=0.5):
        early = (t < 3) & (k <= 0.5)
        m = np.where(early | (g > m), m, g) + early
        return np.where(~early, g, -m) * (t != 2), np.where(np.logical_not(early), m, k)

    same_bits(conditions)


def test_states_that_change_places():
    @fs.rule(states="a b c d")
    def ring(g, p, a, b, c, d):
        return 0.5 * g, b, c, d, p

    same_bits(ring)
    same_bits(ring, ema=0.9, bounds=(-1.0, 1.0))


@pytest.mark.parametrize("name", ["k", "x", "h", "wide"])
def test_a_state_may_have_any_letter(name):
    source = f"def mine(g, {name}, *, lr=0.1): return lr * {name}, {name} + g"
    namespace = {}
    exec(source, namespace)
    same_bits(fs.rule(states=name)(namespace["mine"]))
