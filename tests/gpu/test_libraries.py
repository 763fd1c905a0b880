"""Arrays of other libraries: waited for, kept alive, or refused before anything has changed."""

import weakref

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import functional
from tests.gpu.arrays import F32, Foreign, pairs, same


@pytest.mark.parametrize("version", [2, 3])
def test_arrays_of_other_libraries(cupy, version):
    host, gpu = fs.Adam(), fs.Adam()
    p, q = pairs(cupy, 3000, 5)
    without_stream = {"version": 2, "stream": ...} if version == 2 else {}
    for i in range(3):
        g, h = pairs(cupy, 3000, 5, seed=i)
        host.step(p, g)
        gpu.step([Foreign(x, **without_stream) for x in q], [Foreign(x, **without_stream) for x in h])
    assert all(map(same, p, q))
    assert type(gpu.state[0]["m"]) is cupy.ndarray


def test_the_stream_of_another_library_is_waited_for(cupy):
    """A step is ordered after the work of the stream that made the gradient, and before the next work there."""
    theirs = cupy.cuda.Stream(non_blocking=True)
    p, q = pairs(cupy, 3000)
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
    assert same(q[0], p[0])


def test_foreign_arrays_live_until_their_step_is_done(cupy, emulator):
    optimizer = fs.SGD()
    _, q = pairs(cupy, 3000)
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
    """A parameter and its gradient may name two streams, and the step waits for both."""
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
    (lambda a: Foreign(a, typestr="<i4"), TypeError, "grad is <i4, expected float32, float64, float16 or bfloat16"),
    (lambda a: Foreign(a, typestr=">f4"), TypeError, "grad is >f4, expected .* in native byte order"),
    (lambda a: Foreign(a, typestr="<V2"), TypeError, "grad is <V2, expected float32, float64, float16 or bfloat16"),
    (lambda a: Foreign(a, typestr="<c8"), TypeError, "grad is <c8, expected real numbers like param"),
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
    (lambda a: 7, TypeError, "grad is of type int, expected an array"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_arrays_change_nothing(cupy, make, error, message):
    _, (p, g) = pairs(cupy, 8, 8)
    before = p.get()
    optimizer = fs.Adam()
    pattern = message.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[")
    with pytest.raises(error, match=f"^{pattern}"):
        optimizer.step(p, make(g))
    assert same(p, before)
    assert not optimizer.state
    optimizer.step(p, g)
    with pytest.raises(error, match=f"^{pattern}"):
        optimizer.step(p, make(g))
    assert optimizer.t == {0: 1}


def test_read_only_arrays(cupy):
    _, (p, g) = pairs(cupy, 8, 8)
    read_only = {"data": lambda interface: (interface["data"][0], True)}
    fs.Adam().step(p, Foreign(g, **read_only))
    with pytest.raises(ValueError, match="param is read-only, expected a writable array"):
        fs.Adam().step(Foreign(p, **read_only), g)
    with pytest.raises(ValueError, match="grad is read-only, expected a writable array"):
        fs.Adam(zero_grad=True).step(p, Foreign(g, **read_only))


def test_arrays_that_overlap(cupy):
    _, (p,) = pairs(cupy, 17)
    optimizer = fs.SGD()
    with pytest.raises(ValueError, match=r"grad overlaps param in memory"):
        optimizer.step(p, p)
    with pytest.raises(ValueError, match=r"params\[1\] overlaps params\[0\] in memory"):
        optimizer.step([p[:9], p[8:]], [cupy.zeros(9, F32), cupy.zeros(9, F32)])


def test_host_and_gpu_do_not_mix(cupy):
    (p, g), (q, h) = pairs(cupy, 8, 8)
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
    """The number of an element may need more than 32 bits, in two arrays of 4.3 GB."""
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
