"""What surrounds every rule: scale, clipping, decay, averages, zeroing, skipped steps; and overrides and schedules."""

import inspect
import itertools
import math
import pickle
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedstep as fs
from fusedstep import _cpu, functional, reference
from fusedstep.core import hyperparameters
from fusedstep.core.hyperparameters import declared
from fusedstep.tools import verify
from tests.rules import BY_RULE, FILES

F32, F64 = np.float32, np.float64
CLASSES = verify.classes()
BOTH = pytest.mark.parametrize("dtype", verify.DTYPES)
MODULES = pytest.mark.parametrize("module", [fs, reference], ids=["kernel", "reference"])
NORMS = ("clip_norm", "clip_global_norm")
CLIPS = ("clip_value", *NORMS)


def normal(n, dtype=F32, seed=0):
    return np.random.default_rng([seed, n]).standard_normal(n).astype(dtype)


def same(found, expected):
    return verify.difference(list(found), list(expected)) == 0


def bits(x):
    """Everything about what may be compared: arrays as bytes, and keys in their order."""
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes()
    if isinstance(x, Mapping):
        return [(key, bits(value)) for key, value in x.items()]
    return [bits(value) for value in x] if isinstance(x, (list, tuple)) else x


def copies(arrays):
    return [array.copy() for array in arrays]


def misaligned(array, shift=1):
    whole = np.zeros(array.size + shift, array.dtype)
    whole[shift:] = array
    return whole[shift:]


# The norm, once more from its definition: loops over Python's floats.


def added_up(x):
    while True:
        sums = []
        for start in range(0, len(x), 1024):
            lane = [0.0] * 32
            for i, value in enumerate(x[start : start + 1024]):
                lane[i % 32] = lane[i % 32] + value
            for h in (16, 8, 4, 2, 1):
                for j in range(h):
                    lane[j] = lane[j] + lane[j + h]
            sums.append(lane[0])
        x = sums
        if len(x) <= 1:
            return x[0] if x else 0.0


def squares(g):
    tiny = 2.0**-126 if g.dtype == F32 else 0.0
    return [x * x if abs(x) >= tiny else 0.0 for x in g.astype(F64).reshape(-1).tolist()]


def sum_of_squares(g):
    return added_up(squares(g))


def norm(grads, scale=1.0):
    return math.sqrt(added_up([sum_of_squares(g) for g in grads if g is not None])) * abs(scale)


def measured(grads, module=fs, **options):
    grad_scale = options.pop("grad_scale", 1.0)
    params = [np.zeros(3, F32) if g is None else np.zeros(g.shape, g.dtype) for g in grads]
    return module.SGD(skip_nonfinite=True, **options).step(params, grads, grad_scale=grad_scale).grad_norm


@BOTH
@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 1023, 1024, 1025, 2048, 32 * 1024 + 5])
def test_the_norm_of_one_gradient(n, dtype, isa):
    g = normal(n, dtype) * np.exp2(np.random.default_rng(n).integers(-30, 30, n)).astype(dtype)
    expected = norm([g])
    assert measured([misaligned(g)]) == measured([g]) == measured([g], reference) == expected
    exact = math.sqrt(sum(Fraction(x) ** 2 for x in g.astype(F64).tolist()))
    assert math.isclose(expected, exact, rel_tol=1e-12)


@pytest.fixture(scope="module")
def long():
    grads = [normal(1024 * 1024 + 1, dtype) for dtype in verify.DTYPES]
    return grads, [norm([g]) for g in grads], norm(grads)


@pytest.mark.parametrize("threads", verify.THREADS)
def test_the_norm_over_three_levels_and_threads(long, threads, isa):
    fs.set_num_threads(threads)
    grads, alone, together = long
    assert [measured([g]) for g in grads] == [measured([misaligned(g)]) for g in grads] == alone
    assert measured(grads) == together
    assert math.isclose(alone[1], math.sqrt(math.fsum(squares(grads[1]))), rel_tol=1e-12)


def test_the_norm_of_several_gradients(isa):
    some = [normal(n, dtype, i) for i, (n, dtype) in enumerate([(1500, F32), (0, F64), (33, F64), (70_000, F32)])]
    grads = [None, *some[:2], None, *some[2:], np.zeros((0, 4), F32)]
    for scale in (1.0, -0.3, 1e-9):
        assert measured(grads, grad_scale=scale) == norm(grads, scale)
    many = [normal(3, seed=i) for i in range(1030)]
    assert measured(many) == norm(many)
    several = [[normal(1, F64, 1000 * i + j) for j in range(900)] for i in range(4)]
    assert [measured(some) for some in several] == [norm(some) for some in several]
    assert any(norm(some) != norm(sorted(some)) for some in several)  # the order is that of the parameters


def test_own_factors_weigh_in_the_norm():
    grads, own = [normal(40, seed=i) for i in range(3)], (0.3, -7.0, 1e-3)
    overrides = {i: {"grad_scale": factor} for i, factor in enumerate(own)}
    shares = [sum_of_squares(g) * (factor * factor) for g, factor in zip(grads, own, strict=True)]
    expected = math.sqrt(added_up(shares)) * 0.7
    for module in (fs, reference):
        assert measured(grads, module, overrides=overrides, grad_scale=-0.7) == expected


def test_the_norm_at_the_ends_of_the_range(isa):
    tiny = np.full(50, 2.0**-127, F32)
    assert measured([tiny]) == 0
    assert measured([np.full(50, -(2.0**-126), F32)]) == norm([np.full(50, 2.0**-126, F32)]) > 0
    assert measured([np.full(1, 2.0**-530)]) == math.sqrt(2.0**-1060)  # a float64 whose square is subnormal
    assert measured([np.full(50, np.finfo(F32).max, F32)]) < math.inf
    assert measured([np.full(1, 1e154)]) == math.sqrt(1e154 * 1e154) < math.inf
    assert measured([np.full(1, 1.4e154)]) == math.inf


# The coefficient.


def clipped(module, g, clip, limit, **options):
    """Return what is left of a gradient."""
    grad_scale = options.pop("grad_scale", 1.0)
    p = np.zeros_like(g)
    module.SGD(lr=1.0, **{clip: limit}, **options).step(p, g, grad_scale=grad_scale)
    return -p


@BOTH
@pytest.mark.parametrize("clip", NORMS)
@pytest.mark.parametrize("scale", [1.0, -1.0, 0.3, -3e5])
def test_a_norm_within_its_limit_changes_no_bit(clip, scale, dtype, isa):
    g = normal(77, dtype)
    limit = norm([g], scale)
    for module in (fs, reference):
        free = clipped(module, g, clip, None, grad_scale=scale)
        for above in (limit, math.nextafter(limit, math.inf), 1e300):
            assert same([clipped(module, g, clip, above, grad_scale=scale)], [free])
        for below in (math.nextafter(limit, 0), limit / 3, 1e-30):
            expected = g * dtype(scale * (below / limit))
            assert same([clipped(module, g, clip, below, grad_scale=scale)], [expected])


@MODULES
@BOTH
def test_the_factor_of_the_optimizer_and_that_of_the_step(module, dtype):
    g, own, step = normal(60, dtype), 0.3, -0.7
    assert same([clipped(module, g, "clip_value", None, grad_scale=step)], [g * dtype(step)])
    p = np.zeros_like(g)
    module.SGD(lr=1.0, grad_scale=own).step(p, g, grad_scale=step)
    assert same([-p], [g * dtype(own * step)])
    p = np.zeros_like(g)
    module.SGD(lr=1.0, grad_scale=own, clip_norm=0.5).step(p, g, grad_scale=step)
    assert same([-p], [g * dtype((own * step) * (0.5 / (math.sqrt(sum_of_squares(g)) * abs(own * step))))])


@MODULES
def test_limits_of_single_tensors(module):
    grads = [normal(30, seed=i) for i in range(4)]
    alone = [norm([g]) for g in grads]
    params = [np.zeros(30, F32) for _ in grads]
    optimizer = module.SGD(lr=1.0, clip_norm=0.5, overrides={1: {"clip_norm": 0.25}, 2: {"clip_norm": None}})
    assert optimizer.step(params, grads).grad_norm == norm(grads)
    limits = (0.5, 0.25, alone[2], 0.5)
    assert same([-p for p in params], [g * F32(c / n) for g, c, n in zip(grads, limits, alone, strict=True)])

    params = [np.zeros(30, F32) for _ in grads]
    overrides = {1: {"clip_global_norm": 0.25}, 2: {"clip_global_norm": None}, 3: {"clip_global_norm": 1e9}}
    optimizer = module.SGD(lr=1.0, clip_global_norm=0.5, overrides=overrides)
    assert optimizer.step(params, grads).grad_norm == norm(grads)  # the one that is not clipped counts too
    factors = [F32(c / norm(grads)) for c in (0.5, 0.25)] + [F32(1), F32(1)]
    assert same([-p for p in params], [g * factor for g, factor in zip(grads, factors, strict=True)])


# The order of the operations: what is right, and a neighbouring order that gives other bits. d is the dtype.


def l1(p, strength):
    return np.sign(p) * strength


def cut(g):
    return np.clip(g, -g.dtype.type(0.5), g.dtype.type(0.5))


DECOUPLED = {"weight_decay": 0.1, "decoupled": True, "lr": 0.7}
ORDER = [
    ({"grad_scale": 0.3, "clip_value": 0.5}, lambda d, p, g: p - cut(g * d(0.3)), lambda d, p, g: p - cut(g) * d(0.3)),
    (
        {"grad_scale": 0.3, "clip_norm": 0.7},
        lambda d, p, g: p - g * d(0.3 * (0.7 / (norm([g]) * 0.3))),
        lambda d, p, g: p - (g * d(0.3)) * d(0.7 / (norm([g]) * 0.3)),
    ),
    (
        {"grad_scale": 0.3, "weight_decay": 0.1},
        lambda d, p, g: p - (g * d(0.3) + d(0.1) * p),
        lambda d, p, g: p - (g + d(0.1) * p) * d(0.3),
    ),
    (
        {"maximize": True, "weight_decay": 0.1},
        lambda d, p, g: p - (-g + d(0.1) * p),
        lambda d, p, g: p + (g + d(0.1) * p),
    ),
    (
        {"clip_value": 0.5, "weight_decay": 0.1},
        lambda d, p, g: p - (cut(g) + d(0.1) * p),
        lambda d, p, g: p - cut(g + d(0.1) * p),
    ),
    (
        {"clip_norm": 0.5, "l1": 0.1},
        lambda d, p, g: p - (g * d(0.5 / norm([g])) + l1(p, d(0.1))),
        lambda d, p, g: p - (g + l1(p, d(0.1))) * d(0.5 / norm([g + l1(p, d(0.1))])),
    ),
    (
        {"weight_decay": 0.1, "l1": 0.1},
        lambda d, p, g: p - ((g + d(0.1) * p) + l1(p, d(0.1))),
        lambda d, p, g: p - ((g + l1(p, d(0.1))) + d(0.1) * p),
    ),
    (
        DECOUPLED,
        lambda d, p, g: p - (d(0.7) * g + d(0.7 * 0.1) * p),
        lambda d, p, g: (p - d(0.7) * g) - d(0.7 * 0.1) * p,
    ),
    (
        DECOUPLED,
        lambda d, p, g: p - (d(0.7) * g + d(0.7 * 0.1) * p),
        lambda d, p, g: p - (d(0.7) * g + d(0.7) * (d(0.1) * p)),
    ),
    (
        DECOUPLED,
        lambda d, p, g: p - (d(0.7) * g + d(0.7 * 0.1) * p),
        lambda d, p, g: (p - d(0.7) * g) * (d(1) - d(0.7 * 0.1)),
    ),
]


@MODULES
@BOTH
@pytest.mark.parametrize(("options", "right", "wrong"), ORDER)
def test_order(options, right, wrong, module, dtype):
    p, g = normal(300, dtype, 1), normal(300, dtype, 2)
    expected = right(dtype, p, g)
    assert verify.difference([wrong(dtype, p, g)], [expected]) > 0
    module.SGD(**({"lr": 1.0} | options)).step(p, g)
    assert expected.dtype == dtype
    assert same([p], [expected])


@MODULES
@BOTH
def test_the_rule_sees_the_decayed_gradient_and_the_average_the_decayed_parameter(module, dtype):
    p, g = normal(200, dtype, 1), normal(200, dtype, 2)
    b, e, old = np.zeros(200, dtype), None, p.copy()
    optimizer = module.Momentum(lr=0.7, momentum=0.9, weight_decay=0.1, l1=0.2, grad_scale=0.3, ema=0.6, maximize=True)
    for _ in range(3):
        seen = (-(g * dtype(0.3)) + dtype(0.1) * old) + l1(old, dtype(0.2))
        b = dtype(0.9) * b + dtype(1) * seen
        old = old - dtype(0.7) * b
        e = old.copy() if e is None else dtype(0.6) * e + dtype(1 - 0.6) * old
        optimizer.step(p, g)
        assert same([p, optimizer.state[0]["b"], optimizer.ema[0]], [old, b, e])


@MODULES
def test_what_is_off_is_not_a_multiplication_by_zero(module):
    p, g = np.array([np.nan, np.inf, -np.inf, 1.0], F32), np.array([1, 2, 3, 4], F32)
    off = {"l1": 0.0, "weight_decay": 0.0, "grad_scale": 1.0, "clip_value": None, "maximize": False}
    optimizer = module.Momentum(lr=1.0, ema=1.0, **off)
    optimizer.step(p, g)
    assert same([optimizer.state[0]["b"]], [g])
    assert same([p], [np.array([np.nan, np.inf, -np.inf, -3.0], F32)])
    zeros = np.array([-0.0, 0.0], F32)
    module.SGD(lr=1.0, l1=0.5).step(zeros, np.zeros(2, F32))
    assert (zeros == 0).all()  # sign(0) is 0


# Gradients that are not finite.

INF, NAN = math.inf, math.nan
HELD = [1.0, INF, -INF, NAN, -2.0]
NONFINITE = [
    ({}, HELD, HELD, [3.0, 4.0]),
    ({"clip_value": 0.5}, HELD, [0.5, 0.5, -0.5, NAN, -0.5], [0.5, 0.5]),
    ({"clip_norm": 1.0}, [1.0, INF, -INF, 0.0, -2.0], [0.0, NAN, NAN, 0.0, 0.0], [0.6, 0.8]),
    ({"clip_norm": 1.0}, HELD, [NAN] * 5, [0.6, 0.8]),
    ({"clip_global_norm": 1.0}, [1.0, INF, 0.0, 0.0, 0.0], [NAN] * 5, [NAN] * 2),
    ({"clip_global_norm": 1.0}, [1.0, NAN, 0.0, 0.0, 0.0], [NAN] * 5, [NAN] * 2),
    ({"clip_global_norm": 1.0, "overrides": {1: {"clip_global_norm": None}}}, HELD, [NAN] * 5, [3.0, 4.0]),
    ({"clip_global_norm": 1.0, "overrides": {0: {"clip_global_norm": None}}}, HELD, HELD, [NAN] * 2),
]


@BOTH
@MODULES
@pytest.mark.parametrize("i", range(len(NONFINITE)))
def test_nonfinite_gradients(i, module, dtype, isa):
    options, bad, first, second = NONFINITE[i]
    params, grads = [np.zeros(5, dtype), np.zeros(2, dtype)], [np.array(bad, dtype), np.array([3.0, 4.0], dtype)]
    optimizer = module.Momentum(lr=1.0, **options)
    result = optimizer.step(params, grads)
    left = [np.array(first), np.array(second)]
    factor = dtype(1 / 5.0)  # 0.6 and 0.8 as one multiplication gives them
    left = [np.where(np.isin(x, (0.6, 0.8)), g * factor, x).astype(dtype) for x, g in zip(left, grads, strict=True)]
    assert same([optimizer.state[i]["b"] for i in range(2)], left)
    assert same([p + dtype(0) for p in params], [dtype(0) - g for g in left])
    assert not result.skipped
    assert result.grad_norm is None or not math.isfinite(result.grad_norm)


# Skipped steps.


def skipping(cls=fs.Nadam, **options):
    return cls(skip_nonfinite=True, ema=0.9, **options)


@BOTH
@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("place", [0, -1, 1500])
@pytest.mark.parametrize("tensor", ["a", ("b", 1), 3])
def test_a_skipped_step_changes_nothing(tensor, place, value, dtype, isa):
    keys = ("a", ("b", 1), 3)
    params = {key: normal(2600, dtype, i) for i, key in enumerate(keys)}
    good = {key: normal(2600, dtype, 7 + i) for i, key in enumerate(keys)}
    bad = {key: g.copy() for key, g in good.items()}
    bad[tensor][place] = value
    bad[3][5] = NAN  # the first one is named
    asked = []
    optimizer = skipping(lr=lambda done: asked.append(done) or 0.1)
    free = skipping(lr=0.1)
    twin = {key: p.copy() for key, p in params.items()}
    for _ in range(3):
        before, count = bits([params, optimizer.state_dict()]), len(asked)
        for _ in range(2):
            result = optimizer.step(params, bad)
            assert result.skipped
            assert result.nonfinite == tensor
            assert type(result.nonfinite) is type(tensor)
            assert not math.isfinite(result.grad_norm)
            assert bits([params, optimizer.state_dict()]) == before
        assert not optimizer.step(params, good).skipped
        assert len(set(asked[count:])) == 1
        free.step(twin, good)
        seen = [{k: o.state_dict()[k] for k in ("t", "product", "state", "ema")} for o in (optimizer, free)]
        assert bits([params, seen[0]]) == bits([twin, seen[1]])
    assert seen[0]["product"].keys() == params.keys()


def test_squares_that_overflow_are_finite(isa):
    p, g = np.zeros(3), np.array([1.0, 1e200, -1e300])
    result = fs.SGD(lr=1.0, skip_nonfinite=True).step([p], [g])
    assert result == fs.Result(INF)
    assert same([p], [-g])
    assert fs.SGD(skip_nonfinite=True).step([p, p.copy()], [g, np.array([0, 0, INF])]).nonfinite == 1
    assert fs.SGD(skip_nonfinite=True).step([np.ones(1, F32)], [np.full(1, 3e38, F32)]).skipped is False


@BOTH
def test_a_skipped_step_zeroes_gradients_where_asked(dtype):
    params, grads = copies([np.ones(2100, dtype)] * 3), copies([np.full(2100, NAN, dtype)] * 3)
    optimizer = skipping(zero_grad=True, overrides={1: {"zero_grad": False}})
    assert optimizer.step(params, grads).skipped
    assert [bool((g.view(f"u{g.itemsize}") == 0).all()) for g in grads] == [True, False, True]
    assert np.isnan(grads[1]).all()
    assert not optimizer.state
    assert not optimizer.ema
    assert not optimizer.t
    assert optimizer.step(params, [grads[0], None, grads[2]]) == fs.Result(0.0)
    assert optimizer.t == {0: 1, 1: 0, 2: 1}


def test_results():
    p, g = np.ones(2, F32), np.array([3, 4], F32)
    assert fs.SGD(clip_value=1.0, zero_grad=True, ema=0.5).step(p, g.copy()) == fs.Result(None, False, None)
    for options in ({"clip_norm": 9.0}, {"clip_global_norm": 1.0}, {"skip_nonfinite": True}):
        assert fs.SGD(**options).step(p, g, grad_scale=-2.0) == fs.Result(10.0, False, None)
    with pytest.raises(TypeError, match=r"^overrides\['a'\]\['skip_nonfinite'\] is no hyperparameter of SGD"):
        fs.SGD(overrides={"a": {"skip_nonfinite": True}})
    with pytest.raises(AttributeError):
        fs.SGD().step(p, g).skipped = True


# Averages.


@BOTH
@MODULES
def test_the_first_average_is_a_copy(module, dtype):
    p, g = np.array([-0.0, 0.0, NAN, INF, 3.0], dtype), np.array([0.0, -0.0, 1.0, 1.0, 1.0], dtype)
    optimizer = module.SGD(lr=1.0, ema=0.5)
    optimizer.step(p, g)
    assert same([optimizer.ema[0]], [p])
    assert np.signbit(p[0])
    optimizer.step(p, g)
    assert same([optimizer.ema[0][4:]], [np.array([1.5], dtype)])


def test_averages_off_and_on_again():
    p, g = normal(50), normal(50, seed=1)
    optimizer = fs.SGD(lr=0.1)
    optimizer.step(p, g)
    assert not optimizer.ema
    optimizer.ema = 0.75
    optimizer.step(p, g)
    e = p.copy()
    assert same([optimizer.ema[0]], [e])
    optimizer.ema = None
    optimizer.step(p, g)
    assert same([optimizer.ema[0]], [e])
    optimizer.ema = 0.25
    optimizer.step(p, g)
    assert same([optimizer.ema[0]], [F32(0.25) * e + F32(0.75) * p])
    again = pickle.loads(pickle.dumps(optimizer))
    q = p.copy()
    optimizer.step(p, g)
    again.step(q, g)
    assert same([p, optimizer.ema[0]], [q, again.ema[0]])


def test_averages_that_began_at_different_times():
    start = [normal(20, seed=i) for i in range(4)]
    params, alone = copies(start), copies(start)
    optimizer = fs.SGD(lr=0.5)
    for ema, present in ((None, (0, 2)), (0.75, (1, 3)), (0.75, range(4)), (0.75, range(4))):
        optimizer.ema = ema
        optimizer.step(params, [start[i] if i in present else None for i in range(4)])
    expected = []
    for i, p in enumerate(alone):
        path = []
        for _ in range(3):
            p[...] = p - F32(0.5) * start[i]
            path.append(p.copy())
        e = path[i % 2 == 0]
        for q in path[1 + (i % 2 == 0) :]:
            e = F32(0.75) * e + F32(0.25) * q
        expected.append(e)
    assert same(params, alone)
    assert same([optimizer.ema[i] for i in range(4)], expected)


def test_the_mapping_of_averages():
    p, g = np.ones(4, F32), np.ones(4, F32)
    optimizer = fs.SGD(lr=1.0, ema=0.5)
    assert dict(optimizer.ema) == {}
    assert optimizer.ema.decay == 0.5
    optimizer.step({"w": p}, {"w": g})
    with pytest.raises(TypeError):
        optimizer.ema["w"] = p
    with pytest.raises(TypeError):
        del optimizer.ema["w"]
    optimizer.ema["w"][:] = 8
    optimizer.step({"w": p}, {"w": g})
    assert (optimizer.ema["w"] == 0.5 * 8 - 0.5).all()
    assert list(optimizer.ema) == ["w"]
    for bad in (optimizer.ema["w"], optimizer.ema["w"][1:3]):
        with pytest.raises(ValueError, match=r"^ema\['w'\] overlaps params\['v'\]|^params\['v'\] overlaps ema\['w'\]"):
            optimizer.step({"w": p, "v": bad}, {"w": g, "v": np.ones(bad.size, F32)})
        with pytest.raises(ValueError, match=r"ema\['w'\]"):
            optimizer.step({"w": p}, {"w": optimizer.ema["w"]})
    optimizer.ema = lambda done: 0.25
    assert optimizer.ema.decay(3) == 0.25


def test_the_decay_of_the_averages_is_not_set_in_vain():
    optimizer = fs.SGD(ema=0.5)
    with pytest.raises(AttributeError):  # what is set is `optimizer.ema`
        optimizer.ema.decay = 0.25


@MODULES
def test_averages_of_some_tensors(module):
    params, grads = {k: normal(9, seed=i) for i, k in enumerate("abc")}, {k: normal(9, seed=5) for k in "abc"}
    optimizer = module.Adam(ema=0.5, overrides={"b": {"ema": None}, "c": {"ema": lambda done: 0.1 * done}})
    for gone in (None, "a", "c", None):
        kept = optimizer.ema[gone].copy() if gone else None
        optimizer.step(params, {k: g for k, g in grads.items() if k != gone})
        assert gone is None or same([optimizer.ema[gone]], [kept])
    assert sorted(optimizer.ema) == ["a", "c"]


# Zeroing.


@BOTH
@pytest.mark.parametrize("threads", [1, 3])
def test_zeroed_gradients(dtype, threads, isa):
    fs.set_num_threads(threads)
    sizes = (0, 1, 2047, 2048, 2049, 4097, 150_001)
    for options in ({}, {"clip_norm": 1.0, "ema": 0.5, "l1": 0.1}, {"clip_value": 1.0, "maximize": True}):
        grads = verify.Guarded([verify.values(np.random.default_rng(n), n, dtype) for n in sizes])
        params = verify.Guarded([np.ones(n, dtype) for n in sizes])
        fs.Adam(zero_grad=True, **options).step(params.arrays, grads.arrays)
        assert not any(g.view(np.uint8).any() for g in grads.arrays)
        assert grads.intact()
        assert params.intact()


def test_read_only_gradients_and_zeroing():
    params, grads = copies([np.ones(5, F32)] * 2), copies([np.ones(5, F32)] * 2)
    grads[1].flags.writeable = False
    optimizer = fs.Adam()
    optimizer.step(params, grads)
    for name, value in (("overrides", {1: {"zero_grad": True}}), ("zero_grad", True)):
        setattr(optimizer, name, value)
        before = bits([params, grads, optimizer.state, optimizer.t])
        with pytest.raises(ValueError, match=r"^grads\[1\] is read-only, expected a writable array"):
            optimizer.step(params, grads)
        assert bits([params, grads, optimizer.state, optimizer.t]) == before
    optimizer.overrides = {1: {"zero_grad": False}}
    optimizer.step(params, grads)
    assert not grads[0].any()
    assert grads[1].all()
    with pytest.raises(ValueError, match=r"^g is read-only"):
        functional.sgd(params[0], grads[1], lr=1.0, zero_grad=True)


@BOTH
def test_gradients_are_otherwise_only_read(dtype):
    g = verify.values(np.random.default_rng(1), 3000, dtype)
    kept = bits(g)
    for clip in (*CLIPS, None):
        options = {clip: 0.1} if clip else {}
        for skip in (False, True):
            optimizer = fs.Adam(grad_scale=3.0, maximize=True, l1=0.1, weight_decay=0.1, ema=0.5, **options)
            optimizer.skip_nonfinite = skip
            optimizer.step(np.ones(3000, dtype), g, grad_scale=0.3)
            assert bits(g) == kept


# Overrides: one step over all tensors is a step over each alone.

OWN = [
    {"lr": 0.0},
    {"weight_decay": 0.0},
    {"lr": 0.5, "l1": 0.3},
    {"clip_value": 0.5},
    {"clip_value": None, "clip_norm": 0.25},
    {"decoupled": True},
    {"maximize": True, "grad_scale": -0.3},
    {"ema": 0.5},
    {"ema": None, "zero_grad": False},
    {"lr": lambda done: 0.1 / (1 + done), "ema": lambda done: done / (done + 1)},
]


@pytest.mark.parametrize("cls", [c for c in CLASSES if not c.always_decoupled])
def test_overrides_are_optimizers_of_their_own(cls, isa):
    base = {"weight_decay": 0.2, "clip_value": 1.5, "ema": 0.9, "zero_grad": True}
    params, twins = ([normal(40, seed=i) for i in range(len(OWN))] for _ in range(2))
    together = cls(**base, overrides=dict(enumerate(OWN)))
    alone = [cls(**base | own) for own in OWN]
    for step in range(3):
        grads = [normal(40, seed=100 * step + i) for i in range(len(OWN))]
        others = copies(grads)
        together.step(params, grads)
        for optimizer, p, g in zip(alone, twins, others, strict=True):
            optimizer.step(p, g)
        assert same(params + grads, twins + others)
    for i, optimizer in enumerate(alone):
        assert bits([together.state[i], together.ema.get(i)]) == bits([optimizer.state[0], optimizer.ema.get(0)])
    assert same(params[:1], [normal(40, seed=0)])


# Every hyperparameter that is a number may be a schedule.

VALUES = {
    **dict.fromkeys(("lr", "l1", "weight_decay", "grad_scale", *CLIPS), (0.3, 0.1, 0.2, 0.7)),
    "initial_accumulator": (0.5, 0.25, 0.25, 0.25),
}
NUMBERS = [
    (cls, name) for cls in CLASSES for name in inspect.signature(cls).parameters if declared(cls).get(name) is float
]


def values_of(cls, name):
    """Return what a hyperparameter is in four updates in a row."""
    own = getattr(FILES.get(cls.__name__), "VALUES", {})
    return (own | VALUES).get(name, (0.5, 0.25, 0.75, 0.125))


NUMBER = pytest.mark.parametrize(("cls", "name"), NUMBERS, ids=[f"{cls.__name__}-{name}" for cls, name in NUMBERS])


@NUMBER
def test_any_number_may_be_a_schedule(cls, name):
    values = values_of(cls, name)
    options = {"weight_decay": 0.1} if name != "weight_decay" else {}
    specification = getattr(reference, cls.__name__)
    optimizers = [cls(**options, **{name: f}) for f in (values.__getitem__, values[0])]
    optimizers.append(specification(**options, **{name: values.__getitem__}))
    params = [[normal(20), normal(7, F64)] for _ in optimizers]
    for i in range(len(values)):
        if name != "initial_accumulator":
            setattr(optimizers[1], name, values[i])
        for optimizer, p in zip(optimizers, params, strict=True):
            optimizer.step(p, [normal(20, seed=i), normal(7, F64, i)])
    for optimizer, p in zip(optimizers[1:], params[1:], strict=True):
        assert same(p, params[0])
        assert same([optimizer.ema[i] for i in sorted(optimizer.ema)], optimizers[0].ema.values())
        for i, states in optimizers[0].state.items():
            assert same([optimizer.state[i][n] for n in states], states.values())


@NUMBER
@pytest.mark.parametrize("bad", [NAN, "x", -INF, [1.0], None], ids=repr)
def test_a_schedule_with_a_bad_value_is_refused_by_name(cls, name, bad):
    if bad is None and name in (*CLIPS, "ema"):
        return  # see below
    at = 0 if name == "initial_accumulator" else 1
    optimizer = cls(**{name: lambda done: bad if done == at else values_of(cls, name)[0]})
    p, g = normal(9), normal(9, seed=1)
    for _ in range(at):
        optimizer.step(p, g)
    before = bits([p, g, optimizer.state, optimizer.ema, optimizer.t])
    error = ValueError if isinstance(bad, float) else TypeError
    with pytest.raises(error, match=rf"^{name}\({at}\) is ") as caught:
        optimizer.step(p, g)
    assert repr(bad) in str(caught.value)
    assert bits([p, g, optimizer.state, optimizer.ema, optimizer.t]) == before


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("name", [*CLIPS, "ema"])
def test_a_schedule_switches_nothing_off(name, at):
    optimizer, p, g = fs.SGD(**{name: lambda done: None if done == at else 0.5}), normal(9), normal(9, seed=1)
    for _ in range(at):
        optimizer.step(p, g)
    before = bits([p, g, optimizer.ema, optimizer.t])
    with pytest.raises(TypeError, match=rf"^{name}\({at}\) is None"):
        optimizer.step(p, g)
    assert bits([p, g, optimizer.ema, optimizer.t]) == before


def test_hyperparameters_that_are_set_during_a_step_hold_in_the_next(monkeypatch):
    """As another thread would set them, or a schedule."""
    p, g = {"w": np.zeros(3)}, {"w": np.ones(3)}
    optimizer, numbers = fs.SGD(lr=1.0), hyperparameters.numbers
    with monkeypatch.context() as patch:
        patch.setattr(hyperparameters, "numbers", lambda *args: setattr(optimizer, "lr", 8.0) or numbers(*args))
        optimizer.step(p, g)
    p["w"][:] = 0
    optimizer.step(p, g)
    assert optimizer.lr == 8
    assert (p["w"] == -8).all()


def test_overrides_that_are_set_during_a_step_hold_in_the_next():
    p, g = {"w": np.zeros(3)}, {"w": np.ones(3)}
    optimizer = fs.SGD(overrides={"w": {"l1": 0.0}})
    optimizer.lr = lambda done: setattr(optimizer, "overrides", {"*": {"maximize": True}}) or 1.0
    optimizer.step(p, g)
    p["w"][:], optimizer.lr = 0, 8.0
    optimizer.step(p, g)
    assert (p["w"] == 8).all()


def test_only_numbers_may_be_schedules():
    for cls in CLASSES:
        for name in inspect.signature(cls).parameters:
            if declared(cls).get(name, float) is not float:
                with pytest.raises(TypeError, match=rf"^{name} is <function .*expected "):
                    cls(**{name: lambda done: True})


# Refusals.

REFUSED = [
    *((clip, bad, ValueError) for clip in CLIPS for bad in (0, -1.0, INF, NAN, -0.0, 10**400)),
    *((clip, bad, TypeError) for clip in CLIPS for bad in ("1", True, 1j)),
    *(("ema", bad, ValueError) for bad in (1.5, -0.1, NAN, INF)),
    *(("ema", bad, TypeError) for bad in ("x", True)),
    *(("l1", bad, ValueError) for bad in (-1e-9, INF, NAN)),
    *(("l1", bad, TypeError) for bad in (None, False)),
    *(("grad_scale", bad, ValueError) for bad in (INF, -INF, NAN, 10**400)),
    *(("grad_scale", bad, TypeError) for bad in ("x", True, None)),
    *((name, bad, TypeError) for name in ("zero_grad", "skip_nonfinite", "maximize") for bad in (1, None, "yes")),
]


@pytest.mark.parametrize(("name", "bad", "error"), REFUSED)
def test_refused_by_name(name, bad, error):
    with pytest.raises(error, match=rf"^{name} is "):
        fs.Adam(**{name: bad})
    optimizer, p, g = fs.Adam(ema=0.5), normal(5), normal(5)
    optimizer.step(p, g)
    before = bits([p, g, optimizer.state, optimizer.ema, optimizer.__getstate__()["hyperparameters"]])
    with pytest.raises(error, match=rf"^{name} is "):
        setattr(optimizer, name, bad)
    if name != "skip_nonfinite":
        with pytest.raises(error, match=rf"^overrides\[0\]\['{name}'\] is "):
            optimizer.overrides = {0: {name: bad}}
    if name == "grad_scale":
        with pytest.raises(error, match=r"^grad_scale is "):
            optimizer.step(p, g, grad_scale=bad)
    if name not in ("ema", "skip_nonfinite"):
        with pytest.raises(error, match=rf"^{name} is "):
            functional.sgd(p, g, lr=1.0, **{name: bad})
    assert bits([p, g, optimizer.state, optimizer.ema, optimizer.__getstate__()["hyperparameters"]]) == before


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(CLIPS, 2)))
def test_one_way_of_clipping(one, other):
    message = "stands beside .*, expected one of them to be None"
    p, g = {"ab": normal(5)}, {"ab": normal(5, seed=1)}
    before = bits([p, g])
    for value in (1.0, lambda done: 1.0):
        with pytest.raises(ValueError, match=message):
            fs.SGD(**{one: 1.0, other: value})
        optimizer = fs.SGD(**{one: value})
        with pytest.raises(ValueError, match=message):
            setattr(optimizer, other, 1.0)
        assert getattr(optimizer, other) is None
        with pytest.raises(ValueError, match=rf"^overrides\['ab'\]: .*{message}"):
            fs.SGD(**{one: 1.0}, overrides={"ab": {other: value}}).step(p, g)
        with pytest.raises(ValueError, match=message):
            fs.SGD(overrides={"ab": {one: 1.0, other: value}})
        optimizer = fs.SGD(overrides={"a*": {one: 1.0}, "*b": {other: value}})
        with pytest.raises(ValueError, match=rf"^overrides 'a\*', '\*b': .*{message}"):
            optimizer.step(p, g)
        assert not optimizer.t
    with pytest.raises(ValueError, match=message):
        functional.sgd(p["ab"], g["ab"], lr=1.0, **{one: 1.0, other: 1.0})
    assert bits([p, g]) == before
    optimizer = fs.SGD(**{one: 1.0}, overrides={"ab": {one: None, other: 1.0}})
    optimizer.step(p, g)


# The functions.

OPTIONS = [
    {"grad_scale": -0.3},
    {"clip_value": 0.5},
    {"clip_norm": 0.5, "grad_scale": 3.0},
    {"clip_global_norm": 0.5, "weight_decay": 0.1, "grad_scale": 0.3},
    {"l1": 0.1, "maximize": True},
    {"zero_grad": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", [name for name in functional.__all__ if name in BY_RULE])
def test_functions_are_the_classes(name, options, own_state):
    cls, extra = BY_RULE[name]
    step = {"grad_scale": options["grad_scale"]} if "grad_scale" in options else {}
    optimizer = getattr(fs, cls)(lr=0.1, **extra, **{k: v for k, v in options.items() if k not in step})
    function = getattr(functional, name)
    params, twins = ([normal(40), normal(2100, F64)] for _ in range(2))
    states = [own_state(function, p.size, p.dtype) for p in params]
    product = 1.0
    for t in (1, 2):
        grads = [normal(p.size, p.dtype, t) for p in params]
        others = copies(grads)
        optimizer.step(twins, others, **step)
        known = inspect.signature(function).parameters
        clock = {k: v for k, v in (("t", t), ("product", product)) if k in known}
        product = function(
            params, grads, *map(list, zip(*(s.values() for s in states), strict=True)), lr=0.1, **clock, **options
        )
        assert same(params + grads, twins + others)
        for i, some in enumerate(states):
            assert same(some.values(), [optimizer.state[i][n] for n in some])


def test_functions_have_no_memory():
    for name in ("ema", "skip_nonfinite", "nothing"):
        with pytest.raises(TypeError, match=rf"^{name} is no option of sgd, expected one of grad_scale, clip_value"):
            functional.sgd(normal(4), normal(4), lr=1.0, **{name: True})


# Anything at all.


@st.composite
def cases(draw):
    kinds = draw(st.lists(st.tuples(st.sampled_from([0, 1, 7, 33, 1025]), st.sampled_from([F32, F64])), max_size=6))
    options = {"lr": 0.1, "weight_decay": draw(st.sampled_from([0.0, 0.3])), "ema": draw(st.sampled_from([None, 0.9]))}
    for name in ("zero_grad", "maximize", "skip_nonfinite"):
        options[name] = draw(st.booleans())
    if clip := draw(st.sampled_from([None, *CLIPS])):
        options[clip] = draw(st.floats(1e-3, 1e3))
    options["grad_scale"] = draw(st.floats(-1e3, 1e3))
    wild = draw(st.booleans())
    gone = draw(st.sets(st.integers(0, 5)))
    return kinds, options, wild, gone, draw(st.sampled_from(verify.THREADS)), draw(st.integers(0, 2**32))


def trail(optimizers, kinds, wild, gone, seed):
    """Return all that three steps leave; the tensors are shared among the optimizers, in order."""
    rng = np.random.default_rng(seed)
    params = [normal(n, dtype, i) for i, (n, dtype) in enumerate(kinds)]
    seen, norms = params, []
    for step in range(3):
        grads = [(verify.values(rng, n, d) if wild else rng.standard_normal(n).astype(d)) for n, d in kinds]
        grads = [None if step == 1 and i in gone else g for i, g in enumerate(grads)]
        cut = -(-len(params) // len(optimizers)) or 1
        for optimizer, at in zip(optimizers, itertools.count(0, cut), strict=False):
            result = optimizer.step(params[at : at + cut], grads[at : at + cut], grad_scale=1.0 - 2.0 * step)
            norms.append((repr(result.grad_norm), result.skipped, result.nonfinite))
        seen = seen + [g for g in grads if g is not None]
        seen = seen + [e.copy() for optimizer in optimizers for _, e in sorted(optimizer.ema.items())]
    return seen, norms


@settings(max_examples=80, deadline=None)
@given(cases())
def test_any_case_has_the_bits_of_the_reference(case):
    kinds, options, wild, gone, threads, seed = case
    fs.set_num_threads(threads)
    for name in _cpu.isas:
        fs.use_isa(name)
        found, norms = trail([fs.Adam(**options)], kinds, wild, gone, seed)
        expected, others = trail([reference.Adam(**options)], kinds, wild, gone, seed)
        assert same(found, expected)
        assert norms == others


@settings(max_examples=40, deadline=None)
@given(cases())
def test_two_optimizers_share_a_list(case):
    kinds, options, wild, gone, _, seed = case
    options |= {"clip_global_norm": None, "skip_nonfinite": False}
    together, _ = trail([fs.Adam(**options)], kinds, wild, gone, seed)
    shared, _ = trail([fs.Adam(**options), fs.Adam(**options)], kinds, wild, gone, seed)
    assert same(together, shared)
