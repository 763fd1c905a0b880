"""Steps on a GPU behave like steps on the host: schedules, missing gradients, changes, skipped steps, results."""

import pickle

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu
from tests.gpu.arrays import F32, pairs, same


def both(cupy, make, steps, sizes=(5, 1100, 3), dtype=F32):
    """Make steps on the host and on the GPU; return both optimizers, and check that all arrays are equal."""
    host, gpu = make(), make()
    p, q = pairs(cupy, *sizes, dtype=dtype)
    for i in range(steps):
        g, h = pairs(cupy, *sizes, dtype=dtype, seed=i + 1)
        a, b = host.step(p, g), gpu.step(q, h)
        assert a == b
    assert all(map(same, p, q))
    return host, gpu


def test_schedules_and_overrides(cupy):
    def make():
        lr = fs.schedules.warmup(0.0, fs.schedules.cosine(0.1, steps=10), steps=3)
        return fs.Adam(lr=lr, weight_decay=0.1, overrides={1: {"weight_decay": 0.0, "lr": 0.5}})

    host, gpu = both(cupy, make, 8)
    assert gpu.t == host.t


@pytest.mark.parametrize("cls", [fs.Adam, fs.Nadam])
def test_gradients_may_be_missing(cupy, cls):
    host, gpu = cls(lr=fs.schedules.step(0.1, 0.5, every=2)), cls(lr=fs.schedules.step(0.1, 0.5, every=2))
    p, q = pairs(cupy, 5, 6, 7)
    for missing in (None, 0, 1, 0, 2, None):
        g, h = pairs(cupy, 5, 6, 7, seed=3)
        if missing is not None:
            g[missing] = h[missing] = None
        host.step(p, g)
        gpu.step(q, h)
    assert all(map(same, p, q))
    assert gpu.t == host.t == {0: 4, 1: 5, 2: 5}


def test_a_gradient_may_be_missing_from_the_first_step(cupy):
    optimizer = fs.Adam(clip_global_norm=1.0)
    q = cupy.asarray(np.ones(5, F32))
    assert optimizer.step(q, None).grad_norm == 0
    host, gpu = fs.Adam(), fs.Adam()
    (p, g), (q, _) = pairs(cupy, 5, 5)
    for grads in ([g, None], [g, None], [None, g], [g, g.copy()]):
        host.step([p, p2 := p.copy()], grads)
        gpu.step([q, cupy.asarray(p2)], [None if x is None else cupy.asarray(x) for x in grads])
    assert same(q, p)
    assert gpu.t == host.t


def test_a_parameter_may_change_its_dtype_in_a_step_without_its_gradient(cupy):
    for cls in (fs.SGD, fs.Adam):
        options = {} if cls is fs.SGD else {"state_dtype": "float32"}
        host, gpu = cls(**options), cls(**options)
        (a, b), (x, y) = pairs(cupy, 300, 300)
        h16, g16 = a.astype(np.float16), cupy.asarray(a.astype(np.float16))
        for params, twins, grads in (
            ([a, b], [x, y], [a.copy(), b.copy()]),
            ([h16, b], [g16, y], [None, b.copy()]),
            ([h16, b], [g16, y], [h16.copy(), b.copy()]),
        ):
            host.step(params, grads)
            gpu.step(twins, [None if g is None else cupy.asarray(g) for g in grads])
        assert same(g16, h16)
        assert same(y, b)


def test_hyperparameters_may_change(cupy):
    host, gpu = fs.Adam(), fs.Adam()
    p, q = pairs(cupy, 50)
    g, h = pairs(cupy, 50, seed=1)
    for change in ({}, {"lr": 0.1}, {"ema": 0.9}, {"amsgrad": True}, {"weight_decay": 0.1}, {"ema": None}):
        for optimizer in (host, gpu):
            for name, value in change.items():
                setattr(optimizer, name, value)
        host.step(p, g)
        gpu.step(q, h)
        assert all(map(same, p, q))
    assert gpu.t == host.t == {0: 6}
    assert same(gpu.ema[0], host.ema[0])


def test_parameters_may_come_and_go(cupy):
    host, gpu = fs.Adam(), fs.Adam()
    (p, g), (q, h) = pairs(cupy, 9, 9)
    host.step({"a": p}, {"a": g})
    gpu.step({"a": q}, {"a": h})
    (p2, g2), (q2, h2) = pairs(cupy, 4, 4, seed=1)
    host.step({"a": p, "b": p2}, {"a": g, "b": g2})
    gpu.step({"a": q, "b": q2}, {"a": h, "b": h2})
    host.step({"b": p2}, {"b": g2})
    gpu.step({"b": q2}, {"b": h2})
    assert same(q, p)
    assert same(q2, p2)
    assert gpu.t == host.t == {"a": 2, "b": 2}


def test_states_are_arrays_beside_their_parameter(cupy):
    optimizer = fs.Adam(ema=0.9)
    optimizer.step(cupy.zeros((2, 3), F32), cupy.zeros((2, 3), F32))
    for array in (*optimizer.state[0].values(), optimizer.ema[0]):
        assert type(array) is cupy.ndarray
        assert (array.shape, array.dtype, array.device.id) == ((2, 3), F32, 0)


def test_what_the_caller_writes_into_a_state_counts(cupy):
    host, gpu = fs.Momentum(), fs.Momentum()
    (p, g), (q, h) = pairs(cupy, 9, 9)
    for _ in range(2):
        host.step(p, g)
        gpu.step(q, h)
        host.state[0]["b"][...] = 2
        gpu.state[0]["b"].fill(2)
    assert same(q, p)


@pytest.mark.parametrize("dtype", [F32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_steps_that_are_skipped(cupy, bad, dtype):
    options = {"skip_nonfinite": True, "zero_grad": True, "lr": fs.schedules.step(0.1, 0.5, every=2)}
    host, gpu = fs.Adam(**options), fs.Adam(**options)
    p, q = pairs(cupy, 5, 2000, dtype=dtype)
    for i in range(6):
        g, _ = pairs(cupy, 5, 2000, dtype=dtype, seed=i)
        if i in (0, 2, 3):
            g[1][1500] = bad
        h = [cupy.asarray(x) for x in g]
        a, b = host.step(p, g), gpu.step(q, h)
        assert (a.skipped, a.nonfinite) == (b.skipped, b.nonfinite) == ((True, 1) if i in (0, 2, 3) else (False, None))
        assert a.grad_norm == b.grad_norm or (a.grad_norm != a.grad_norm and b.grad_norm != b.grad_norm)
        assert not h[0].get().any()
        assert gpu.t == host.t
    assert all(map(same, p, q))


def test_a_large_finite_float64_gradient_is_no_reason_to_skip(cupy):
    """The square of 1e200 is infinite, but the gradient is not."""
    q = cupy.asarray(np.zeros(3))
    assert not fs.SGD(skip_nonfinite=True).step(q, cupy.asarray(np.full(3, 1e200))).skipped


def test_results_may_be_read_at_any_time(cupy):
    """Results are right even when far more steps have been made since than a GPU keeps results of."""
    host, gpu = fs.SGD(clip_norm=1.0), fs.SGD(clip_norm=1.0)
    p, q = pairs(cupy, 40)
    g, h = pairs(cupy, 40, seed=1)
    wanted, found = [], []
    for i in range(_cpu.tickets + 20):
        g[0][0] = i
        h[0].set(g[0])
        wanted.append(host.step(p, g))
        found.append(gpu.step(q, h))
    assert [result.grad_norm for result in found] == [result.grad_norm for result in wanted]
    assert found == wanted
    assert pickle.loads(pickle.dumps(found[3])) == wanted[3]
    assert repr(found[3]) == repr(wanted[3]).replace("Result", "Pending")


def test_results_outlive_the_arrays_of_their_step(cupy):
    """Tables of a step stay as long as its result may be read, though other parameters have made other tables."""
    host, gpu = fs.SGD(clip_norm=1.0), fs.SGD(clip_norm=1.0)
    wanted, found = [], []
    for i in range(4):
        (p, g), (q, h) = pairs(cupy, 40, 40, seed=i)
        wanted.append(host.step(p, g).grad_norm)
        found.append(gpu.step(q, h))
    assert [result.grad_norm for result in found] == wanted
    assert hash(found[0]) == hash(fs.Result(wanted[0]))


def test_the_step_count_comes_back_from_the_gpu(cupy):
    """SGD has no state that would have to follow when arrays of the host take the place of those of the GPU."""
    host, both = (fs.SGD(lr=fs.schedules.step(1.0, 0.5, every=2), skip_nonfinite=True) for _ in range(2))
    (p, g), (q, h) = pairs(cupy, 9, 9)
    for i in range(6):
        host.step(p, g)
        if i in (0, 1, 4):
            both.step([q], [h])
        else:
            there = q.get()
            both.step([there], [g])
            q.set(there)
    assert both.t == host.t == {0: 6}
    assert same(q, p)


def test_frozen_parameters(cupy):
    host, gpu = fs.Adam(clip_global_norm=1.0), fs.Adam(clip_global_norm=1.0)
    p, q = pairs(cupy, 5, 1100, 7)
    for frozen in ({}, {1: {"frozen": True}}, {0: {"frozen": True}, 1: {"bounds": (-0.5, 0.5)}}, {}):
        host.overrides = gpu.overrides = frozen
        g, h = pairs(cupy, 5, 1100, 7, seed=len(frozen))
        assert gpu.step(q, h).grad_norm == host.step(p, g).grad_norm
        assert all(map(same, q, p))
    assert gpu.t == host.t == {0: 3, 1: 3, 2: 4}


@pytest.mark.parametrize("dtype", [F32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("options", [{}, {"state_dtype": "same", "rounding": "stochastic"}, {"master_weights": True}])
def test_parameters_without_a_gradient_are_averaged(cupy, dtype, options):
    host, gpu = fs.Adam(lr=0.1, ema=0.9, **options), fs.Adam(lr=0.1, ema=0.9, **options)
    p, q = pairs(cupy, 5, 2100, 7, 40, dtype=dtype)
    for present in ((0, 1), (2,), (), (0, 1, 2)):
        g, h = pairs(cupy, 5, 2100, 7, 40, dtype=dtype, seed=len(present))
        host.step(p, [x if i in present else None for i, x in enumerate(g)])
        gpu.step(q, [x if i in present else None for i, x in enumerate(h)])
        assert all(map(same, q, p))
        assert all(same(gpu.ema[i], host.ema[i]) for i in range(4))
    assert gpu.t == host.t == {0: 2, 1: 2, 2: 2, 3: 0}


@pytest.mark.parametrize(
    ("dtype", "state_dtype"), [(F32, "same"), (ml_dtypes.bfloat16, "same"), (ml_dtypes.bfloat16, "float32")]
)
def test_parameters_are_their_averages_for_a_while(cupy, dtype, state_dtype):
    opt = fs.Adam(lr=0.1, ema=0.5, state_dtype=state_dtype)
    _, (q, h) = pairs(cupy, 3000, 3000, dtype=dtype)
    for _ in range(3):
        opt.step([q], [h])
    before, average = q.get(), opt.ema[0].get()
    with opt.averaged([q]):
        assert same(q, average.astype(dtype))
        with pytest.raises(RuntimeError, match="the parameters are their averages at present"):
            opt.step([q], [h])
    assert same(q, before)
    assert same(opt.ema[0], average)
    opt.step([q], [h])
