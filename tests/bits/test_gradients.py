"""Gradients of any strides and type, and parameters in any order of their axes, have the bits of the reference."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedstep as fs
from fusedstep import _cpu, functional, reference
from fusedstep.tools import verify

BF16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BF16]
COMPLEX = [np.dtype(np.complex64), np.dtype(np.complex128)]
SPECIAL = [0.0, -0.0, 1e-40, -1e-40, 5e-324, 2.0**-126, 1e-30, 6e-8, np.inf, -np.inf, np.nan, 65504.0, 3e38, 1e300]


@pytest.fixture(autouse=True)
def with_two_threads():
    before = _cpu.num_threads()
    fs.set_num_threads(2)
    yield
    fs.set_num_threads(before)


def numbers(rng, shape, dtype, special=0.1):
    """Return random numbers of a dtype, a part of which are special ones."""
    with np.errstate(all="ignore"):
        if dtype.kind == "c":
            x = np.empty(shape, dtype)
            x.real, x.imag = numbers(rng, shape, x.real.dtype, special), numbers(rng, shape, x.real.dtype, special)
            return x
        x = np.asarray(rng.standard_normal(shape))
        return np.where(rng.random(shape) < special, rng.choice(SPECIAL, shape), x).astype(dtype)


def in_order(array, axes):
    """Return a copy whose axes lie in memory in an order, the slowest first."""
    return array.transpose(axes).copy().transpose(np.argsort(axes))


def strided(rng, shape, dtype):
    """Return a gradient of a shape: of another order of the axes, sliced, reversed or broadcast along some of them."""
    axes = rng.permutation(len(shape))
    steps = [int(rng.choice([1, 1, 1, 2, -1, -3])) if n else 1 for n in shape]
    broadcast = [n > 0 and rng.random() < 0.15 for n in shape]
    room = [1 if b else abs(step) * n for n, step, b in zip(shape, steps, broadcast, strict=True)]
    whole = in_order(numbers(rng, room, dtype), axes)
    part = whole[tuple(slice(None) if b else slice(None, None, step) for step, b in zip(steps, broadcast, strict=True))]
    return np.broadcast_to(part, shape)


OPTIONS = [
    {},
    {"weight_decay": 0.1, "maximize": True},
    {"clip_global_norm": 1.0},
    {"clip_norm": 0.5, "l1": 0.01, "ema": 0.9},
    {"skip_nonfinite": True, "weight_decay": 0.01},
    {"rounding": "stochastic", "seed": 3, "state_dtype": "same"},
    {"master_weights": True, "clip_value": 0.5},
]


def agree(cls, options, params, grads, steps=2):
    theirs = [p.copy(order="K") for p in params]
    ours = [p.copy(order="K") for p in params]
    opt, ref = getattr(fs, cls)(**options), getattr(reference, cls)(**options)
    for _ in range(steps):
        found, wanted = opt.step(ours, grads), ref.step(theirs, grads)
        assert verify.difference([np.float64(found.grad_norm or 0)], [np.float64(wanted.grad_norm or 0)]) == 0
        assert found.nonfinite == wanted.nonfinite
    pairs = [*zip(ours, theirs, strict=True)]
    pairs += [(opt.state[k][n], a) for k, some in ref.state.items() if k in opt.state for n, a in some.items()]
    pairs += [(opt.ema[k], a) for k, a in ref.ema.items() if k in opt.ema]
    for mine, other in pairs:
        assert verify.difference([real(mine)], [real(other)]) == 0
    for key, some in opt.state.items():
        p = ours[key]
        for array in some.values():
            pairs = zip(p.shape, p.strides, array.strides, strict=True)
            assert not p.size or all(n == 1 or a * p.itemsize == b * array.itemsize for n, b, a in pairs)


def real(array):
    return np.stack([array.real, array.imag]) if array.dtype.kind == "c" else np.ascontiguousarray(array)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["SGD", "Adam", "Momentum"]), st.sampled_from(OPTIONS))
def test_any_layout_and_type_has_the_bits_of_the_reference(seed, cls, options):
    rng = np.random.default_rng(seed)
    params, grads = [], []
    for _ in range(3):
        shape = tuple(rng.integers(0, [7, 40, 5, 70][: rng.integers(0, 5)]))
        complex_numbers = rng.random() < 0.2
        dtype = (COMPLEX if complex_numbers else FLOATS)[rng.integers(2 if complex_numbers else 4)]
        other = (COMPLEX if complex_numbers else FLOATS)[rng.integers(2 if complex_numbers else 4)]
        params.append(in_order(numbers(rng, shape, dtype, 0.02), rng.permutation(len(shape))))
        grads.append(strided(rng, shape, other))
    agree(cls, options, params, grads)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("isa", _cpu.isas)
@pytest.mark.parametrize(("param", "grad"), [*itertools.product(FLOATS, FLOATS), *itertools.product(COMPLEX, COMPLEX)])
def test_transposed_gradients_on_every_instruction_set(isa, param, grad):
    rng = np.random.default_rng(7)
    fs.use_isa(isa)
    try:
        for rows, columns in [(3, 5000), (5000, 3), (1100, 130), (130, 6000)]:
            p = numbers(rng, (rows, columns), param, 0.01)
            agree("Adam", {"clip_global_norm": 10.0}, [p], [numbers(rng, (columns, rows), grad, 0.01).T], steps=1)
    finally:
        fs.use_isa("auto")


def test_a_convolution_of_textbooks():
    rng = np.random.default_rng(1)
    col, dout = rng.standard_normal((60, 27)), rng.standard_normal((60, 8))
    grad = np.dot(col.T, dout).transpose(1, 0).reshape(8, 3, 3, 3)
    assert not grad.flags.c_contiguous
    agree("Adam", {}, [rng.standard_normal((8, 3, 3, 3)).astype(np.float32)], [grad])


@pytest.mark.parametrize("param", FLOATS)
@pytest.mark.parametrize("grad", FLOATS)
def test_functions_read_the_same(param, grad):
    rng = np.random.default_rng(2)
    p = in_order(numbers(rng, (30, 50), param), (1, 0))
    m, v = np.zeros_like(p), np.zeros_like(p)
    q, g = p.copy(order="K"), numbers(rng, (60, 50), grad)[::-2]
    functional.adam(p, g, m, v, t=1, lr=0.1)
    reference.Adam(lr=0.1, state_dtype="same").step([q], [g])
    assert verify.difference([p.copy()], [q.copy()]) == 0


def test_a_float64_gradient_is_rounded_once():
    p = np.zeros(3, np.float32)
    g = np.array([1 + 2.0**-24 + 2.0**-50, 2.0**-126 - 2.0**-152, 1e-310])
    fs.SGD(lr=1.0).step([p], [g])
    assert p.tolist() == [-(1 + 2.0**-23), -(2.0**-126), 0.0]


def test_subnormal_numbers_reach_float64_whole():
    for g in (np.array([1e-40], np.float32), np.array([1e-40], BF16), np.array([6e-8], np.float16)):
        p = np.zeros(1)
        fs.SGD(lr=1.0).step([p], [g])
        assert p[0] == -float(g[0]) != 0


@pytest.mark.parametrize(
    "number", [0.5, np.float64(0.5), np.float32(0.5), np.float16(0.5), np.array(0.5)], ids=lambda x: type(x).__name__
)
def test_a_number_is_the_gradient_of_an_array_without_dimensions(number):
    p = np.ones((), np.float32)
    opt = fs.SGD(lr=1.0)
    for _ in range(2):
        opt.step({"p": p}, {"p": number})
    assert p == 0
    functional.sgd(p, number, lr=1.0)
    assert p == -0.5
    opt.step({"p": p}, {"p": 2})  # an integer is a number too
    assert p == -2.5


def test_an_unaligned_gradient_is_read():
    buffer = np.zeros(4 * 100 + 1, np.uint8)
    g = buffer[1:].view(np.float32)
    g[...] = np.arange(100)
    assert not g.flags.aligned
    agree("Adam", {"clip_norm": 1.0}, [np.zeros(100, np.float32)], [g])


def test_gradients_that_move_and_change_are_seen():
    rng = np.random.default_rng(5)
    whole = rng.standard_normal((50, 60)).astype(np.float32)
    opt, ref = fs.Adam(clip_global_norm=1.0), reference.Adam(clip_global_norm=1.0)
    p, q = np.zeros((20, 30), np.float32), np.zeros((20, 30), np.float32)
    for g in (
        whole[:20, :30], whole[20:40, :30], whole.T[:20, :30], whole[::2, ::2][:20], whole[:20, 10:40].astype(float),
        whole[:20, 10:40].copy(), whole[0, 0] + np.zeros((20, 30)), np.broadcast_to(whole[0, :30], (20, 30)), None,
        whole[:20, :30],
    ):  # fmt: skip
        opt.step([p], [g])
        ref.step([q], [g])
        assert verify.difference([p], [q]) == 0


def test_zeroing_a_strided_gradient():
    whole = np.ones((20, 30), np.float64)
    p = np.zeros((30, 10), np.float32)
    fs.SGD(lr=1.0, zero_grad=True).step([p], [whole[::2].T])
    assert (p == -1).all()
    assert (whole[::2] == 0).all()
    assert (whole[1::2] == 1).all()
    for wrong, message in (
        (np.broadcast_to(np.float32(1), (30, 10)), r"^grads\[0\] has elements in one place, as from broadcasting"),
        (read_only((30, 10)), r"^grads\[0\] is read-only, expected a writable array, or zero_grad=False"),
    ):
        with pytest.raises(ValueError, match=message):
            fs.SGD(zero_grad=True).step([p], [wrong])
    assert (p == -1).all()


def read_only(shape):
    array = np.ones(shape, np.float32)
    array.flags.writeable = False
    return array


def test_states_follow_a_parameter_into_another_order():
    rng = np.random.default_rng(9)
    p = rng.standard_normal((6, 7, 8))
    opt, ref = fs.Adam(ema=0.9), reference.Adam(ema=0.9)
    for axes in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        mine, theirs = in_order(p, axes), in_order(p, axes)
        g = rng.standard_normal(p.shape)
        opt.step({"w": mine}, {"w": g})
        ref.step({"w": theirs}, {"w": g})
        assert (mine == theirs).all()
        assert opt.state["w"]["m"].strides == mine.strides
        p = mine
    with pytest.raises(ValueError, match=r"^b lies in another order of its axes than p, expected the same order"):
        functional.momentum(np.zeros((3, 4)), np.zeros((3, 4)), np.zeros((4, 3)).T, t=1, lr=0.1)


def test_complex_numbers_are_pairs():
    rng = np.random.default_rng(4)
    p, g = numbers(rng, (9, 5), COMPLEX[0], 0), numbers(rng, (9, 5), COMPLEX[1], 0)
    pairs, grads = p.view(np.float32).copy(), g.view(np.float64)
    opt, other = fs.Adam(clip_norm=0.1), fs.Adam(clip_norm=0.1)
    for _ in range(2):
        norm = opt.step([p], [g]).grad_norm
        assert other.step([pairs], [grads]).grad_norm == norm
    assert (p.view(np.float32) == pairs).all()
    assert opt.state[0]["v"].dtype == np.complex64
    for wrong, message in ((g.real, "expected complex numbers like"), (np.zeros((9, 5, 2)), "expected complex")):
        with pytest.raises(TypeError, match=message):
            opt.step([p], [wrong])


@pytest.mark.parametrize("dtype", COMPLEX)
def test_an_accumulator_of_complex_numbers_in_another_order(dtype):
    rng = np.random.default_rng(5)
    p, g = numbers(rng, (9, 5), dtype, 0), numbers(rng, (9, 5), dtype, 0)
    agree("Adagrad", {"initial_accumulator": 0.1}, [in_order(p, (1, 0))], [g])


def test_what_cannot_be_zeroed_is_refused_whenever_it_is_asked_for():
    """Elements in one place cannot be zeroed one by one, and neither can a gradient of two parameters."""
    params, shared = [np.zeros((2, 3)), np.zeros((2, 3))], np.ones((2, 3))
    rows = np.lib.stride_tricks.as_strided(np.ones(3), (2, 3), (0, 8))
    for grads, message in (([rows, shared], "has elements in one place"), ([shared, shared], r"overlaps grads\[0\]")):
        with pytest.raises(ValueError, match=message):
            fs.SGD(zero_grad=True).step(params, grads)
        opt = fs.SGD(lr=1.0)
        for _ in range(2):
            opt.zero_grad = False
            opt.step(params, grads)
            for change in ({"zero_grad": True}, {"overrides": {0: {"zero_grad": True}}}):
                for name, value in change.items():
                    setattr(opt, name, value)
                before = [p.copy() for p in params]
                with pytest.raises(ValueError, match=message):
                    opt.step(params, grads)
                assert all((p == q).all() for p, q in zip(params, before, strict=True))
                opt.zero_grad, opt.overrides = False, {}
    assert rows.all()
    assert shared.all()
