"""Clipping: the norm of gradients, the factor that it gives, and which limits stand alone."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import functional, reference
from fusedstep.tools import verify
from tests.formulas.arrays import BOTH, CLIPS, F32, F64, MODULES, NORMS, bits, misaligned, normal, same
from tests.formulas.norms import added_up, norm, squares, sum_of_squares


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
    assert any(norm(some) != norm(sorted(some)) for some in several)  # sums depend on the order of the parameters


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


def overflowing(n, seed=0):
    """Return finite numbers whose squares overflow."""
    return np.ldexp(normal(n, F64, seed), 520)


@pytest.mark.parametrize("n", [1, 33, 1024, 1025, 5000])
def test_a_norm_whose_squares_overflow(n, isa):
    g = overflowing(n)
    expected = math.ldexp(norm([np.ldexp(g, -600)]), 600)
    for module in (fs, reference):
        assert measured([g], module) == expected < math.inf
        assert measured([g], module, grad_scale=-0.3) == math.ldexp(norm([np.ldexp(g, -600)], 0.3), 600)
        together = [normal(40), g, normal(1100, F64), overflowing(7)]  # a tensor that overflows beside others
        assert measured(together, module) == math.ldexp(
            norm([np.ldexp(some.astype(F64), -600) for some in together]), 600
        )
        for clip in NORMS:
            assert same([clipped(module, g, clip, 2.0)], [g * (2.0 / expected)])


@MODULES
def test_a_norm_whose_squares_overflow_together(module):
    two = [np.full(1, 1e154), np.full(1, 1e154)]
    assert measured(two, module) == math.ldexp(norm([np.ldexp(g, -600) for g in two]), 600) < math.inf
    little = {0: {"grad_scale": 1e-120}}  # makes the tensor that overflows as small as the other one
    assert math.isclose(measured([np.full(1, 3e160), np.full(1, 4e40)], module, overrides=little), 5e40)
    huge = np.full(100, 1e308)
    assert measured([huge], module) == math.inf
    assert math.isclose(measured([huge], module, grad_scale=1e-9), 1e300)
    assert measured([np.append(huge, math.inf)], module, grad_scale=1e-9) == math.inf


@MODULES
def test_clipping_where_squares_overflow(module):
    p, g = np.zeros(2), np.array([1e160, 1.0])
    result = module.SGD(lr=1.0, clip_global_norm=1.0, skip_nonfinite=True).step(p, g)
    assert (result.grad_norm, result.skipped) == (1e160, False)
    assert same([p], [np.array([-1.0, -1e-160])])


# The factor that keeps a norm within its limit.


def clipped(module, g, clip, limit, **options):
    """Return what clipping leaves of a gradient."""
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
    assert optimizer.step(params, grads).grad_norm == norm(grads)  # a tensor without a limit counts in the norm too
    factors = [F32(c / norm(grads)) for c in (0.5, 0.25)] + [F32(1), F32(1)]
    assert same([-p for p in params], [g * factor for g, factor in zip(grads, factors, strict=True)])


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
