"""The schedules against numbers worked out without them, and what may be done with a schedule as an object."""

import copy
import dataclasses
import inspect
import json
import math
import pickle
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedstep as fs
from fusedstep import schedules as s
from fusedstep.schedules.trigonometry import cos_pi
from tests.formulas.schedules import EXAMPLES, INF, NAMES, describe, memories, observed, rebuilt, some

PI = Decimal("3.14159265358979323846264338327950288419716939937510")
SIGNATURES = {
    "constant": "(lr)",
    "exponential": "(lr, rate, steps=1, staircase=False)",
    "step": "(lr, factor, every)",
    "multistep": "(lr, factor, boundaries, boundary='first')",
    "piecewise": "(boundaries, values, boundary='first')",
    "inverse_time": "(lr, rate, steps=1, staircase=False)",
    "inverse_sqrt": "(lr, steps)",
    "polynomial": "(lr, end, steps, power=1, cycle=False)",
    "warmup": "(start, inner, steps)",
    "product": "(*schedules)",
    "sequential": "(schedules, milestones)",
    "cosine": "(lr, steps, alpha=0, after='hold')",
    "cosine_restarts": "(lr, steps, t_mul=1, m_mul=1, alpha=0)",
    "plateau": "(lr, factor=0.1, patience=10, threshold=0.0001, threshold_mode='rel', mode='min', "
    "cooldown=0, min_lr=0)",
}


def near(expected):
    return pytest.approx(float(expected), rel=4e-15, abs=0)


def decimal_cos(x):
    """Return cos(x) to some 45 digits, by its series."""
    with localcontext(prec=60):
        term = total = Decimal(1)
        for k in range(2, 120, 2):
            term *= -x * x / (k * (k - 1))
            total += term
    return total


def decimal_power(x, y):
    with localcontext(prec=50):
        return Decimal(0) if not x else (Decimal(y) * Decimal(x).ln()).exp()


def exact_ratio(numerator, denominator):
    with localcontext(prec=50):
        return Decimal(numerator) / Decimal(denominator)


def test_every_schedule_has_an_example():
    assert {type(example).__name__ for example in EXAMPLES} == set(NAMES) == set(SIGNATURES)


@pytest.mark.parametrize("name", NAMES)
def test_arguments(name):
    signature = inspect.signature(getattr(s, name))
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    bare = [
        p.replace(default=int(p.default)) if p.default in (0.0, 1.0) and p.default is not False else p for p in bare
    ]
    assert str(inspect.Signature(bare)) == SIGNATURES[name]


# Values of the schedules.


@pytest.mark.parametrize("done", [0, 1, 2, 3, 11, 12, 13, 999, 2**20])
def test_exponential(done):
    lr, rate, steps = 0.1, 0.97, 12
    smooth, stairs = s.exponential(lr, rate, steps), s.exponential(lr, rate, steps, staircase=True)
    assert smooth(done) == near(Decimal(lr) * decimal_power(rate, exact_ratio(done, steps)))
    whole = float(Fraction(rate) ** (done // steps)) if done < 1000 else decimal_power(rate, done // steps)
    assert stairs(done) == pytest.approx(float(Decimal(lr) * Decimal(whole)), rel=1e-10, abs=0)


def test_whole_powers_are_multiplied_by_squaring():
    x = 0.9
    x2 = x * x
    x4 = x2 * x2
    powers = [1.0, x, x2, x * x2, x4, x * x4, x2 * x4, x * x2 * x4]
    assert [s.exponential(1, x)(t) for t in range(8)] == powers
    assert [s.exponential(1, x, 3)(3 * t) for t in range(8)] == powers
    assert [s.exponential(1, x, 3, True)(3 * t + 2) for t in range(8)] == powers
    assert [s.step(1, x, 5)(5 * t + 4) for t in range(8)] == powers
    assert [s.multistep(1, x, range(1, 8))(t) for t in range(8)] == powers
    assert [s.polynomial(1, 0, 10, t)(1) for t in range(8)] == powers
    assert [s.cosine_restarts(1, 4, m_mul=x)(4 * t) for t in range(8)] == powers


def test_fractional_powers_are_rounded_once():
    assert s.exponential(1, 0.5, 2)(1) == math.sqrt(0.5)
    assert s.exponential(1, 0.3, 7)(5) == float(decimal_power(0.3, 5 / 7))
    # The next two powers are those in which the pow of glibc is one unit off.
    assert s.exponential(1, 0.1, 3)(128) == float(decimal_power(0.1, 128 / 3))
    assert s.exponential(1, 0.99, 7)(183) == float(decimal_power(0.99, 183 / 7))
    assert s.polynomial(1, 0, 4, 0.5)(1) == math.sqrt(0.75)
    assert s.polynomial(1, 0, 4, 0.5)(4) == s.exponential(1, 0, 2)(1) == 0
    assert s.exponential(0.1, 0)(0) == 0.1


@pytest.mark.parametrize(("boundary", "at_5"), [("first", 1), ("last", 0)])
def test_boundaries(boundary, at_5):
    counts = [0] * 5 + [at_5] + [1] * 5 + [1 + at_5] + [2] * 3
    assert [s.multistep(1, 0.5, [5, 11], boundary)(t) for t in range(15)] == [0.5**count for count in counts]
    values = [0.1, 0.3, 0.2]
    assert [s.piecewise([5, 11], values, boundary)(t) for t in range(15)] == [values[count] for count in counts]


@pytest.mark.parametrize(("boundary", "expected"), [("first", [2, 2]), ("last", [1, 2])])
def test_a_boundary_at_the_first_update(boundary, expected):
    assert [s.piecewise([0], [1, 2], boundary)(t) for t in (0, 1)] == expected
    assert [s.multistep(1, 2, np.array([0]), boundary)(t) for t in (0, 1)] == expected


def test_step():
    assert [s.step(8, 0.5, 3)(t) for t in range(8)] == [8, 8, 8, 4, 4, 4, 2, 2]


def test_inverse_time():
    for done in range(30):
        by_hand = Fraction(0.1) / (1 + Fraction(0.3) * Fraction(done, 7))
        assert s.inverse_time(0.1, 0.3, 7)(done) == near(by_hand)
        assert s.inverse_time(0.1, 0.3, 7, staircase=True)(done) == near(
            Fraction(0.1) / (1 + Fraction(0.3) * (done // 7))
        )


def test_inverse_sqrt():
    assert [s.inverse_sqrt(0.5, 4)(t) for t in (0, 12, 32, 60)] == [0.5, 0.25, 0.5 / 3, 0.125]
    with localcontext(prec=40):
        lr = Decimal.from_float(0.1)
        for done in range(0, 3000, 37):
            assert s.inverse_sqrt(0.1, 400)(done) == near(lr / (1 + exact_ratio(done, 400)).sqrt())
    transformer = s.warmup(0, s.inverse_sqrt(1, 100), 100)
    assert [transformer(t) for t in (0, 50, 100, 400, 2500)] == [0, 0.5, 1, 0.5, 0.2]


@pytest.mark.parametrize("power", [1, 2, 3.0])
def test_polynomial(power):
    curve, cycle = s.polynomial(0.5, 0.125, 8, power), s.polynomial(0.5, 0.125, 8, power, cycle=True)
    for done in range(40):
        held = Fraction(3, 8) * max(1 - Fraction(done, 8), 0) ** int(power) + Fraction(1, 8)
        goal = next(k for k in range(8, 100, 8) if k >= done)  # the multiple of 8 that the cycle ends at
        cycled = Fraction(3, 8) * (1 - Fraction(done, goal)) ** int(power) + Fraction(1, 8)
        assert curve(done) == near(held)
        assert cycle(done) == near(cycled)


def test_polynomial_cycle_at_multiples():
    cycle = s.polynomial(1, 0.25, 4, cycle=True)
    assert [cycle(t) for t in (0, 4, 8, 12)] == [1, 0.25, 0.25, 0.25]
    assert cycle(5) == 0.75 * 0.375 + 0.25  # three of eight updates are left until the cycle ends at 8
    assert cycle(3) == 0.75 * 0.25 + 0.25


def test_polynomial_may_rise_and_may_have_power_0():
    assert [s.polynomial(0, 1, 4)(t) for t in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [s.polynomial(3, 1, 2, 0)(t) for t in range(4)] == [3, 3, 3, 3]


def test_warmup_hands_over():
    inner = s.step(1, 0.5, 2)
    assert [s.warmup(0.5, inner, 4)(t) for t in range(9)] == [0.5, 0.625, 0.75, 0.875, 1, 1, 0.5, 0.5, 0.25]
    assert [s.warmup(0, 0.5, 1)(t) for t in range(3)] == [0, 0.5, 0.5]
    assert [s.warmup(0.5, inner, 0)(t) for t in range(4)] == [inner(t) for t in range(4)]
    assert [s.warmup(3, lambda done: 1 + done, 2)(t) for t in range(4)] == [3, 2, 1, 2]


def test_product():
    schedule = s.product(s.step(3, 0.5, 1), 0.7, lambda done: 10 + done)
    assert [schedule(t) for t in range(4)] == [3 * 0.5**t * 0.7 * (10 + t) for t in range(4)]
    assert s.product(0.25)(7) == 0.25
    assert s.product(0.1, 0.2, 0.3)(0) == 0.1 * 0.2 * 0.3 != 0.1 * (0.2 * 0.3)


def test_sequential_counts_from_each_milestone():
    schedule = s.sequential([some, 0.5, s.step(8, 0.5, 1)], [2, 5])
    assert [schedule(t) for t in range(8)] == [0, 2, 0.5, 0.5, 0.5, 8, 4, 2]
    assert s.sequential([some], [])(7) == 14
    assert [s.sequential([0.5, some], [0])(t) for t in range(3)] == [0, 2, 4]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 2.0])
def test_cosine(alpha):
    def by_hand(done):
        return (1 - Decimal(alpha)) / 2 * (1 + decimal_cos(PI * done / 7)) + Decimal(alpha)

    hold, periodic = s.cosine(0.5, 7, alpha), s.cosine(0.5, 7, alpha, "periodic")
    for done in range(30):
        assert hold(done) == pytest.approx(float(by_hand(min(done, 7)) / 2), rel=1e-13, abs=1e-15)
        assert periodic(done) == pytest.approx(float(by_hand(done) / 2), rel=1e-13, abs=1e-15)


def test_cosine_at_the_ends():
    assert [s.cosine(0.25, 6, 0.5)(t) for t in (0, 6, 7, 12)] == [0.25, 0.125, 0.125, 0.125]
    assert [s.cosine(0.25, 6, 0.5, "periodic")(t) for t in (0, 6, 12)] == [0.25, 0.125, 0.25]


@pytest.mark.parametrize("m_mul", [1.0, 0.5])
@pytest.mark.parametrize(
    ("steps", "t_mul", "starts"),
    [
        (10, 1, [0, 10, 20, 30, 40]),
        (10, 2, [0, 10, 30, 70, 150]),
        (16, 1.5, [0, 16, 40, 76, 130]),
        (1, 3, [0, 1, 4, 13]),
    ],
)
def test_restarts_at_the_borders(steps, t_mul, starts, m_mul):
    schedule = s.cosine_restarts(2, steps, t_mul, m_mul, alpha=0.25)
    for i, start in enumerate(starts):
        assert schedule(start) == 2 * (0.75 * m_mul**i + 0.25)
        if start:
            length = steps * t_mul ** (i - 1)
            below = math.cos(math.pi * (length - 1) / length)
            assert schedule(start - 1) == near(2 * (0.75 * m_mul ** (i - 1) / 2 * (1 + below) + 0.25))


@pytest.mark.parametrize("t_mul", [1, 2, 1.5, 1.25])
def test_restarts_by_walking(t_mul):
    i, tau, length = 0, Fraction(0), Fraction(6)
    for done in range(300):
        expected = Decimal("0.7") ** i / 2 * (1 + decimal_cos(PI * exact_ratio(*(tau / length).as_integer_ratio())))
        assert s.cosine_restarts(0.5, 6, t_mul, 0.7)(done) == pytest.approx(float(expected) / 2, rel=1e-12, abs=1e-16)
        tau += 1
        if tau >= length:
            i, tau, length = i + 1, tau - length, length * Fraction(t_mul)


def test_the_length_of_a_period_is_a_power():
    x = 1.7
    squared = x * x
    lengths = [10 * power for power in (1, x, squared, x * squared, squared * squared, x * (squared * squared))]
    tau = 250.0
    for length in lengths[:-1]:
        tau -= length
    assert s.cosine_restarts(1, 10, x)(250) == 0.5 * (1 + cos_pi(tau / lengths[-1]))


@pytest.mark.parametrize("t_mul", [1, 1.5, 7])
def test_restarts_after_many_updates(t_mul):
    assert 0 <= s.cosine_restarts(1, 3, t_mul)(10**15) <= 1


# Properties of all schedules.

unit = st.floats(0, 1)
count = st.integers(1, 1000)
late = st.integers(0, 5000)


@given(unit, unit, count, late, st.sampled_from([0.5, 1, 2, 3.7]))
@settings(max_examples=60, deadline=None)
def test_what_ends_is_held(lr, end, steps, done, power):
    for schedule in (s.polynomial(lr, end, steps, power), s.cosine(lr, steps, end)):
        assert schedule(steps + done) == schedule(steps)
    assert s.polynomial(lr, end, steps, power)(steps) == end
    assert s.cosine(lr, steps, end)(steps) == lr * end
    assert s.warmup(lr, end, steps)(steps + done) == end


@given(unit, unit, count, late, st.sampled_from([1, 1.5, 2]))
@settings(max_examples=60, deadline=None)
def test_bounds(lr, share, steps, done, t_mul):
    slack = 1e-15
    for schedule in (
        s.polynomial(lr, lr * share, steps, cycle=True),
        s.cosine(lr, steps, share, "periodic"),
        s.cosine_restarts(lr, steps, t_mul, share, share),
        s.warmup(lr * share, lr, steps),
    ):
        assert lr * share - slack <= schedule(done) <= lr + slack


@given(unit, unit, count, late)
@settings(max_examples=60, deadline=None)
def test_decay_never_rises(lr, rate, steps, done):
    for schedule in (
        s.exponential(lr, rate, steps, True),
        s.inverse_time(lr, rate, steps),
        s.inverse_sqrt(lr, steps),
        s.step(lr, rate, steps),
        s.multistep(lr, rate, [steps, 2 * steps]),
        s.polynomial(lr, lr * rate, steps),
        s.cosine(lr, steps, rate),
    ):
        assert schedule(done + 1) <= schedule(done) * (1 + 1e-15)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda x: type(x).__name__)
def test_values(schedule):
    values = [schedule(done) for done in range(20)]
    assert all(type(x) is float and x >= 0 for x in values)
    assert [schedule(np.int64(done)) for done in range(20)] == values
    with pytest.raises(ValueError, match=r"^done is -1, expected an integer >= 0$"):
        schedule(-1)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("change", [copy.deepcopy, observed], ids=["new", "observed"])
@pytest.mark.parametrize(
    "way",
    [
        lambda x: pickle.loads(pickle.dumps(x)),
        copy.deepcopy,
        lambda x: rebuilt(describe(x)),
        lambda x: rebuilt(json.loads(json.dumps(describe(x)))),
    ],
    ids=["pickle", "copy", "describe", "json"],
)
def test_round_trip(schedule, change, way):
    before = change(schedule)
    after = way(before)
    assert after == before
    assert hash(after) == hash(before)
    assert repr(after) == repr(before)
    assert memories(after) == memories(before)
    assert [after(t) for t in range(20)] == [before(t) for t in range(20)]


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda x: type(x).__name__)
def test_repr_is_the_constructor(schedule):
    assert eval(repr(schedule), vars(s)) == schedule


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda x: type(x).__name__)
def test_frozen(schedule):
    for field in dataclasses.fields(schedule):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(schedule, field.name, 1)


def test_comparison():
    assert s.cosine(1, 10) == s.cosine(1.0, np.int64(10), alpha=np.float32(0)) != s.cosine(1, 11)
    assert s.multistep(1, 0.5, [3, 5]) == s.multistep(1, 0.5, np.array([3, 5])) == s.multistep(1, 0.5, iter((3, 5)))
    assert s.exponential(1, 0.5) != s.inverse_time(1, 0.5)
    assert s.warmup(0, 0.1, 5) == s.warmup(0, s.constant(0.1), 5)
    assert s.constant(-0.0) == s.constant(0)
    assert math.copysign(1, s.constant(-0.0)(0)) == 1
    assert s.plateau(1) == observed(s.plateau(1))


def test_an_optimizer_follows():
    opt, p = fs.SGD(lr=s.warmup(0, s.step(1, 0.5, 1), 2)), np.zeros(1)
    path = []
    for _ in range(5):
        opt.step(p, -np.ones(1))
        path.append(p.item())
    assert path == [0, 0.5, 1.5, 2, 2.25]


# Refusals.

REFUSED = [
    (lambda: s.constant("1"), TypeError, "lr is '1', expected a number"),
    (lambda: s.constant(True), TypeError, "lr is True, expected a number"),
    (lambda: s.constant(s.constant(1)), TypeError, "lr is constant(lr=1.0), expected a number"),
    (lambda: s.constant(-1), ValueError, "lr is -1, expected a finite number >= 0"),
    (lambda: s.constant(math.nan), ValueError, "lr is nan, expected a finite number >= 0"),
    (lambda: s.constant(INF), ValueError, "lr is inf, expected a finite number >= 0"),
    (lambda: s.constant(10**309), ValueError, f"lr is {10**309}, expected a finite number >= 0"),
    (lambda: s.exponential(1, -0.1), ValueError, "rate is -0.1, expected a finite number >= 0"),
    (lambda: s.exponential(1, 1, steps=0), ValueError, "steps is 0, expected an integer >= 1"),
    (lambda: s.exponential(1, 1, steps=2.0), TypeError, "steps is 2.0, expected an integer >= 1"),
    (lambda: s.exponential(1, 1, steps=True), TypeError, "steps is True, expected an integer >= 1"),
    (lambda: s.exponential(1, 1, staircase=1), TypeError, "staircase is 1, expected True or False"),
    (lambda: s.inverse_time(1, 1, steps=-3), ValueError, "steps is -3, expected an integer >= 1"),
    (lambda: s.inverse_time(1, None), TypeError, "rate is None, expected a number"),
    (lambda: s.inverse_time(1, 1, staircase=None), TypeError, "staircase is None, expected True or False"),
    (lambda: s.step(1, -1, 1), ValueError, "factor is -1, expected a finite number >= 0"),
    (lambda: s.step(1, 1, 0), ValueError, "every is 0, expected an integer >= 1"),
    (lambda: s.multistep(1, 1, 3), TypeError, "boundaries is 3, expected a sequence"),
    (lambda: s.multistep(1, 1, "35"), TypeError, "boundaries[0] is '3', expected an integer >= 0"),
    (lambda: s.multistep(1, 1, [3, 3]), ValueError, "boundaries is (3, 3), expected increasing numbers"),
    (lambda: s.multistep(1, 1, [3, 2]), ValueError, "boundaries is (3, 2), expected increasing numbers"),
    (lambda: s.multistep(1, 1, [-1]), ValueError, "boundaries[0] is -1, expected an integer >= 0"),
    (lambda: s.multistep(1, 1, [1, 2.5]), TypeError, "boundaries[1] is 2.5, expected an integer >= 0"),
    (lambda: s.multistep(1, 1, [], boundary="next"), ValueError, "boundary is 'next', expected one of 'first', 'last'"),
    (lambda: s.piecewise([3], [1, 2], boundary=1), TypeError, "boundary is 1, expected one of 'first', 'last'"),
    (lambda: s.piecewise([3], [1]), ValueError, "values has 1 elements, expected 2, one more than boundaries"),
    (lambda: s.piecewise([3], [1, -2]), ValueError, "values[1] is -2, expected a finite number >= 0"),
    (lambda: s.piecewise([3], [1, "2"]), TypeError, "values[1] is '2', expected a number"),
    (lambda: s.piecewise([], 1), TypeError, "values is 1, expected a sequence"),
    (lambda: s.polynomial(1, -1, 1), ValueError, "end is -1, expected a finite number >= 0"),
    (lambda: s.polynomial(1, 0, -1), ValueError, "steps is -1, expected an integer >= 1"),
    (lambda: s.polynomial(1, 0, 1, power=-1), ValueError, "power is -1, expected a finite number >= 0"),
    (lambda: s.polynomial(1, 0, 1, cycle="no"), TypeError, "cycle is 'no', expected True or False"),
    (lambda: s.warmup(-1, 1, 1), ValueError, "start is -1, expected a finite number >= 0"),
    (lambda: s.warmup(0, -1, 1), ValueError, "inner is -1, expected a finite number >= 0"),
    (lambda: s.warmup(0, "1", 1), TypeError, "inner is '1', expected a schedule, a function or a number"),
    (lambda: s.warmup(0, True, 1), TypeError, "inner is True, expected a schedule, a function or a number"),
    (lambda: s.warmup(0, 1, -2), ValueError, "steps is -2, expected an integer >= 0"),
    (lambda: s.sequential([1], [3]), ValueError, "schedules has 1 elements, expected 2, one more than milestones"),
    (
        lambda: s.sequential([1, None], [3]),
        TypeError,
        "schedules[1] is None, expected a schedule, a function or a number",
    ),
    (lambda: s.sequential([1, 1, 1], [3, 3]), ValueError, "milestones is (3, 3), expected increasing numbers"),
    (lambda: s.sequential(1, []), TypeError, "schedules is 1, expected a sequence"),
    (lambda: s.product(), ValueError, "schedules has 0 elements, expected at least 1"),
    (lambda: s.product(1, "x"), TypeError, "schedules[1] is 'x', expected a schedule, a function or a number"),
    (lambda: s.cosine(1, -4), ValueError, "steps is -4, expected an integer >= 1"),
    (lambda: s.cosine(1, 1, alpha=-1), ValueError, "alpha is -1, expected a finite number >= 0"),
    (lambda: s.cosine(1, 1, after="stop"), ValueError, "after is 'stop', expected one of 'hold', 'periodic'"),
    (lambda: s.cosine_restarts(1, 1, t_mul=0.99), ValueError, "t_mul is 0.99, expected a finite number >= 1"),
    (lambda: s.cosine_restarts(1, 1, t_mul=INF), ValueError, "t_mul is inf, expected a finite number >= 1"),
    (lambda: s.cosine_restarts(1, 1, m_mul=-1), ValueError, "m_mul is -1, expected a finite number >= 0"),
    (lambda: s.plateau(1, factor=1), ValueError, "factor is 1.0, expected 0 <= factor < 1"),
    (lambda: s.plateau(1, threshold=1), ValueError, "threshold is 1.0, expected 0 <= threshold < 1"),
    (lambda: s.plateau(1, threshold=-1), ValueError, "threshold is -1, expected a finite number >= 0"),
    (lambda: s.plateau(1, patience=-1), ValueError, "patience is -1, expected an integer >= 0"),
    (lambda: s.plateau(1, patience=1.0), TypeError, "patience is 1.0, expected an integer >= 0"),
    (lambda: s.plateau(1, cooldown=-1), ValueError, "cooldown is -1, expected an integer >= 0"),
    (lambda: s.plateau(1, min_lr=-1), ValueError, "min_lr is -1, expected a finite number >= 0"),
    (lambda: s.plateau(1, mode="auto"), ValueError, "mode is 'auto', expected one of 'min', 'max'"),
    (lambda: s.plateau(1, threshold_mode="x"), ValueError, "threshold_mode is 'x', expected one of 'rel', 'abs'"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED, ids=[message[:60] for *_, message in REFUSED])
def test_refusals(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == message
