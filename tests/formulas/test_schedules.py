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
from fusedstep.schedules.description import _plateaus, rebuild, remember
from fusedstep.schedules.description import describe as describe_all

INF = math.inf
NAMES = [name for name in s.__all__ if isinstance(getattr(s, name), type) and name != "Schedule"]
PI = Decimal("3.14159265358979323846264338327950288419716939937510")

SIGNATURES = {
    "constant": "(lr)",
    "exponential": "(lr, rate, steps=1, staircase=False)",
    "step": "(lr, factor, every)",
    "multistep": "(lr, factor, boundaries, boundary='first')",
    "piecewise": "(boundaries, values, boundary='first')",
    "inverse_time": "(lr, rate, steps=1, staircase=False)",
    "polynomial": "(lr, end, steps, power=1, cycle=False)",
    "warmup": "(start, inner, steps)",
    "product": "(*schedules)",
    "sequential": "(schedules, milestones)",
    "cosine": "(lr, steps, alpha=0, after='hold')",
    "cosine_restarts": "(lr, steps, t_mul=1, m_mul=1, alpha=0)",
    "plateau": "(lr, factor=0.1, patience=10, threshold=0.0001, threshold_mode='rel', mode='min', "
    "cooldown=0, min_lr=0)",
}
EXAMPLES = [
    s.constant(0.3),
    s.exponential(0.1, 0.9, 7, True),
    s.step(0.1, 0.5, 3),
    s.multistep(0.1, 0.5, [2, 5], "last"),
    s.piecewise([2, 5], [0.3, 0.2, 0.1]),
    s.inverse_time(0.1, 0.3, 2),
    s.polynomial(0.1, 1e-4, 10, 2.5, cycle=True),
    s.warmup(0, s.warmup(0.1, s.cosine(0.5, 10), 3), 4),
    s.product(s.cosine(0.1, 9), 0.5, s.plateau(1.0)),
    s.sequential([0.1, s.plateau(0.2, mode="max"), s.plateau(0.3)], [3, 9]),
    s.cosine(0.1, 9, 0.1, "periodic"),
    s.cosine_restarts(0.1, 9, 1.5, 0.7, 0.2),
    s.plateau(0.1, 0.5, 2, 0.01, "abs", "max", 3, 1e-3),
]


def some(start):
    """A function that is no schedule of ours."""
    return 2.0 * start


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


# Values.


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
    assert s.exponential(1, 0.1, 3)(128) == float(decimal_power(0.1, 128 / 3))  # pow of glibc misses these two
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


@pytest.mark.parametrize("power", [1, 2, 3.0])
def test_polynomial(power):
    curve, cycle = s.polynomial(0.5, 0.125, 8, power), s.polynomial(0.5, 0.125, 8, power, cycle=True)
    for done in range(40):
        held = Fraction(3, 8) * max(1 - Fraction(done, 8), 0) ** int(power) + Fraction(1, 8)
        goal = next(k for k in range(8, 100, 8) if k >= done)  # the multiple that is aimed at
        cycled = Fraction(3, 8) * (1 - Fraction(done, goal)) ** int(power) + Fraction(1, 8)
        assert curve(done) == near(held)
        assert cycle(done) == near(cycled)


def test_polynomial_cycle_at_multiples():
    cycle = s.polynomial(1, 0.25, 4, cycle=True)
    assert [cycle(t) for t in (0, 4, 8, 12)] == [1, 0.25, 0.25, 0.25]
    assert cycle(5) == 0.75 * 0.375 + 0.25  # three of the eight updates to 8 are left
    assert cycle(3) == 0.75 * 0.25 + 0.25


def test_polynomial_may_rise_and_may_have_power_0():
    assert [s.polynomial(0, 1, 4)(t) for t in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [s.polynomial(3, 1, 2, 0)(t) for t in range(4)] == [3, 3, 3, 3]


def test_warmup_hands_over():
    inner = s.step(1, 0.5, 2)
    assert [s.warmup(0.5, inner, 4)(t) for t in range(9)] == [0.5, 0.625, 0.75, 0.875, 1, 1, 0.5, 0.5, 0.25]
    assert [s.warmup(0, 0.5, 1)(t) for t in range(3)] == [0, 0.5, 0.5]
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
    assert s.cosine_restarts(1, 10, x)(250) == 0.5 * (1 + math.cos(math.pi * tau / lengths[-1]))


@pytest.mark.parametrize("t_mul", [1, 1.5, 7])
def test_restarts_after_many_updates(t_mul):
    assert 0 <= s.cosine_restarts(1, 3, t_mul)(10**15) <= 1


# Plateau.


class ReduceOnPlateau:
    """PyTorch's ReduceLROnPlateau, copied by hand, for one group of parameters."""

    def __init__(self, lr, factor, patience, threshold, threshold_mode, mode, cooldown, min_lr):
        self.lr, self.factor, self.patience, self.cooldown, self.min_lr = lr, factor, patience, cooldown, min_lr
        self.threshold, self.kind = threshold, mode + threshold_mode
        self.best = {"min": INF, "max": -INF}[mode]
        self.num_bad_epochs = self.cooldown_counter = 0

    def is_better(self, a):
        if self.kind == "minrel":
            return a < self.best * (1.0 - self.threshold)
        if self.kind == "minabs":
            return a < self.best - self.threshold
        if self.kind == "maxrel":
            return a > self.best * (self.threshold + 1.0)
        return a > self.best + self.threshold

    def step(self, current):
        if self.is_better(current):
            self.best = current
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            new_lr = max(self.lr * self.factor, self.min_lr)
            if self.lr - new_lr > 1e-8:
                self.lr = new_lr
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0


PLATEAUS = {
    "lr": [0.1, 1e-6, 3e-8],
    "factor": [0.1, 0.5, 0.0],
    "patience": [0, 1, 2, 3],
    "threshold": [0.0, 1e-4, 0.3],
    "threshold_mode": ["rel", "abs"],
    "mode": ["min", "max"],
    "cooldown": [0, 1, 2, 3],
    "min_lr": [0.0, 0.02, 1.0],
}
METRICS = [1.0, 0.99999, 0.9, 0.6, 0.5, 1.2, 2.0, 0.0, -1.0, math.nan, INF, -INF]


@given(
    st.fixed_dictionaries({name: st.sampled_from(choices) for name, choices in PLATEAUS.items()}),
    st.lists(st.sampled_from(METRICS), max_size=25),
)
@settings(max_examples=150, deadline=None)
def test_plateau_is_pytorchs(arguments, metrics):
    ours, theirs = s.plateau(**arguments), ReduceOnPlateau(**arguments)
    for x in metrics:
        ours.observe(x)
        theirs.step(x)
        memory = (theirs.lr, theirs.best, theirs.num_bad_epochs, theirs.cooldown_counter)
        assert (ours.rate, ours.best, ours.bad, ours.cooldown_left) == memory
        assert ours(0) == ours(10) == theirs.lr


def test_plateau_by_hand():
    p = s.plateau(1.0, factor=0.5, patience=1, cooldown=2, min_lr=0.2)
    rates = []
    for x in [3, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]:
        p.observe(x)
        rates.append(p(0))
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2]


@pytest.mark.parametrize(("lr", "fallen"), [(1e-8, 1e-8), (1.1e-8, 0)])
def test_plateau_leaves_out_tiny_falls(lr, fallen):
    p = s.plateau(lr, factor=0, patience=0)
    for x in [1, 1]:
        p.observe(x)
    assert p(0) == fallen


@pytest.mark.parametrize("wait", [1, 2, 4])
@pytest.mark.parametrize("rest", [0, 1, 3])
def test_plateau_of_keras(wait, rest):
    """Its ReduceLROnPlateau with min_delta, as in Keras 3: it waits, and leaves the cooldown in the same epoch."""
    p = s.plateau(1.0, 0.5, wait - 1, 0.01, "abs", cooldown=max(rest - 1, 0))
    lr, best, waited, left = 1.0, INF, 0, 0
    for x in [5, 4, 3.995, 4, 4, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 1.991, 1.9, 2, 2, 2, 2, 2, 2]:
        if left > 0:
            left -= 1
            waited = 0
        if x < best - 0.01:
            best, waited = x, 0
        elif not left > 0:
            waited += 1
            if waited >= wait:
                lr, left, waited = lr * 0.5, rest, 0
        p.observe(x)
        assert p(0) == lr


@pytest.mark.parametrize("x", [None, "1", True, [1.0], 1j])
def test_plateau_observes_numbers_only(x):
    p = s.plateau(1.0)
    with pytest.raises(TypeError, match=r"^x is .*, expected a number$"):
        p.observe(x)
    assert p.bad == 0


def test_plateau_observes_numbers_of_numpy():
    p = s.plateau(1.0)
    p.observe(np.float32(0.5))
    assert type(p.best) is float
    p.observe(-(10**400))
    assert p.best == -INF


# Properties of all.

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


# Objects.


def observed(schedule):
    """Return a copy, all plateaus of which remember something else."""
    schedule = copy.deepcopy(schedule)
    for i, part in enumerate(_plateaus(schedule)):
        for x in [2.0 - i, *[7.0] * (11 + i)]:
            part.observe(x)
    return schedule


def describe(schedule):
    return describe_all(schedule, [])


def rebuilt(description, present=None):
    made = {}
    schedule = rebuild(description, present, made)
    remember(made)
    return schedule


def memories(schedule):
    return [(p.rate, p.best, p.bad, p.cooldown_left) for p in _plateaus(schedule)]


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
    (lambda: s.warmup(0, 1, -2), ValueError, "steps is -2, expected an integer >= 1"),
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


def test_plateau_may_ask_for_much():
    s.plateau(1, threshold=2, mode="max")
    s.plateau(1, threshold=2, threshold_mode="abs")


# Checkpoints.


def test_description():
    schedule = s.warmup(0, s.product(s.multistep(1, 0.5, [2, 3]), 0.25), 4)
    assert describe(schedule) == {
        "schedule": "warmup",
        "start": 0.0,
        "inner": {
            "schedule": "product",
            "schedules": [
                {"schedule": "multistep", "lr": 1.0, "factor": 0.5, "boundaries": [2, 3], "boundary": "first"},
                {"schedule": "constant", "lr": 0.25},
            ],
        },
        "steps": 4,
    }
    assert describe(s.plateau(0.1))["memory"] == {"rate": 0.1, "best": INF, "bad": 0, "cooldown_left": 0}


class Other(s.Schedule):
    def _at(self, done):
        return 1.0


class Disguised(s.cosine):
    pass


FOREIGN = [
    some,
    s.warmup(0, some, 3),
    s.product(1, some),
    s.sequential([1, s.product(some)], [3]),
    dataclasses.make_dataclass("Mine", [], bases=(Other,))(),
    Disguised(1, 3),
]


@pytest.mark.parametrize("schedule", FOREIGN, ids=repr)
def test_what_is_not_ours_is_noted_and_stays(schedule):
    description = json.loads(json.dumps(describe(schedule)))
    assert '{"schedule": null}' in json.dumps(description)
    assert rebuilt(description, schedule) is schedule
    with pytest.raises(ValueError, match=r"^schedule was a function that cannot be saved, expected the same function"):
        rebuilt(description)


COSINE = describe(s.cosine(1, 10))
PLATEAU = describe(s.plateau(1))
WARMUP = describe(s.warmup(0, 1, 3))
PRODUCT = describe(s.product(1, 2))
MEMORY = PLATEAU["memory"]


@pytest.mark.parametrize(
    ("description", "error", "message"),
    [
        (3, TypeError, "description is 3, expected a dictionary"),
        ([COSINE], TypeError, "description is "),
        ({}, ValueError, "schedule is '', expected one of constant, warmup,"),
        ({"schedule": "Schedule"}, ValueError, "schedule is 'Schedule', expected one of constant,"),
        ({"schedule": "os.system", "lr": 1}, ValueError, "schedule is 'os.system', expected one of constant,"),
        ({"schedule": ["cosine"]}, ValueError, "schedule is ['cosine'], expected one of constant,"),
        ({"schedule": "cosine"}, ValueError, "cosine has nothing, expected lr, steps, alpha, after"),
        (
            COSINE | {"rate": 1},
            ValueError,
            "cosine has lr, steps, alpha, after, rate, expected lr, steps, alpha, after",
        ),
        (COSINE | {"memory": MEMORY}, ValueError, "cosine has lr, steps, alpha, after, memory, expected lr, steps,"),
        (COSINE | {"steps": "10"}, TypeError, "steps is '10', expected an integer >= 1"),
        (COSINE | {"steps": 0}, ValueError, "steps is 0, expected an integer >= 1"),
        (
            COSINE | {"lr": COSINE},
            TypeError,
            "lr is cosine(lr=1.0, steps=10, alpha=0.0, after='hold'), expected a number",
        ),
        (WARMUP | {"inner": "print"}, TypeError, "inner is 'print', expected a schedule, a function or a number"),
        (WARMUP | {"inner": {"lr": 1}}, ValueError, "schedule is '', expected one of"),
        (PRODUCT | {"schedules": 3}, TypeError, "schedules is 3, expected a sequence"),
        (PRODUCT | {"schedules": []}, ValueError, "schedules has 0 elements, expected at least 1"),
        (
            PRODUCT | {"schedules": [1, [2]]},
            TypeError,
            "schedules[1] is [2], expected a schedule, a function or a number",
        ),
        ({k: PLATEAU[k] for k in PLATEAU if k != "memory"}, ValueError, "plateau has lr, factor,"),
        (PLATEAU | {"memory": None}, TypeError, "memory is None, expected a dictionary"),
        (PLATEAU | {"memory": {}}, ValueError, "memory has nothing, expected rate, best, bad, cooldown_left"),
        (PLATEAU | {"memory": MEMORY | {"x": 1}}, ValueError, "memory has rate, best, bad, cooldown_left, x, expected"),
        (PLATEAU | {"memory": MEMORY | {"rate": "1"}}, TypeError, "rate is '1', expected a number"),
        (PLATEAU | {"memory": MEMORY | {"rate": INF}}, ValueError, "rate is inf, expected a finite number >= 0"),
        (PLATEAU | {"memory": MEMORY | {"best": None}}, TypeError, "best is None, expected a number"),
        (PLATEAU | {"memory": MEMORY | {"best": math.nan}}, ValueError, "best is nan, expected a number"),
        (PLATEAU | {"memory": MEMORY | {"bad": -1}}, ValueError, "bad is -1, expected an integer >= 0"),
        (PLATEAU | {"memory": MEMORY | {"bad": 1.0}}, TypeError, "bad is 1.0, expected an integer >= 0"),
        (
            PLATEAU | {"memory": MEMORY | {"cooldown_left": True}},
            TypeError,
            "cooldown_left is True, expected an integer",
        ),
    ],
)
def test_bad_descriptions(description, error, message):
    with pytest.raises(error) as caught:
        rebuilt(description)
    assert str(caught.value).startswith(message)


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.sampled_from([*NAMES, "hold", "first"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["schedule", "schedules", "lr", "inner", "steps", "start", "memory"]), inner),
    max_leaves=8,
))  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_any_description_is_rebuilt_or_refused(description):
    try:
        schedule = rebuilt(description)
    except (TypeError, ValueError):
        return
    assert rebuilt(describe(schedule)) == schedule


@given(
    st.floats(0, exclude_max=True, allow_infinity=False, max_value=1e308), st.floats(allow_nan=False), st.integers(0)
)
@settings(max_examples=50, deadline=None)
def test_json_keeps_the_memory(lr, best, bad):
    p = s.plateau(lr)
    p._remember(lr, best, bad, 3)
    assert memories(rebuilt(json.loads(json.dumps(describe(p))))) == [(lr, best, bad, 3)]


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda x: type(x).__name__)
def test_an_equal_schedule_stays_and_remembers(schedule):
    present, saved = copy.deepcopy(schedule), observed(schedule)
    assert rebuilt(describe(saved), present) is present
    assert memories(present) == memories(saved)


@pytest.mark.parametrize(
    ("present", "saved"),
    [
        (s.plateau(1.0), s.plateau(2.0)),
        (s.plateau(1.0), s.constant(1.0)),
        (0.1, s.plateau(1.0)),
        (some, s.plateau(1.0)),
        (s.product(s.plateau(1.0)), s.product(s.plateau(1.0), 1)),
    ],
)
def test_a_schedule_that_is_not_equal_is_replaced(present, saved):
    found = rebuilt(describe(saved), present)
    assert found == saved
    assert found is not present


def test_a_plateau_that_the_caller_holds_goes_on_in_another_schedule():
    mine = s.plateau(1.0, 0.5, 0)
    saved = observed(s.product(s.plateau(1.0, 0.5, 0), 1))
    found = rebuilt(describe(saved), s.product(mine))
    assert found.schedules[0] is mine
    assert memories(found) == memories(saved)


def test_plateaus_are_shared_as_they_were_saved():
    one, other = s.plateau(1.0, 0.5, 0), s.plateau(1.0, 0.5, 0)
    other.observe(3.0)
    made, seen = {}, []
    descriptions = [describe_all(schedule, seen) for schedule in (one, s.product(one, other), other)]
    assert [d.get("number") for d in descriptions] == [0, None, 1]
    present = s.plateau(1.0, 0.5, 0)  # stands in all three places
    first, product, third = (rebuild(d, present, made) for d in descriptions)
    remember(made)
    assert first is present
    assert product.schedules == (first, third)
    assert product.schedules[0] is first
    assert product.schedules[1] is third
    assert third is not first
    assert (first.best, third.best) == (INF, 3.0)
    for change in ({"lr": 2.0}, {"memory": descriptions[2]["memory"]}):
        with pytest.raises(ValueError, match=r"^number is 0, which is another plateau"):
            rebuild(descriptions[0] | change, None, dict(made))
    with pytest.raises(TypeError, match=r"^number is None"):
        rebuild(descriptions[0] | {"number": None}, None, {})
