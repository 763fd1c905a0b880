"""The promise of equal bits on a GPU, and how steps go there: streams, graphs, lifetimes, several devices."""

import copy
import gc
import inspect
import pickle
import weakref
from functools import cache

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu, functional, reference
from fusedstep.tools import verify

F32 = np.float32
CLASSES = verify.classes()
GRID = [(cls, label, tuple(cases)) for cls in CLASSES for label, cases in verify.cases(cls).items()]
TILES = (1023, 1024, 1025, 0, 1, 3000, 2048)  # around the elements that a warp takes at a time
SMALLEST = 2.0**-126


@cache
def _expected(cls, options, dtype, sizes, grad_dtype=None):
    return verify.outcome(getattr(reference, cls.__name__)(**dict(options)), dtype, sizes, grad_dtype)


def _difference(cupy, cls, options, dtype, sizes, grad_dtype=None):
    found = verify.outcome(cls(**options), dtype, sizes, grad_dtype, cupy.asarray)
    return verify.difference(found, _expected(cls, tuple(options.items()), dtype, sizes, grad_dtype))


def _host(array):
    return array if isinstance(array, np.ndarray) else array.get()


def _same(a, b):
    """Whether two arrays are equal, bit for bit, wherever they are."""
    return verify.difference([_host(a)], [_host(b)]) == 0


def _pairs(cupy, *sizes, dtype=F32, seed=0):
    """Return arrays of random numbers on the host, and copies on the GPU."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(n).astype(dtype) for n in sizes]
    return arrays, [cupy.asarray(array) for array in arrays]


# Bits.


@pytest.mark.parametrize(("cls", "label", "cases"), GRID, ids=[f"{cls.__name__}-{label}" for cls, label, _ in GRID])
def test_every_dialect_and_option_has_the_bits_of_the_reference(cupy, cls, label, cases):
    different = [case for case in cases if _difference(cupy, cls, case[0], case[1], verify.SMALL, case[2])]
    assert not different


@pytest.mark.parametrize("dtype", [*verify.DTYPES, *verify.HALVES])
@pytest.mark.parametrize("options", [{}, {"clip_global_norm": 20.0, "ema": 0.9, "zero_grad": True}], ids=str)
@pytest.mark.parametrize("cls", CLASSES)
def test_tiles_change_no_bit(cupy, cls, options, dtype):
    assert _difference(cupy, cls, options, dtype, TILES) == 0


@pytest.mark.parametrize("dtype", verify.HALVES)
def test_random_bits_depend_on_the_number_of_the_element(cupy, dtype):
    options = {"rounding": "stochastic", "state_dtype": "same", "seed": 3}
    assert _difference(cupy, fs.Adam, options, dtype, TILES) == 0


def test_a_large_tensor_has_the_norm_of_the_reference(cupy):
    """Of three levels of sums."""
    (p, g), (q, h) = _pairs(cupy, 1024 * 1025 + 7, 1024 * 1025 + 7)
    host, gpu = fs.SGD(clip_global_norm=1.0), fs.SGD(clip_global_norm=1.0)
    assert gpu.step(q, h).grad_norm == host.step(p, g).grad_norm
    assert _same(q, p)


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
    assert _same(whole[shift : 80 - shift], part[shift : 80 - shift])


def test_arrays_that_are_not_aligned_alike(cupy):
    rng = np.random.default_rng(6)
    start = rng.standard_normal(300).astype(F32)
    p, g = start.copy(), rng.standard_normal(300).astype(F32)
    whole, grads = cupy.asarray(np.append(np.zeros(1, F32), start)), cupy.asarray(np.append(np.zeros(2, F32), g))
    host, gpu = fs.Adam(), fs.Adam()
    for _ in range(3):
        host.step(p, g)
        gpu.step(whole[1:], grads[2:])
    assert _same(whole[1:], p)
    assert whole.get()[0] == 0


def test_around_the_smallest_normal_number(cupy):
    """What flushes, and what rounds up to 2**-126 and stays: judged after rounding, as on x86."""
    lr = (1 - 2.0**-13) * 2.0**-63
    rng = np.random.default_rng(7)
    g = np.append(F32((1 + 2.0**-13) * 2.0**-63), (rng.uniform(0.99, 1.01, 100_000) * 2.0**-63).astype(F32))
    p = np.zeros_like(g)
    found, wanted = cupy.asarray(p), p.copy()
    fs.SGD(lr=lr).step(found, cupy.asarray(g))
    reference.SGD(lr=lr).step(wanted, g)
    assert wanted[0] == -SMALLEST
    assert ((wanted == 0).any(), (wanted == -SMALLEST).any()) == (True, True)
    assert _same(found, wanted)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_rule_around_the_smallest_normal_number(cupy, cls):
    """Products, quotients and states near 2**-126, of random mantissas."""
    rng = np.random.default_rng(8)
    n = 20_000
    p, *grads = ((rng.uniform(0.5, 2, n) * 2.0 ** rng.integers(-127, -60, n)).astype(F32) for _ in range(4))
    found, wanted = cupy.asarray(p), p.copy()
    optimizer, specification = cls(lr=2.0**-40), getattr(reference, cls.__name__)(lr=2.0**-40)
    for g in grads:
        optimizer.step(found, cupy.asarray(g))
        specification.step(wanted, g)
    assert _same(found, wanted)
    for name, state in optimizer.state[0].items():
        assert _same(state, specification.state[0][name]), name


@pytest.mark.parametrize("name", functional.__all__)
def test_functions_have_the_bits_of_the_host(cupy, own_state, name):
    function = getattr(functional, name)
    for options in ({}, {"clip_global_norm": 1.0, "weight_decay": 0.1}):
        arrays, twins = _pairs(cupy, 3000, 5, 3000, 5)
        states = [own_state(function, n, F32) for n in (3000, 5)]
        names = list(states[0])
        on_gpu = [{key: cupy.asarray(state) for key, state in some.items()} for some in states]
        counts = {
            name: n for name, n in {"t": 3, "product": 0.5}.items() if name in inspect.signature(function).parameters
        }
        returned = [
            function(a[:2], a[2:], *([some[key] for some in s] for key in names), lr=0.1, **counts, **options)
            for a, s in ((arrays, states), (twins, on_gpu))
        ]
        assert returned[0] == returned[1]
        assert verify.difference([a.get() for a in twins], arrays) == 0
        for some, twin in zip(states, on_gpu, strict=True):
            assert all(_same(twin[key], some[key]) for key in names)


# Like on the host.


def _both(cupy, make, steps, sizes=(5, 1100, 3), dtype=F32):
    """Make steps on the host and on the GPU; return both optimizers, and check that all arrays are equal."""
    host, gpu = make(), make()
    p, q = _pairs(cupy, *sizes, dtype=dtype)
    for i in range(steps):
        g, h = _pairs(cupy, *sizes, dtype=dtype, seed=i + 1)
        a, b = host.step(p, g), gpu.step(q, h)
        assert a == b
    assert all(map(_same, p, q))
    return host, gpu


def test_schedules_and_overrides(cupy):
    def make():
        lr = fs.schedules.warmup(0.0, fs.schedules.cosine(0.1, steps=10), steps=3)
        return fs.Adam(lr=lr, weight_decay=0.1, overrides={1: {"weight_decay": 0.0, "lr": 0.5}})

    host, gpu = _both(cupy, make, 8)
    assert gpu.t == host.t


@pytest.mark.parametrize("cls", [fs.Adam, fs.Nadam])
def test_gradients_may_be_missing(cupy, cls):
    host, gpu = cls(lr=fs.schedules.step(0.1, 0.5, every=2)), cls(lr=fs.schedules.step(0.1, 0.5, every=2))
    p, q = _pairs(cupy, 5, 6, 7)
    for missing in (None, 0, 1, 0, 2, None):
        g, h = _pairs(cupy, 5, 6, 7, seed=3)
        if missing is not None:
            g[missing] = h[missing] = None
        host.step(p, g)
        gpu.step(q, h)
    assert all(map(_same, p, q))
    assert gpu.t == host.t == {0: 4, 1: 5, 2: 5}


def test_a_gradient_may_be_missing_from_the_first_step(cupy):
    optimizer = fs.Adam(clip_global_norm=1.0)
    q = cupy.asarray(np.ones(5, F32))
    assert optimizer.step(q, None).grad_norm == 0
    host, gpu = fs.Adam(), fs.Adam()
    (p, g), (q, _) = _pairs(cupy, 5, 5)
    for grads in ([g, None], [g, None], [None, g], [g, g.copy()]):
        host.step([p, p2 := p.copy()], grads)
        gpu.step([q, cupy.asarray(p2)], [None if x is None else cupy.asarray(x) for x in grads])
    assert _same(q, p)
    assert gpu.t == host.t


def test_a_parameter_may_change_its_dtype_in_a_step_without_its_gradient(cupy):
    for cls in (fs.SGD, fs.Adam):
        options = {} if cls is fs.SGD else {"state_dtype": "float32"}
        host, gpu = cls(**options), cls(**options)
        (a, b), (x, y) = _pairs(cupy, 300, 300)
        h16, g16 = a.astype(np.float16), cupy.asarray(a.astype(np.float16))
        for params, twins, grads in (
            ([a, b], [x, y], [a.copy(), b.copy()]),
            ([h16, b], [g16, y], [None, b.copy()]),
            ([h16, b], [g16, y], [h16.copy(), b.copy()]),
        ):
            host.step(params, grads)
            gpu.step(twins, [None if g is None else cupy.asarray(g) for g in grads])
        assert _same(g16, h16)
        assert _same(y, b)


def test_hyperparameters_may_change(cupy):
    host, gpu = fs.Adam(), fs.Adam()
    p, q = _pairs(cupy, 50)
    g, h = _pairs(cupy, 50, seed=1)
    for change in ({}, {"lr": 0.1}, {"ema": 0.9}, {"amsgrad": True}, {"weight_decay": 0.1}, {"ema": None}):
        for optimizer in (host, gpu):
            for name, value in change.items():
                setattr(optimizer, name, value)
        host.step(p, g)
        gpu.step(q, h)
        assert all(map(_same, p, q))
    assert gpu.t == host.t == {0: 6}
    assert _same(gpu.ema[0], host.ema[0])


def test_parameters_may_come_and_go(cupy):
    host, gpu = fs.Adam(), fs.Adam()
    (p, g), (q, h) = _pairs(cupy, 9, 9)
    host.step({"a": p}, {"a": g})
    gpu.step({"a": q}, {"a": h})
    (p2, g2), (q2, h2) = _pairs(cupy, 4, 4, seed=1)
    host.step({"a": p, "b": p2}, {"a": g, "b": g2})
    gpu.step({"a": q, "b": q2}, {"a": h, "b": h2})
    host.step({"b": p2}, {"b": g2})
    gpu.step({"b": q2}, {"b": h2})
    assert _same(q, p)
    assert _same(q2, p2)
    assert gpu.t == host.t == {"a": 2, "b": 2}


def test_states_are_arrays_beside_their_parameter(cupy):
    optimizer = fs.Adam(ema=0.9)
    optimizer.step(cupy.zeros((2, 3), F32), cupy.zeros((2, 3), F32))
    for array in (*optimizer.state[0].values(), optimizer.ema[0]):
        assert type(array) is cupy.ndarray
        assert (array.shape, array.dtype, array.device.id) == ((2, 3), F32, 0)


def test_what_the_caller_writes_into_a_state_counts(cupy):
    host, gpu = fs.Momentum(), fs.Momentum()
    (p, g), (q, h) = _pairs(cupy, 9, 9)
    for _ in range(2):
        host.step(p, g)
        gpu.step(q, h)
        host.state[0]["b"][...] = 2
        gpu.state[0]["b"].fill(2)
    assert _same(q, p)


@pytest.mark.parametrize("dtype", [F32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_steps_that_are_skipped(cupy, bad, dtype):
    options = {"skip_nonfinite": True, "zero_grad": True, "lr": fs.schedules.step(0.1, 0.5, every=2)}
    host, gpu = fs.Adam(**options), fs.Adam(**options)
    p, q = _pairs(cupy, 5, 2000, dtype=dtype)
    for i in range(6):
        g, _ = _pairs(cupy, 5, 2000, dtype=dtype, seed=i)
        if i in (0, 2, 3):
            g[1][1500] = bad
        h = [cupy.asarray(x) for x in g]
        a, b = host.step(p, g), gpu.step(q, h)
        assert (a.skipped, a.nonfinite) == (b.skipped, b.nonfinite) == ((True, 1) if i in (0, 2, 3) else (False, None))
        assert a.grad_norm == b.grad_norm or (a.grad_norm != a.grad_norm and b.grad_norm != b.grad_norm)
        assert not h[0].get().any()
        assert gpu.t == host.t
    assert all(map(_same, p, q))


def test_a_large_finite_float64_gradient_is_no_reason_to_skip(cupy):
    """Though its square is infinite."""
    q = cupy.asarray(np.zeros(3))
    assert not fs.SGD(skip_nonfinite=True).step(q, cupy.asarray(np.full(3, 1e200))).skipped


def test_results_may_be_read_at_any_time(cupy):
    """Also when far more steps have been made than the GPU remembers."""
    host, gpu = fs.SGD(clip_norm=1.0), fs.SGD(clip_norm=1.0)
    p, q = _pairs(cupy, 40)
    g, h = _pairs(cupy, 40, seed=1)
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
    """Other parameters make other tables, and the old ones stay as long as a result is to be read."""
    host, gpu = fs.SGD(clip_norm=1.0), fs.SGD(clip_norm=1.0)
    wanted, found = [], []
    for i in range(4):
        (p, g), (q, h) = _pairs(cupy, 40, 40, seed=i)
        wanted.append(host.step(p, g).grad_norm)
        found.append(gpu.step(q, h))
    assert [result.grad_norm for result in found] == wanted
    assert hash(found[0]) == hash(fs.Result(wanted[0]))


def test_the_step_count_comes_back_from_the_gpu(cupy):
    """Also where no state has to follow, and the same plan goes on with arrays of the host."""
    host, both = (fs.SGD(lr=fs.schedules.step(1.0, 0.5, every=2), skip_nonfinite=True) for _ in range(2))
    (p, g), (q, h) = _pairs(cupy, 9, 9)
    for i in range(6):
        host.step(p, g)
        if i in (0, 1, 4):
            both.step(q, h)
        else:
            there = q.get()
            both.step(there, g)
            q.set(there)
    assert both.t == host.t == {0: 6}
    assert _same(q, p)


# Numbers on the GPU.


def test_hyperparameters_may_be_on_the_gpu(cupy):
    host, gpu = fs.AdamW(), fs.AdamW()
    numbers = {name: cupy.asarray(np.zeros(())) for name in ("lr", "beta1", "weight_decay", "clip_global_norm", "eps")}
    for name, number in numbers.items():
        setattr(gpu, name, number)
    scale = cupy.asarray(np.ones(1))
    p, q = _pairs(cupy, 50)
    for i in range(4):
        g, h = _pairs(cupy, 50, seed=i)
        now = {
            "lr": 0.1 / (i + 1),
            "beta1": 0.5 + i / 10,
            "weight_decay": i / 10,
            "clip_global_norm": i + 1.0,
            "eps": 0.1,
        }
        for name, value in now.items():
            setattr(host, name, value)
            numbers[name].fill(value)
        scale.fill(i + 0.5)
        host.step(p, g, grad_scale=i + 0.5)
        gpu.step(q, h, grad_scale=scale)
        assert _same(q[0], p[0])
    assert gpu.state_dict()["hyperparameters"]["lr"] == host.lr
    assert copy.deepcopy(gpu).beta1 == host.beta1
    assert gpu.t == host.t == {0: 4}


def test_a_momentum_on_the_gpu_may_be_0(cupy):
    host, gpu = fs.RMSprop(momentum=0.5), fs.RMSprop(momentum=cupy.asarray(np.zeros(())))
    (p, g), (q, h) = _pairs(cupy, 9, 9)
    gpu.step(q, h)
    host.momentum = lambda done: 0.0
    host.step(p, g)
    assert _same(q, p)
    assert set(gpu.state[0]) == {"v", "b"}


def test_a_refused_hyperparameter_stays_refused(cupy):
    _, (q, h) = _pairs(cupy, 9, 9)
    optimizer = fs.SGD()
    optimizer.step(q, h)
    optimizer.lr = cupy.asarray(np.ones(1, F32))
    for _ in range(2):
        with pytest.raises(TypeError, match="lr is an array on a GPU, expected float64 and one element"):
            optimizer.step(q, h)
    assert optimizer.t == {0: 1}


def test_functions_take_no_number_on_the_gpu(cupy):
    class Number(Foreign):
        __hash__ = object.__hash__

    p = np.ones(3, F32)
    with pytest.raises(TypeError, match=r"lr is .*, expected a number"):
        functional.sgd(p, p.copy(), lr=Number(cupy.asarray(np.ones(()))))
    with pytest.raises(TypeError, match=r"lr\(0\) is .*, expected a number"):
        fs.SGD(lr=lambda done: cupy.asarray(np.ones(()))).step(p, p.copy())


def test_foreign_numbers_on_the_gpu_are_waited_for_and_kept(cupy):
    theirs = cupy.cuda.Stream(non_blocking=True)
    (p, g), (q, h) = _pairs(cupy, 9, 9)
    scale, lr = cupy.zeros((), np.float64), cupy.zeros((), np.float64)
    cupy.cuda.get_current_stream().synchronize()
    with theirs:
        scale.fill(2.0)
        lr.fill(0.5)
    number = Foreign(scale, stream=theirs.ptr)
    alive = weakref.ref(number)
    optimizer = fs.SGD(lr=Foreign(lr, stream=theirs.ptr))
    optimizer.step(q, h, grad_scale=number)
    del number
    if hasattr(cupy, "emulator"):  # where work waits until somebody waits for it
        assert alive() is not None
    fs.SGD(lr=0.5).step(p, g, grad_scale=2.0)
    assert _same(q, p)


def test_numbers_on_the_gpu_that_cannot_be(cupy):
    number = cupy.asarray(np.ones(()))
    with pytest.raises(TypeError, match=r"initial_accumulator is .*, expected a number"):
        fs.Adagrad(initial_accumulator=number)
    with pytest.raises(TypeError, match=r"schedule_decay is .*, expected a number"):
        fs.Nadam(schedule_decay=number)
    with pytest.raises(TypeError, match=r"maximize is .*, expected True or False"):
        fs.Adam(maximize=number)
    q = cupy.asarray(np.ones(3, F32))
    with pytest.raises(TypeError, match="lr is an array on a GPU, expected float64 and one element"):
        fs.Adam(lr=cupy.asarray(np.ones(2))).step(q, q.copy())
    with pytest.raises(TypeError, match="grad_scale is an array on a GPU, expected float64 and one element"):
        fs.Adam().step(q, q.copy(), grad_scale=cupy.asarray(np.ones(1, F32)))
    for optimizer, scale in ((fs.Adam(lr=number), 1.0), (fs.Adam(), number)):
        with pytest.raises(TypeError, match="a hyperparameter or grad_scale is on a GPU, expected a number"):
            optimizer.step(np.ones(3), np.ones(3), grad_scale=scale)
        assert not optimizer.state


# Streams, graphs, lifetimes.


def test_a_step_in_steady_state_only_starts_kernels(cupy, emulator):
    """Nothing is allocated, copied, waited for or read: also with everything on."""
    for options, launches in (({}, 2), ({"clip_global_norm": 1.0, "skip_nonfinite": True, "ema": 0.9}, 5)):
        optimizer = fs.AdamW(**options)
        _, q = _pairs(cupy, 5000, 3, 0)
        _, h = _pairs(cupy, 5000, 3, 0, seed=1)
        for _ in range(2):
            optimizer.step(q, h)
        emulator.emulator_reset_calls()
        for _ in range(3):
            optimizer.step(q, h)
        calls = emulator.emulator_calls
        assert calls(b"cudaLaunchKernel") == 3 * launches
        for name in ("Malloc", "MallocAsync", "Free", "FreeAsync", "Memcpy", "MemcpyAsync", "Memset", "MemsetAsync"):
            assert calls(f"cuda{name}".encode()) == 0, name
        for name in ("DeviceSynchronize", "StreamSynchronize", "EventSynchronize", "EventQuery"):
            assert calls(f"cuda{name}".encode()) == 0, name


def test_thousand_tensors_are_one_launch(cupy, emulator):
    optimizer = fs.Adam()
    arrays = [cupy.asarray(np.ones(64, F32)) for _ in range(1000)]
    grads = [cupy.asarray(np.ones(64, F32)) for _ in range(1000)]
    for _ in range(2):
        optimizer.step(arrays, grads)
    emulator.emulator_reset_calls()
    optimizer.step(arrays, grads)
    assert emulator.emulator_calls(b"cudaLaunchKernel") == 2  # one derives the scalars, one updates


def test_new_gradients_are_told_to_the_gpu(cupy):
    host, gpu = fs.Momentum(), fs.Momentum()
    p, q = _pairs(cupy, 500, 3)
    kept = []
    for i in range(5):
        g, h = _pairs(cupy, 500, 3, seed=i)
        kept.append(h[i % 2])  # so that one address is new and the other may be used again
        host.step(p, g)
        gpu.step(q, h)
    assert all(map(_same, p, q))


def test_a_gradient_may_be_freed_right_after_the_step(cupy):
    host, gpu = fs.Momentum(), fs.Momentum()
    p, q = _pairs(cupy, 5000)
    for i in range(3):
        g, h = _pairs(cupy, 5000, seed=i)
        host.step(p, g)
        gpu.step(q, h)
        del h
        gc.collect()
        cupy.full((5000,), np.nan, F32)  # in the same memory
    assert _same(q[0], p[0])


def test_a_plan_holds_neither_parameters_nor_gradients(cupy):
    optimizer = fs.SGD()
    p, g = cupy.asarray(np.ones(5, F32)), cupy.asarray(np.ones(5, F32))
    optimizer.step(p, g)
    references = [weakref.ref(p), weakref.ref(g)]
    del p, g
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.parametrize("how", ["current", "argument"])
def test_a_step_is_ordered_in_its_stream(cupy, how):
    """The gradient is made in the stream just before the step, and the parameter read in it right after."""
    stream = cupy.cuda.Stream(non_blocking=True)
    host, gpu = fs.Adam(), fs.Adam()
    p, q = _pairs(cupy, 3000)
    g = np.ones(3000, F32)
    h = cupy.asarray(g)
    cupy.cuda.get_current_stream().synchronize()
    for i in range(3):
        g[...] = i
        if how == "current":
            with stream:
                h.fill(i)
                gpu.step(q[0], h)
                found = q[0].copy()
                h.fill(np.nan)
        else:
            with stream:
                h.fill(i)
            gpu.step(q[0], h, stream=stream)
            with stream:
                h.fill(np.nan)
            found = q[0].copy()  # in the current stream, which waits
        host.step(p[0], g)
    stream.synchronize()
    assert _same(found, p[0])


def test_one_optimizer_in_one_stream_after_another(cupy):
    """The tables that it keeps are not written in one stream while another still reads them."""
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    host, gpu = fs.Adam(lr=0.1), fs.Adam(lr=0.1)
    p, q = _pairs(cupy, 3000)
    g, h = _pairs(cupy, 3000, seed=1)
    cupy.cuda.get_current_stream().synchronize()
    for i in range(6):
        host.lr = gpu.lr = 0.1 / (i + 1)
        host.step(p, g)
        with streams[i % 2]:
            gpu.step(q, h)
    for stream in streams:
        stream.synchronize()
    assert _same(q[0], p[0])


def test_two_optimizers_in_two_streams(cupy):
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    hosts, gpus = ([fs.Adam(clip_norm=1.0), fs.Lion(lr=0.1)] for _ in range(2))
    p, q = _pairs(cupy, 3000, 3000)
    g, h = _pairs(cupy, 3000, 3000, seed=1)
    cupy.cuda.get_current_stream().synchronize()
    for _ in range(3):
        for i in range(2):
            hosts[i].step(p[i], g[i])
            with streams[i]:
                gpus[i].step(q[i], h[i])
    for stream in streams:
        stream.synchronize()
    assert all(map(_same, p, q))


def test_bad_streams(cupy):
    q = cupy.asarray(np.ones(3, F32))
    optimizer = fs.SGD()
    for stream in (7, object(), "stream"):
        with pytest.raises(TypeError, match=r"stream is of type .*, expected an object whose __cuda_stream__"):
            optimizer.step(q, q.copy(), stream=stream)
    with pytest.raises(TypeError, match="stream is given, expected None with params in host memory"):
        optimizer.step(np.ones(3), np.ones(3), stream=cupy.cuda.Stream(non_blocking=True))
    assert not optimizer.t[0] if 0 in optimizer.t else True
    assert _same(q, np.ones(3, F32))


@pytest.mark.parametrize("cls", CLASSES)
def test_a_captured_step_is_replayed_with_other_numbers(cupy, cls):
    """The step counts in the graph, and the learning rate, the limit and the scale are read from the GPU."""
    host, gpu = cls(clip_global_norm=1.0), cls(clip_global_norm=1.0)
    lr, clip, scale = (cupy.asarray(np.zeros(())) for _ in range(3))
    gpu.lr, gpu.clip_global_norm = lr, clip
    p, q = _pairs(cupy, 3000, 5)
    g, h = _pairs(cupy, 3000, 5, seed=1)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    graph, results = None, []
    for i in range(6):
        host.lr, host.clip_global_norm = 0.1 / (i + 1), 0.5 + i
        with stream:
            for number, value in ((lr, host.lr), (clip, host.clip_global_norm), (scale, 1.0 + i)):
                number.fill(value)
            for x, y in zip(g, h, strict=True):
                x += 1
                y.set(x)
            if i == 2:
                stream.begin_capture()
                captured = gpu.step(q, h, grad_scale=scale)
                graph = stream.end_capture()
            if graph:
                graph.launch(stream)
                stream.synchronize()
                results.append(captured.grad_norm)
            else:
                gpu.step(q, h, grad_scale=scale)
        found = host.step(p, g, grad_scale=1.0 + i)
        assert not results or results[-1] == found.grad_norm
    stream.synchronize()
    assert all(map(_same, p, q))
    assert gpu.t == host.t == {0: 6, 1: 6}

    # A plain step, with other gradients, between two replays.
    h2 = [cupy.asarray(x) for x in g]
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        gpu.step(q, h2, grad_scale=scale)
        graph.launch(stream)
        gpu.step(q, h2, grad_scale=scale)
    stream.synchronize()
    for _ in range(3):
        host.step(p, g, grad_scale=6.0)
    assert all(map(_same, p, q))
    assert gpu.t == host.t == {0: 9, 1: 9}


def test_a_graph_may_be_captured_in_another_stream_than_the_current_one(cupy):
    host, gpu = fs.Momentum(), fs.Momentum()
    (p, g), (q, h) = _pairs(cupy, 3000, 3000)
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    cupy.cuda.get_current_stream().synchronize()
    with streams[0]:
        gpu.step(q, h)
        streams[0].begin_capture()
        gpu.step(q, h, stream=streams[1])
        graph = streams[0].end_capture()
        for _ in range(2):
            graph.launch(streams[0])
    streams[0].synchronize()
    for _ in range(3):
        host.step(p, g)
    assert _same(q, p)
    assert gpu.t == host.t == {0: 3}


def test_results_of_graphs_and_of_other_steps_do_not_mix(cupy):
    optimizer = fs.SGD(lr=0.0, clip_norm=1.0)
    _, (q, h) = _pairs(cupy, 40, 40)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        optimizer.step(q, h)
        stream.begin_capture()
        captured = optimizer.step(q, h)
        graph = stream.end_capture()
        assert np.isnan(captured.grad_norm)  # so far
        assert not captured.skipped
        found = []
        for i in range(_cpu.tickets + 5):
            h.fill(i)
            found.append(optimizer.step(q, h))
        h.fill(1000)
        graph.launch(stream)
    stream.synchronize()
    norms = [result.grad_norm for result in found]
    assert np.allclose(norms, [i * np.sqrt(40) for i in range(len(found))])
    assert captured.grad_norm == pytest.approx(1000 * np.sqrt(40))
    h.fill(1)
    cupy.cuda.get_current_stream().synchronize()
    graph.launch(stream)
    stream.synchronize()
    assert captured.grad_norm == pytest.approx(np.sqrt(40))
    assert [result.grad_norm for result in found] == norms


def test_a_graph_outlives_changes_of_hyperparameters(cupy):
    host, gpu = fs.SGD(lr=0.1), fs.SGD(lr=0.1)
    p, q = _pairs(cupy, 3000, 5)
    g, h = _pairs(cupy, 3000, 5, seed=1)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        gpu.step(q, h)
        stream.begin_capture()
        gpu.step(q, h)
        graph = stream.end_capture()
        gpu.overrides = {1: {"lr": 0.5}}
        gpu.step(q, h)
        graph.launch(stream)
        gpu.step(q, h)
    stream.synchronize()
    for overrides in ({}, {1: {"lr": 0.5}}, {}, {1: {"lr": 0.5}}):
        host.overrides = overrides
        host.step(p, g)
    assert all(map(_same, p, q))


def test_a_graph_has_the_hyperparameters_of_its_capture(cupy):
    """And other steps have theirs, though a replay came in between."""
    host, gpu = fs.SGD(lr=0.1), fs.SGD(lr=0.1)
    (p, g), (q, h) = _pairs(cupy, 3000, 3000)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        gpu.step(q, h)
        stream.begin_capture()
        gpu.step(q, h)
        graph = stream.end_capture()
        gpu.lr = 0.5
        for _ in range(2):
            gpu.step(q, h)
            graph.launch(stream)
    stream.synchronize()
    for lr in (0.1, 0.5, 0.1, 0.5, 0.1):
        host.lr = lr
        host.step(p, g)
    assert _same(q, p)


def test_a_schedule_cannot_be_captured_twice(cupy):
    optimizer = fs.SGD(lr=fs.schedules.step(0.1, 0.5, every=2))
    _, (q, h) = _pairs(cupy, 40, 40)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        optimizer.step(q, h)
        stream.begin_capture()
        optimizer.step(q, h)
        with pytest.raises(RuntimeError, match="the step count is on a GPU, and cannot be read while its stream"):
            optimizer.step(q, h)
        assert stream.end_capture() is not None


def test_a_graph_outlives_the_plan_of_its_step(cupy):
    host, gpu = fs.Momentum(), fs.Momentum()
    p, q = _pairs(cupy, 3000)
    g, h = _pairs(cupy, 3000, seed=1)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        gpu.step(q, h)
        stream.begin_capture()
        gpu.step(q, h)
        graph = stream.end_capture()
        gpu.ema = 0.9  # another plan
        gpu.step(q, h)
        graph.launch(stream)
    stream.synchronize()
    for _ in range(3):
        host.step(p, g)
    assert _same(q[0], p[0])


@pytest.mark.parametrize("made", [False, True])
def test_a_first_step_cannot_be_captured(cupy, made):
    optimizer = fs.Adam()
    _, q = _pairs(cupy, 30)
    _, h = _pairs(cupy, 30, seed=1)
    stream = cupy.cuda.Stream(non_blocking=True)
    before = q[0].get()
    if made:
        optimizer.step(q[0], h[0])  # with other keys
        before = q[0].get()
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="is being captured, expected a step with these params before"):
            optimizer.step({"w": q[0]}, {"w": h[0]})
        stream.end_capture()
    assert _same(q[0], before)
    assert "w" not in optimizer.t


def test_functions_may_be_captured(cupy):
    p, q = _pairs(cupy, 3000)
    g, h = _pairs(cupy, 3000, seed=1)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        stream.begin_capture()
        functional.sgd(q[0], h[0], lr=0.1, clip_norm=1.0)
        graph = stream.end_capture()
        graph.launch(stream)
        graph.launch(stream)
    stream.synchronize()
    for _ in range(2):
        functional.sgd(p[0], g[0], lr=0.1, clip_norm=1.0)
    assert _same(q[0], p[0])


# Arrays of other libraries.


class Foreign:
    """An array that offers its memory in the way that all libraries share, and no more."""

    def __init__(self, array, **changes):
        self.array, self.changes = array, changes

    @property
    def __cuda_array_interface__(self):
        interface = dict(self.array.__cuda_array_interface__, stream=None)
        changes = {name: change(interface) if callable(change) else change for name, change in self.changes.items()}
        return {name: value for name, value in (interface | changes).items() if value is not ...}


@pytest.mark.parametrize("version", [2, 3])
def test_arrays_of_other_libraries(cupy, version):
    host, gpu = fs.Adam(), fs.Adam()
    p, q = _pairs(cupy, 3000, 5)
    without_stream = {"version": 2, "stream": ...} if version == 2 else {}
    for i in range(3):
        g, h = _pairs(cupy, 3000, 5, seed=i)
        host.step(p, g)
        gpu.step([Foreign(x, **without_stream) for x in q], [Foreign(x, **without_stream) for x in h])
    assert all(map(_same, p, q))
    assert type(gpu.state[0]["m"]) is cupy.ndarray


def test_the_stream_of_another_library_is_waited_for(cupy):
    """Its kernel is ordered after what made the gradient there, and before what comes there next."""
    theirs = cupy.cuda.Stream(non_blocking=True)
    p, q = _pairs(cupy, 3000)
    h = cupy.zeros(3000, F32)
    cupy.cuda.get_current_stream().synchronize()
    for optimizer in (fs.SGD(), fs.Adam()):
        g = np.full(3000, 0.5, F32)
        with theirs:
            h.fill(0.5)
        optimizer.step(q[0], Foreign(h, stream=theirs.ptr))
        with theirs:
            h.fill(np.nan)
        type(optimizer)().step(p[0], g)
    theirs.synchronize()
    assert _same(q[0], p[0])


def test_foreign_arrays_live_until_their_step_is_done(cupy, emulator):
    optimizer = fs.SGD()
    _, q = _pairs(cupy, 3000)
    alive = []
    for _ in range(4):
        h = Foreign(cupy.asarray(np.ones(3000, F32)))
        alive.append(weakref.ref(h))
        optimizer.step(q[0], h)
        del h
    assert all(reference() is not None for reference in alive)
    cupy.cuda.get_current_stream().synchronize()
    optimizer.step(q[0], cupy.asarray(np.ones(3000, F32)))
    assert [reference() for reference in alive] == [None] * 4


def test_every_stream_of_other_libraries_counts(cupy):
    """That of the parameter, where the gradient names another one."""
    first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    q, h = cupy.zeros(3000, F32), cupy.zeros(3000, F32)
    cupy.cuda.get_current_stream().synchronize()
    for step in (lambda p, g: functional.sgd(p, g, lr=1.0), fs.SGD(lr=1.0).step):
        with first:
            q.fill(5)
        with second:
            h.fill(2)
        step(Foreign(q, stream=first.ptr), Foreign(h, stream=second.ptr))
        assert (q.get() == 3).all()


class Raising:
    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad. Use var.detach()")


class Lying:
    __cuda_array_interface__ = None


BAD = [
    (lambda a: Foreign(a, typestr="<i4"), TypeError, "grad is <i4, expected float32 like param"),
    (lambda a: Foreign(a, typestr=">f4"), TypeError, "grad is >f4, expected float32 like param"),
    (lambda a: Foreign(a, typestr="<V2"), TypeError, "grad is <V2, expected float32 like param"),
    (lambda a: Foreign(a, typestr="<f8"), TypeError, "grad is <f8, expected float32 like param"),
    (lambda a: Foreign(a, shape=(5,)), ValueError, "grad has shape (5,), expected (8,) like param"),
    (lambda a: Foreign(a, shape=(-8,)), TypeError, "grad is of type .*Foreign whose __cuda_array_interface__ is not"),
    (lambda a: Foreign(a, shape=...), TypeError, "grad is of type .*Foreign whose __cuda_array_interface__ is not"),
    (
        lambda a: Foreign(a, shape=(2**62, 4)),
        TypeError,
        "grad is of type .*Foreign whose __cuda_array_interface__ is not",
    ),
    (
        lambda a: Foreign(a, shape=(2**61,)),
        TypeError,
        "grad is of type .*Foreign whose __cuda_array_interface__ is not",
    ),
    (lambda a: Foreign(a, shape=("8",)), TypeError, "grad is of type .*Foreign whose __cuda_array_interface__ is not"),
    (lambda a: Foreign(a, strides=(8,)), ValueError, "grad is not C-contiguous"),
    (lambda a: Foreign(a, strides=(-4,)), ValueError, "grad is not C-contiguous"),
    (
        lambda a: Foreign(a, strides=(4, 4)),
        TypeError,
        "grad is of type .*Foreign whose __cuda_array_interface__ is not",
    ),
    (lambda a: Foreign(a, data=3), TypeError, "grad is of type .*Foreign whose __cuda_array_interface__ is not"),
    (lambda a: Foreign(a, mask=a), TypeError, "grad has a mask, expected a plain array"),
    (
        lambda a: Foreign(a, data=lambda i: (i["data"][0] + 1, False)),
        ValueError,
        "grad is unaligned, expected an address",
    ),
    (lambda a: Raising(), BufferError, "grad is of type .*Raising and does not export its memory; .* .detach()"),
    (lambda a: Lying(), TypeError, "grad is of type .*Lying"),
    (lambda a: a.reshape(2, 4), ValueError, "grad has shape (2, 4), expected (8,) like param"),
    (lambda a: a.get(), TypeError, "grad is in host memory, expected it on GPU 0 like param"),
    (lambda a: 7, TypeError, "grads is of type int, expected an array"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_arrays_change_nothing(cupy, make, error, message):
    _, (p, g) = _pairs(cupy, 8, 8)
    before = p.get()
    optimizer = fs.Adam()
    pattern = message.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[")
    with pytest.raises(error, match=f"^{pattern}"):
        optimizer.step(p, make(g))
    assert _same(p, before)
    assert not optimizer.state
    optimizer.step(p, g)
    with pytest.raises(error, match=f"^{pattern}"):
        optimizer.step(p, make(g))
    assert optimizer.t == {0: 1}


def test_read_only_arrays(cupy):
    _, (p, g) = _pairs(cupy, 8, 8)
    read_only = {"data": lambda interface: (interface["data"][0], True)}
    fs.Adam().step(p, Foreign(g, **read_only))
    with pytest.raises(ValueError, match="param is read-only, expected a writable array"):
        fs.Adam().step(Foreign(p, **read_only), g)
    with pytest.raises(ValueError, match="grad is read-only, expected a writable array"):
        fs.Adam(zero_grad=True).step(p, Foreign(g, **read_only))


def test_arrays_that_overlap(cupy):
    _, (p,) = _pairs(cupy, 17)
    optimizer = fs.SGD()
    with pytest.raises(ValueError, match=r"grad overlaps param in memory"):
        optimizer.step(p, p)
    with pytest.raises(ValueError, match=r"params\[1\] overlaps params\[0\] in memory"):
        optimizer.step([p[:9], p[8:]], [None, None])


def test_host_and_gpu_do_not_mix(cupy):
    (p, g), (q, h) = _pairs(cupy, 8, 8)
    for optimizer in (fs.Adam(), fs.Adam(clip_norm=1.0)):
        with pytest.raises(TypeError, match=r"params\[1\] is in host memory, expected it on GPU 0 like params\[0\]"):
            optimizer.step([q, p], [h, g])
        with pytest.raises(TypeError, match=r"params\[1\] is on GPU 0, expected it in host memory like params\[0\]"):
            optimizer.step([p, q], [g, h])
        with pytest.raises(TypeError, match=r"grad is on GPU 0, expected it in host memory like param"):
            optimizer.step(p, h)
        assert not optimizer.state
    with pytest.raises(TypeError, match=r"g is in host memory, expected it on GPU 0 like p"):
        functional.sgd(q, g, lr=0.1)
    with pytest.raises(TypeError, match=r"p\[1\] is in host memory, expected it on GPU 0 like p\[0\]"):
        functional.sgd([q, p], [h, g], lr=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_tensors_of_torch(dtype):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs torch with CUDA")
    own = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    rng = np.random.default_rng(0)
    p, host, gpu = rng.standard_normal(3000).astype(own), fs.Adam(ema=0.9), fs.Adam(ema=0.9)
    tensor = torch.from_numpy(p.astype(np.float64)).to("cuda", getattr(torch, dtype))
    m, v = (torch.zeros_like(tensor) for _ in "mv")
    host_m, host_v = np.zeros_like(p), np.zeros_like(p)
    for t in range(1, 4):
        g = rng.standard_normal(3000).astype(own)
        grad = torch.from_numpy(g.astype(np.float64)).to("cuda", getattr(torch, dtype))
        host.step(p, g)
        gpu.step(tensor, grad)
        functional.adam(p, g, host_m, host_v, t=t, lr=0.1)
        functional.adam(tensor, grad, m, v, t=t, lr=0.1)
        assert (tensor.double().cpu().numpy() == p.astype(np.float64)).all()
    with pytest.raises(BufferError, match=r"param is of type .*Tensor and does not export its memory; .*\.detach\(\)"):
        gpu.step(tensor.requires_grad_(), grad)


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements():
    """Two arrays of 4.3 GB."""
    cp = pytest.importorskip("cupy")
    n = 2**31 + 1030
    if cp.cuda.runtime.memGetInfo()[0] < 6 * n:
        pytest.skip("needs 13 GB on a GPU")
    p, g = cp.zeros(n, np.float16), cp.ones(n, np.float16)
    for i in (0, 2**30, 2**31 - 1, 2**31, n - 1):
        g[i] = 2
    result = fs.SGD(lr=1.0, clip_norm=1e9).step(p, g)
    assert (p == -g).all()
    assert result.grad_norm == np.sqrt(n + 15.0)


# To the GPU and back.


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "state_dtype": "same"}, {"master_weights": True}], ids=str)
@pytest.mark.parametrize("dtype", [F32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("way", ["file", "state_dict", "pickle", "live"])
def test_training_goes_on_elsewhere(cupy, way, options, dtype, tmp_path):
    """From the host to the GPU, and back: with the bits that it would have had."""

    def moved(optimizer, params):
        if way == "file":
            fs.save(tmp_path / "a.npz", optimizer, params)
            optimizer = fs.Nadam(**options)
            into = [p.copy() for p in params]
            fs.load(tmp_path / "a.npz", optimizer, into)
            assert all(map(_same, into, params))
        elif way == "state_dict":
            state = optimizer.state_dict()
            assert all(isinstance(a, np.ndarray) for some in state["state"].values() for a in some.values())
            optimizer = fs.Nadam(**options)
            optimizer.load_state_dict(state)
        elif way == "pickle":
            optimizer = pickle.loads(pickle.dumps(optimizer))
        return optimizer

    straight, around = fs.Nadam(**options), fs.Nadam(**options)
    p, _ = _pairs(cupy, 5, 1100, dtype=dtype)
    there = [x.copy() for x in p]
    for i in range(6):
        g, h = _pairs(cupy, 5, 1100, dtype=dtype, seed=i)
        straight.step(p, g)
        if i == 2:
            around, there = moved(around, there), [cupy.asarray(x) for x in there]
        elif i == 4:
            around, there = moved(around, there), [x.get() for x in there]
        around.step(there, h if 2 <= i < 4 else g)
        kind = cupy.ndarray if 2 <= i < 4 else np.ndarray
        assert all(type(a) is kind for some in around.state.values() for a in some.values())
    assert all(map(_same, p, there))
    assert around.t == straight.t
    for key in straight.state:
        assert all(_same(around.state[key][name], straight.state[key][name]) for name in straight.state[key])


def test_a_gradient_may_be_missing_where_states_have_yet_to_follow(cupy):
    (p, g), _ = _pairs(cupy, 50, 50)
    p2 = p.copy()
    optimizer = fs.Adam()
    optimizer.step([p, p2], [g, g.copy()])
    moved = pickle.loads(pickle.dumps(optimizer))
    q, q2 = cupy.asarray(p), cupy.asarray(p2)
    for grads in ([g, None], [None, g], [g, g.copy()]):
        optimizer.step([p, p2], grads)
        moved.step([q, q2], [None if x is None else cupy.asarray(x) for x in grads])
    assert _same(q, p)
    assert _same(q2, p2)


def test_what_is_saved_is_of_one_moment(cupy):
    """Though the step is still under way in another stream."""
    host, gpu = fs.Momentum(), fs.Momentum()
    (p, g), (q, h) = _pairs(cupy, 3000, 3000)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    for _ in range(2):
        host.step(p, g)
        with stream:
            gpu.step(q, h)
        assert _same(gpu.state_dict()["state"][0]["b"], host.state[0]["b"])
        assert pickle.loads(pickle.dumps(gpu)).t == host.t


def test_loading_fills_the_arrays_that_are_there(cupy, tmp_path):
    (p, g), (q, h) = _pairs(cupy, 8, 8)
    optimizer = fs.Adam()
    optimizer.step(q, h)
    fs.save(tmp_path / "a.npz", optimizer, q)
    saved = q.get()
    m, state = optimizer.state[0]["m"], optimizer.state[0]["m"].get()
    optimizer.step(q, h)
    fs.load(tmp_path / "a.npz", optimizer, q)
    assert optimizer.state[0]["m"] is m
    assert _same(m, state)
    assert _same(q, saved)
    assert optimizer.t == {0: 1}
    host = fs.Adam()
    for _ in range(2):
        host.step(p, g)
    optimizer.step(q, h)
    assert _same(q, p)


# Failures.


def test_a_launch_that_fails_leaves_the_module_usable(cupy, emulator):
    for skip in range(2):
        host, gpu = fs.Adam(), fs.Adam()
        (p, g), (q, h) = _pairs(cupy, 2000, 2000)
        host.step(p, g)
        gpu.step(q, h)
        emulator.emulator_fail(b"cudaLaunchKernel", skip, 719)
        with pytest.raises(RuntimeError, match="failed with cudaErrorLaunchFailure: "):
            gpu.step(q, h)
        assert gpu.t == {0: 1}
        host.step(p, g)
        gpu.step(q, h)
        assert gpu.t == {0: 2}
        if skip == 0:
            assert _same(q, p)


def test_a_failure_before_a_capture_does_not_get_into_the_graph(cupy, emulator):
    optimizer = fs.Momentum()
    _, (q, h) = _pairs(cupy, 200, 200)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        optimizer.step(q, h)
        emulator.emulator_fail(b"cudaLaunchKernel", 0, 719)
        with pytest.raises(RuntimeError, match="cudaErrorLaunchFailure"):
            optimizer.step(q, h)
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="is being captured, expected a step with these params before"):
            optimizer.step(q, h)
        stream.end_capture()
        optimizer.step(q, h)
        stream.begin_capture()
        emulator.emulator_fail(b"cudaLaunchKernel", 2, 719)
        with pytest.raises(RuntimeError, match="cudaErrorLaunchFailure"):
            optimizer.step(q, h)
        graph = stream.end_capture()
        emulator.emulator_reset_calls()
        optimizer.step(q, h)
        assert emulator.emulator_calls(b"cudaFree") == 0  # which the graph still uses
        del graph
    stream.synchronize()
    assert optimizer.t == {0: 3}


def test_waiting_afterwards_may_fail_and_the_step_counts(cupy, emulator):
    host, gpu = fs.Nadam(), fs.Nadam()
    (p, g), (q, h) = _pairs(cupy, 200, 200)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    for i in range(4):
        host.step(p, g)
        if i == 2:
            emulator.emulator_fail(b"cudaEventRecord", 2, 719)  # before, the end of the step, after
            with pytest.raises(RuntimeError, match="cudaErrorLaunchFailure"):
                gpu.step(q, h, stream=stream)
        else:
            gpu.step(q, h, stream=stream)
    stream.synchronize()
    gpu.ema = 0.5
    host.ema = 0.5
    host.step(p, g)
    gpu.step(q, h)
    assert gpu.t == host.t == {0: 5}
    assert _same(q, p)


def test_memory_is_given_back_while_somebody_captures(cupy, emulator):
    """In the mode that forbids it to every thread."""
    optimizer = fs.SGD()
    _, (q, h) = _pairs(cupy, 200, 200)
    optimizer.step(q, Foreign(h))
    cupy.cuda.get_current_stream().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    assert emulator.emulator_begin_capture(stream.ptr, 0) == 0
    del optimizer
    gc.collect()
    graph = emulator.emulator_end_capture(stream.ptr)
    assert graph
    emulator.emulator_graph_destroy(graph)


def test_no_memory_for_states(cupy, emulator):
    _, (q, h) = _pairs(cupy, 2000, 2000)
    before = q.get()
    optimizer = fs.Adam()
    cupy.set_limit(1)
    with pytest.raises(MemoryError, match="states need 8,000 bytes more than GPU 0 has left: free some"):
        optimizer.step(q, h)
    cupy.set_limit()
    assert not optimizer.state
    assert not optimizer.t
    assert _same(q, before)
    emulator.emulator_fail(b"cudaMalloc", 0, 2)
    with pytest.raises(MemoryError, match="the GPU has no memory left for the tables of a step; free some"):
        optimizer.step(q, h)
    assert not optimizer.state
    optimizer.step(q, h)
    assert optimizer.t == {0: 1}


def test_no_gpu_and_no_driver(cupy, emulator):
    emulator.emulator_set_device_count(0)
    assert fs.info()["cuda"]["devices"] == []
    assert fs.info()["cuda"]["why_none"] == "cudaErrorNoDevice: no CUDA-capable device is detected"
    emulator.emulator_set_device_count(1)
    emulator.emulator_fail(b"cudaGetDeviceCount", 0, 35)
    assert "cudaErrorInsufficientDriver" in fs.info()["cuda"]["why_none"]
    info = fs.info()["cuda"]
    assert info["devices"] == ["Emulated GPU, sm_90"]
    assert info["why_none"] is None


def test_an_address_in_host_memory(cupy, emulator):
    _, (q, h) = _pairs(cupy, 8, 8)
    emulator.emulator_place(h.data.ptr, 32, 0, 1)
    with pytest.raises(ValueError, match="grad is said to be on a GPU, but its address is in host memory"):
        fs.SGD().step(q, h)
    emulator.emulator_place(h.data.ptr, 32, 0, -1)


# Several GPUs.


@pytest.fixture
def devices(cupy):
    if hasattr(cupy, "emulator"):
        cupy.emulator.emulator_set_device_count(2)
    elif cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")
    yield [cupy.cuda.Device(i) for i in range(2)]
    if hasattr(cupy, "emulator"):
        cupy.emulator.emulator_set_device_count(1)


def _spread(cupy, devices, arrays):
    """Return arrays on one device and the other in turn."""
    spread = []
    for i, array in enumerate(arrays):
        with devices[i % len(devices)]:
            spread.append(cupy.asarray(array))
    return spread


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_global_norm": 1.0}, {"clip_norm": 0.5, "ema": 0.9}, {"skip_nonfinite": True, "clip_global_norm": 2.0}],
    ids=str,
)
def test_one_step_on_two_gpus(cupy, devices, options):
    host, gpu = fs.Nadam(**options), fs.Nadam(**options)
    p, _ = _pairs(cupy, 5, 2100, 0, 3000)
    q = _spread(cupy, devices, p)
    for i in range(5):
        g, _ = _pairs(cupy, 5, 2100, 0, 3000, seed=i)
        if i == 2 and "skip_nonfinite" in options:
            g[3][2000] = np.nan
        a, b = host.step(p, g), gpu.step(q, _spread(cupy, devices, g))
        assert (a.skipped, a.nonfinite) == (b.skipped, b.nonfinite)
        assert a.grad_norm == b.grad_norm or a.grad_norm != a.grad_norm
    host.step(p, g := [x.copy() for x in p])
    gpu.step(q, _spread(cupy, devices, g))
    assert all(_same(x, y) for x, y in zip(p[::-1], q[::-1], strict=True))  # the second GPU first: nobody has waited
    assert gpu.t == host.t
    assert [gpu.state[i]["m"].device.id for i in range(4)] == [0, 1, 0, 1]


def test_two_gpus_where_one_is_wanted(cupy, devices):
    p, _ = _pairs(cupy, 8, 8)
    q, r = _spread(cupy, devices, p)
    optimizer = fs.SGD()
    with pytest.raises(ValueError, match="grad is on GPU 1, expected it on GPU 0 like param"):
        optimizer.step(q, r)
    with pytest.raises(ValueError, match=r"p\[1\] is on GPU 1, expected it on GPU 0 like p\[0\]"):
        functional.sgd([q, r], [q.copy(), r], lr=0.1)
    grads = _spread(cupy, devices, p)
    with pytest.raises(ValueError, match="stream is given, expected None with params on 2 GPUs"):
        optimizer.step([q, r], grads, stream=cupy.cuda.Stream(non_blocking=True))
    with pytest.raises(ValueError, match="is on GPU 0, expected a number, or all of params there"):
        fs.SGD(lr=cupy.asarray(np.ones(()))).step([q, r], grads)
    numbers = _spread(cupy, devices, [np.ones(()), np.ones(())])
    with pytest.raises(ValueError, match="is on GPU 1, and another number on GPU 0, expected all on one GPU"):
        fs.Momentum(lr=numbers[0], momentum=numbers[1]).step(q, grads[0])
    assert all(map(_same, (q, r), p))


def test_states_follow_a_parameter_to_another_gpu(cupy, devices):
    host, gpu = fs.Adam(), fs.Adam()
    (p, g), (q, h) = _pairs(cupy, 800, 800)
    for i in range(4):
        host.step(p, g)
        if i == 2:
            _, q = _spread(cupy, devices, [q.get()] * 2)
            _, h = _spread(cupy, devices, [h.get()] * 2)
        gpu.step(q, h)
    assert _same(q, p)
    assert gpu.state[0]["m"].device.id == 1


# What users run.


def test_demo_and_verify_use_the_gpu(cupy, capsys, monkeypatch, tmp_path):
    from fusedstep.tools import demo, extras

    monkeypatch.setattr(demo, "classes", lambda: [fs.SGD, fs.Adam])
    monkeypatch.setattr(extras, "find_spec", lambda name: True)
    output = tmp_path / "demo.png"
    assert demo.main(["--device", "cuda", "--epochs", "1", "--output", str(output)]) == 0
    assert capsys.readouterr().out.count("yes") == 2
    monkeypatch.setattr(verify, "classes", lambda: [fs.SGD])
    monkeypatch.setattr(verify, "find_spec", lambda name: True)
    assert verify.main([]) == 0
    assert "GPU: the current one of CuPy" in capsys.readouterr().out
