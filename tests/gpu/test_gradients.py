"""Gradients of any strides and type on a GPU, and parameters in any order of their axes: the bits of the reference."""

import ctypes
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedstep as fs
from fusedstep import functional, reference
from fusedstep.tools import verify
from tests.bits.test_gradients import COMPLEX, FLOATS, OPTIONS, in_order, numbers, real, strided
from tests.gpu.arrays import Foreign


class Twin(Foreign):
    """A copy on the GPU of an array in host memory: the same bytes, shape and strides, also with gaps."""

    def __init__(self, cupy, array):
        low, high = np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)
        self.dtype, self.host = array.dtype, (low, high - low)
        self.bytes = cupy.asarray(np.frombuffer(ctypes.string_at(*self.host), np.uint8))
        address = self.bytes.data.ptr + array.ctypes.data - low if array.size else 0
        typestr = array.dtype.str if array.dtype.kind != "V" else "<V2"
        super().__init__(
            self.bytes, data=(address, False), shape=array.shape, strides=array.strides, typestr=typestr, descr=...
        )

    def is_still(self):
        """Return whether both copies have the same bytes."""
        return self.bytes.get().tobytes() == ctypes.string_at(*self.host)


def on_gpu(cupy, array):
    """Return an array of CuPy whose axes lie in memory in the order of a dense array's on the host."""
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    return cupy.asarray(array.transpose(order).copy()).transpose(np.argsort(order).tolist())


def agree(cupy, cls, options, params, grads, steps=2):
    theirs, ours = [p.copy(order="K") for p in params], [on_gpu(cupy, p) for p in params]
    opt, ref = getattr(fs, cls)(**options), getattr(reference, cls)(**options)
    twins = [Twin(cupy, g) for g in grads]
    for _ in range(steps):
        found, wanted = opt.step(ours, twins), ref.step(theirs, grads)
        assert verify.difference([np.float64(found.grad_norm or 0)], [np.float64(wanted.grad_norm or 0)]) == 0
        assert found.nonfinite == wanted.nonfinite
        assert found.update_norm == wanted.update_norm
    pairs = [*zip(ours, theirs, strict=True)]
    pairs += [(opt.state[k][n], a) for k, some in ref.state.items() if k in opt.state for n, a in some.items()]
    pairs += [(opt.ema[k], a) for k, a in ref.ema.items() if k in opt.ema]
    for mine, other in pairs:
        assert verify.difference([real(mine.get())], [real(other)]) == 0
    assert all(twin.is_still() for twin in twins)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["SGD", "Adam", "Momentum"]),
    st.sampled_from([*OPTIONS, {"zero_grad": True, "clip_norm": 2.0}, {"zero_grad": True, "skip_nonfinite": True}]),
)
def test_any_layout_and_type_has_the_bits_of_the_reference(cupy, seed, cls, options):
    rng = np.random.default_rng(seed)
    params, grads = [], []
    for _ in range(3):
        shape = tuple(rng.integers(0, [7, 40, 5, 70][: rng.integers(0, 5)]))
        complex_numbers = rng.random() < 0.2
        dtypes = COMPLEX if complex_numbers else FLOATS
        params.append(
            in_order(numbers(rng, shape, dtypes[rng.integers(len(dtypes))], 0.02), rng.permutation(len(shape)))
        )
        grad = strided(rng, shape, dtypes[rng.integers(len(dtypes))])
        grads.append(grad.copy() if "zero_grad" in options and not grad.flags.writeable else grad)
    agree(cupy, cls, options, params, grads)


@pytest.mark.parametrize("options", [{"clip_global_norm": 10.0}, {}], ids=str)
@pytest.mark.parametrize(("param", "grad"), [*itertools.product(FLOATS, FLOATS), *itertools.product(COMPLEX, COMPLEX)])
def test_transposed_gradients(cupy, param, grad, options):
    rng = np.random.default_rng(7)
    for rows, columns in [(30, 50), (3, 1500), (1100, 3)]:
        p = numbers(rng, (rows, columns), param, 0.01)
        agree(cupy, "Adam", options, [p], [numbers(rng, (columns, rows), grad, 0.01).T], steps=1)


@pytest.mark.parametrize("param", FLOATS)
@pytest.mark.parametrize("grad", FLOATS)
def test_functions_read_the_same(cupy, param, grad):
    rng = np.random.default_rng(2)
    q = in_order(numbers(rng, (30, 50), param), (1, 0))
    p, g = on_gpu(cupy, q), numbers(rng, (60, 50), grad)[::-2]
    m, v = (on_gpu(cupy, np.zeros_like(q)) for _ in "mv")
    functional.adam(p, Twin(cupy, g), m, v, t=1, lr=0.1)
    reference.Adam(lr=0.1, state_dtype="same").step([q], [g])
    assert verify.difference([p.get()], [q.copy()]) == 0


def test_doubles_are_rounded_once(cupy):
    """What would be subnormal in float32 is zero, but for what 24 bits round up to the smallest normal number."""
    smallest = 2.0**-126
    g = np.array([1 + 2.0**-24 + 2.0**-50, smallest - 2.0**-152, smallest - 2.0**-151, smallest - 2.0**-150, -1e-310])
    p, twin = np.zeros(5, np.float32), cupy.zeros(5, np.float32)
    result = fs.SGD(lr=1.0, clip_global_norm=1e9).step([twin], [Twin(cupy, g)])
    wanted = fs.SGD(lr=1.0, clip_global_norm=1e9).step([p], [g])
    assert twin.get().tolist() == p.tolist() == [-(1 + 2.0**-23), -smallest, -smallest, 0, 0]
    assert result.grad_norm == wanted.grad_norm


def test_norms_of_doubles_that_overflow(cupy):
    """Squares of doubles overflow from 1e154 on, in tensors of one tile and of many."""
    for shape in ((3, 5), (80, 90)):
        g = np.full(shape, 1e160).T
        p, twin = np.zeros(g.shape), cupy.zeros(g.shape)
        for options in ({"clip_global_norm": 1.0}, {"clip_norm": 1.0}, {"skip_nonfinite": True}):
            wanted = fs.SGD(lr=1.0, **options).step([p], [g])
            assert fs.SGD(lr=1.0, **options).step([twin], [Twin(cupy, g)]).grad_norm == wanted.grad_norm < np.inf
            assert verify.difference([twin.get()], [p]) == 0


def test_gradients_that_move_and_change_are_seen(cupy):
    """The layout may be another one in each step, and a tensor may lose it while others keep theirs."""
    rng = np.random.default_rng(5)
    whole = rng.standard_normal((50, 60)).astype(np.float32)
    deep = rng.standard_normal((20, 30, 2, 2, 2)).astype(np.float32)
    opt, ref = fs.Adam(clip_global_norm=1.0), reference.Adam(clip_global_norm=1.0)
    q = [np.zeros((20, 30), np.float32), np.zeros((20, 30, 2, 2, 2))]
    p = [on_gpu(cupy, each) for each in q]
    for g in (
        whole[:20, :30], whole[20:40, :30], whole.T[:20, :30], whole[::2, ::2][:20], whole[:20, 10:40].astype(float),
        whole[:20, 10:40].copy(), np.broadcast_to(whole[0, :30], (20, 30)), None, whole[:20, :30],
    ):  # fmt: skip
        other = deep if g is None else deep[..., ::-1, :, ::-1]
        opt.step(p, [None if g is None else Twin(cupy, g), Twin(cupy, other)])
        ref.step(q, [g, other])
        assert verify.difference([each.get() for each in p], q) == 0


def test_a_captured_step_keeps_the_layout_of_its_gradients(cupy, recorder):
    """Steps with other gradients, whose layouts take more room, come between the replays."""
    rng = np.random.default_rng(6)
    g = rng.standard_normal((9, 8)).astype(np.float32)
    other = rng.standard_normal((4, 3, 3, 2)).astype(np.float32)
    layouts = [other.transpose(0, 2, 1, 3)[::-1, :, ::-1, ::-1].reshape(4, 3, 3, 2), other]
    p, q = [np.zeros((8, 9), np.float32), np.zeros((4, 3, 3, 2), np.float32)], None
    q = [on_gpu(cupy, each) for each in p]
    host, gpu = fs.Momentum(), fs.Momentum()
    with recorder:
        twins = [Twin(cupy, g.T), Twin(cupy, layouts[1])]
        gpu.step(q, twins)
        graph, _ = recorder.capture(lambda: gpu.step(q, twins))
        host.step(p, [g.T, layouts[1]])
        for _ in range(3):
            recorder.replay(graph)
            host.step(p, [g.T, layouts[1]])
            wide = [Twin(cupy, g[::-1].T), Twin(cupy, layouts[0])]
            gpu.step(q, wide)
            host.step(p, [g[::-1].T, layouts[0]])
        recorder.stream.synchronize()
    assert verify.difference([each.get() for each in q], p) == 0


def test_zeroing_a_strided_gradient(cupy):
    for dtype, param in itertools.product(FLOATS, FLOATS):
        whole = np.ones((20, 30), dtype)
        twin = Twin(cupy, whole[::2].T)
        p = cupy.zeros((30, 10), param)
        for bad in (False, True):
            fs.SGD(lr=1.0, zero_grad=True, skip_nonfinite=True).step([p], [twin])
            assert (p.get() == -1).all()
            left = twin.bytes.get().view(dtype)
            assert (left.astype(float).sum(), left.size) == (9 * 30, 19 * 30)
            if not bad:
                whole[::2][3, 5] = np.inf
                twin = Twin(cupy, whole[::2].T)


def test_gradients_on_two_devices(cupy, devices):
    rng = np.random.default_rng(8)
    grads = [rng.standard_normal((7, 5)).T, rng.standard_normal((6, 4))[::-1]]
    p, q = [np.zeros((5, 7), np.float32), np.zeros((6, 4))], []
    twins = []
    for device, each, grad in zip(devices, p, grads, strict=True):
        with device:
            q.append(on_gpu(cupy, each))
            twins.append(Twin(cupy, grad))
    host, gpu = fs.Adam(clip_global_norm=1.0), fs.Adam(clip_global_norm=1.0)
    for _ in range(2):
        assert gpu.step(q, twins).grad_norm == host.step(p, grads).grad_norm
    for device, mine, other in zip(devices, q, p, strict=True):
        with device:
            assert verify.difference([mine.get()], [other]) == 0
    grads = []
    for device, each in zip(devices, q, strict=True):
        with device:
            grads.append(each.copy())
    gpu.step(q, grads)  # lets go of the twins before the second device vanishes


def test_states_follow_a_parameter_into_another_order(cupy):
    rng = np.random.default_rng(9)
    p = rng.standard_normal((6, 7, 8))
    opt, ref = fs.Adam(ema=0.9), reference.Adam(ema=0.9)
    for axes in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        theirs = in_order(p, axes)
        mine, g = on_gpu(cupy, theirs), rng.standard_normal(p.shape)
        opt.step({"w": mine}, {"w": Twin(cupy, g)})
        ref.step({"w": theirs}, {"w": g})
        assert (mine.get() == theirs).all()
        assert opt.state["w"]["m"].strides == mine.strides
        p = theirs
