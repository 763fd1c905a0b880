"""The promise of equal bits on a GPU."""

from functools import cache

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu, functional, reference
from fusedstep.tools import verify
from tests.gpu.arrays import F32, pairs, same

CLASSES = fs.optimizers.classes()
GRID = [(cls, label, tuple(cases)) for cls in CLASSES for label, cases in verify.cases(cls).items()]
TILES = (1023, 1024, 1025, 0, 1, 3000, 2048)  # sizes around 1024, the elements that a warp takes at a time
SMALLEST = 2.0**-126


@cache
def expected(cls, options, dtype, sizes, grad_dtype=None):
    return verify.outcome(getattr(reference, cls.__name__)(**dict(options)), dtype, sizes, grad_dtype)


def difference(cupy, cls, options, dtype, sizes, grad_dtype=None):
    found = verify.outcome(cls(**options), dtype, sizes, grad_dtype, cupy.asarray)
    return verify.difference(found, expected(cls, tuple(options.items()), dtype, sizes, grad_dtype))


@pytest.mark.sampled(7)
@pytest.mark.parametrize(("cls", "label", "cases"), GRID, ids=[f"{cls.__name__}-{label}" for cls, label, _ in GRID])
def test_every_dialect_and_option_has_the_bits_of_the_reference(cupy, cls, label, cases):
    different = [case for case in cases if difference(cupy, cls, case[0], case[1], verify.SMALL, case[2])]
    assert not different


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [*verify.DTYPES, *verify.HALVES])
@pytest.mark.parametrize("options", [{}, {"clip_global_norm": 20.0, "ema": 0.9, "zero_grad": True}], ids=str)
@pytest.mark.parametrize("cls", CLASSES)
def test_tiles_change_no_bit(cupy, cls, options, dtype):
    assert difference(cupy, cls, options, dtype, TILES) == 0


@pytest.mark.parametrize("dtype", verify.HALVES)
def test_random_bits_depend_on_the_number_of_the_element(cupy, dtype):
    options = {"rounding": "stochastic", "state_dtype": "same", "seed": 3}
    assert difference(cupy, fs.Adam, options, dtype, TILES) == 0


def test_a_large_tensor_has_the_norm_of_the_reference(cupy):
    """More than 1024 * 1024 elements need three levels of sums."""
    (p, g), (q, h) = pairs(cupy, 1024 * 1025 + 7, 1024 * 1025 + 7)
    host, gpu = fs.SGD(clip_global_norm=1.0), fs.SGD(clip_global_norm=1.0)
    assert gpu.step(q, h).grad_norm == host.step(p, g).grad_norm
    assert same(q, p)


@pytest.mark.parametrize("count", [0, 1, 23, 24, 25, 255, 256, 257, 1000, 1023, 1025])
def test_any_number_of_tensors(cupy, count):
    sizes = [i % 5 for i in range(count)]
    found, wanted = [cupy.asarray(np.ones(n, F32)) for n in sizes], [np.ones(n, F32) for n in sizes]
    grads = [np.full(n, 0.5 + i, F32) for i, n in enumerate(sizes)]
    optimizer, specification = fs.Adam(clip_global_norm=1.0), reference.Adam(clip_global_norm=1.0)
    for _ in range(2):
        a = optimizer.step(found, [cupy.asarray(g) for g in grads])
        b = specification.step(wanted, grads)
        assert a.grad_norm == b.grad_norm
    assert verify.difference([p.get() for p in found], wanted) == 0


@pytest.mark.parametrize("shift", range(9))
@pytest.mark.parametrize("dtype", [*verify.DTYPES, *verify.HALVES])
def test_the_place_of_an_element_changes_no_bit(cupy, shift, dtype):
    rng = np.random.default_rng(5)
    p, g = verify.values(rng, 80, dtype), verify.values(rng, 80, dtype)
    whole, part = cupy.asarray(p), cupy.asarray(p)
    fs.RMSprop().step(whole, cupy.asarray(g))
    fs.RMSprop().step(part[shift : 80 - shift], cupy.asarray(g)[shift : 80 - shift])
    assert same(whole[shift : 80 - shift], part[shift : 80 - shift])


def test_arrays_that_are_not_aligned_alike(cupy):
    rng = np.random.default_rng(6)
    start = rng.standard_normal(300).astype(F32)
    p, g = start.copy(), rng.standard_normal(300).astype(F32)
    whole, grads = cupy.asarray(np.append(np.zeros(1, F32), start)), cupy.asarray(np.append(np.zeros(2, F32), g))
    host, gpu = fs.Adam(), fs.Adam()
    for _ in range(3):
        host.step(p, g)
        gpu.step(whole[1:], grads[2:])
    assert same(whole[1:], p)
    assert whole.get()[0] == 0


def test_around_the_smallest_normal_number(cupy):
    """Results are flushed if they lie below 2**-126 after rounding, as on x86; what rounds up to it stays."""
    lr = (1 - 2.0**-13) * 2.0**-63
    rng = np.random.default_rng(7)
    g = np.append(F32((1 + 2.0**-13) * 2.0**-63), (rng.uniform(0.99, 1.01, 100_000) * 2.0**-63).astype(F32))
    p = np.zeros_like(g)
    found, wanted = cupy.asarray(p), p.copy()
    fs.SGD(lr=lr).step(found, cupy.asarray(g))
    reference.SGD(lr=lr).step(wanted, g)
    assert wanted[0] == -SMALLEST
    assert ((wanted == 0).any(), (wanted == -SMALLEST).any()) == (True, True)
    assert same(found, wanted)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_rule_around_the_smallest_normal_number(cupy, cls):
    """Random mantissas give products, quotients and states near 2**-126."""
    rng = np.random.default_rng(8)
    n = 20_000
    p, *grads = ((rng.uniform(0.5, 2, n) * 2.0 ** rng.integers(-127, -60, n)).astype(F32) for _ in range(4))
    found, wanted = cupy.asarray(p), p.copy()
    optimizer, specification = cls(lr=2.0**-40), getattr(reference, cls.__name__)(lr=2.0**-40)
    for g in grads:
        optimizer.step(found, cupy.asarray(g))
        specification.step(wanted, g)
    assert same(found, wanted)
    for name, state in optimizer.state[0].items():
        assert same(state, specification.state[0][name]), name


@pytest.mark.parametrize("name", functional.__all__)
def test_functions_have_the_bits_of_the_host(cupy, own_state, name):
    function = getattr(functional, name)
    for options in ({}, {"clip_global_norm": 1.0, "weight_decay": 0.1}):
        arrays, twins = pairs(cupy, 3000, 5, 3000, 5)
        states = [own_state(function, n, F32) for n in (3000, 5)]
        names = list(states[0])
        on_gpu = [{key: cupy.asarray(state) for key, state in some.items()} for some in states]
        counts = dict.fromkeys(_cpu.rules[name].memory, 0.5) | ({"t": 3} if _cpu.rules[name].counts else {})
        returned = [
            function(a[:2], a[2:], *([some[key] for some in s] for key in names), lr=0.1, **counts, **options)
            for a, s in ((arrays, states), (twins, on_gpu))
        ]
        assert returned[0] == returned[1]
        assert verify.difference([a.get() for a in twins], arrays) == 0
        for some, twin in zip(states, on_gpu, strict=True):
            assert all(same(twin[key], some[key]) for key in names)


@pytest.mark.parametrize("scale", [0, 520])
@pytest.mark.parametrize("sizes", [(5,), (1024, 3), (1025,), (40, 5000, 7)], ids=str)
def test_norms_of_doubles(cupy, sizes, scale):
    """With a scale of 520, squares overflow."""
    rng = np.random.default_rng(9)
    grads = [np.ldexp(rng.standard_normal(n), scale) for n in sizes]
    for bad in (None, np.inf, np.nan):
        for options in ({"clip_global_norm": 1.0}, {"clip_norm": 1.0}, {"skip_nonfinite": True}):
            found, wanted = [cupy.asarray(np.zeros(n)) for n in sizes], [np.zeros(n) for n in sizes]
            if bad:
                grads[-1][-1] = bad
            a = fs.SGD(**options).step(found, [cupy.asarray(g) for g in grads])
            b = reference.SGD(**options).step(wanted, grads)
            assert (a.skipped, a.nonfinite) == (b.skipped, b.nonfinite)
            assert verify.difference([np.array(a.grad_norm)], [np.array(b.grad_norm)]) == 0
            assert verify.difference([p.get() for p in found], wanted) == 0


def test_norms_of_doubles_that_overflow_together(cupy):
    grads = [np.full(1, 1e154), np.full(1, 1e154)]
    optimizer = fs.SGD(clip_global_norm=1.0)
    norm = optimizer.step([cupy.asarray(np.zeros(1)) for _ in grads], [cupy.asarray(g) for g in grads]).grad_norm
    assert norm == reference.SGD(clip_global_norm=1.0).step([np.zeros(1), np.zeros(1)], grads).grad_norm < np.inf
