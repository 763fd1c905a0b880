"""Steps on a GPU where CuPy is not installed: states are arrays of ours, which other libraries can look at."""

import copy
import ctypes
import gc
import pickle
import sys
import weakref

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import reference
from fusedstep.core.device_array import DeviceArray, of, zeros
from fusedstep.tools import verify
from tests.bits.test_gradients import COMPLEX, FLOATS, in_order, numbers, real
from tests.gpu.arrays import Foreign, pairs, same
from tests.gpu.test_gradients import Twin


@pytest.fixture(autouse=True)
def without_cupy(cupy, monkeypatch):
    """Hide CuPy; arrays in tests are of an unknown library, whose memory the hidden CuPy has taken."""
    monkeypatch.setitem(sys.modules, "cupy", None)


def twins(cupy, arrays):
    return [Twin(cupy, each) for each in arrays]


def seen(twin):
    return of(twin).get()


@pytest.mark.parametrize("dtype", [*FLOATS, *COMPLEX])
@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "clip_global_norm": 1.0}, {"master_weights": True}], ids=str)
def test_steps_have_the_bits_of_the_reference(cupy, dtype, options):
    rng = np.random.default_rng(0)
    p = [
        in_order(numbers(rng, shape, dtype, 0.0), axes) for shape, axes in (((30, 50), (1, 0)), ((7,), (0,)), ((), ()))
    ]
    q = twins(cupy, p)
    ours, theirs = fs.Adam(**options), reference.Adam(**options)
    for _ in range(3):
        g = [numbers(rng, each.shape, dtype, 0.0) for each in p]
        a, b = ours.step(q, twins(cupy, g)), theirs.step(p, g)
        assert a.grad_norm == b.grad_norm
    for i, each in enumerate(p):
        assert verify.difference([real(seen(q[i]))], [real(each)]) == 0
        for name, state in theirs.state[i].items():
            assert isinstance(ours.state[i][name], DeviceArray)
            assert verify.difference([real(ours.state[i][name].get())], [real(state)]) == 0
        if "ema" in options:
            assert verify.difference([real(ours.ema[i].get())], [real(theirs.ema[i])]) == 0
    assert "DeviceArray(shape=(7,), dtype=" in repr(ours.state)


def test_states_go_to_files_and_back(cupy, tmp_path):
    (p, g), _ = pairs(cupy, 300, 300)
    (q, h), half = twins(cupy, [p, g]), p.astype(ml_dtypes.bfloat16)
    params, grads, path = {"w": q, "h": Twin(cupy, half)}, {"w": h, "h": Twin(cupy, half)}, tmp_path / "run.npz"
    opt = fs.Adam(ema=0.9, state_dtype="same")
    opt.step(params, grads)
    fs.save(path, opt, params)
    before = {key: seen(each) for key, each in params.items()}
    copies = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    opt.step(params, grads)
    after = {key: seen(each) for key, each in params.items()}
    loaded = fs.Adam()
    fs.load(path, loaded, params, hyperparameters="file")
    for each in (loaded, *copies):
        for key, array in before.items():
            of(params[key]).set(array)
        each.step(params, grads)
        assert all(same(seen(params[key]), array) for key, array in after.items())
    assert opt.state["h"]["m"].dtype == ml_dtypes.bfloat16


def test_states_are_moved_and_changed(cupy):
    (p, g), _ = pairs(cupy, 12, 12)
    opt, ref = fs.Adam(), fs.Adam()
    matrix, grad = p.reshape(3, 4), g.reshape(3, 4)
    for step in range(4):
        mine = Twin(cupy, matrix) if step % 2 else matrix.copy()
        opt.step([mine], [Twin(cupy, grad) if step % 2 else grad])
        ref.step([theirs := matrix.copy()], [grad])
        matrix = seen(mine) if step % 2 else mine
        assert same(matrix, theirs)
    taken = [0, 2]
    for each in (opt, ref):
        each.take(0, taken)
        each.grow(0, 2)
    assert same(opt.state[0]["v"].get(), ref.state[0]["v"])
    opt.state[0]["v"].set(np.ones((4, 4), np.float32))
    assert (opt.state[0]["v"].get() == 1).all()


def test_views_share_memory(cupy):
    array = zeros((4, 5), np.float32, 0)
    assert (array.get() == 0).all()
    array.set(np.arange(20).reshape(4, 5))
    part = array[1:3, ::-2]
    assert part.get().tolist() == [[9, 7, 5], [14, 12, 10]]
    part.set(-np.ones((2, 3)))
    assert array.get().tolist() == [[0, 1, 2, 3, 4], [-1, 6, -1, 8, -1], [-1, 11, -1, 13, -1], [15, 16, 17, 18, 19]]
    assert array.transpose((1, 0)).get().tolist() == array.get().T.tolist()
    assert array.view(np.uint32).dtype == np.uint32
    assert (array.shape, array.ndim, array.size, array.nbytes, len(array), array.device.id) == ((4, 5), 2, 20, 80, 4, 0)
    assert zeros((0, 3), np.float64, 0).get().shape == (0, 3)
    with pytest.raises(TypeError, match=r"^index is 1, expected slices"):
        array[1]
    with pytest.raises(TypeError, match=r"^an array on a GPU is not converted .* expected array\.get\(\)"):
        np.asarray(array)


def test_other_libraries_see_them(cupy):
    array = zeros((2, 3), np.float32, 0).transpose((1, 0))
    twin = cupy.zeros((2, 3), np.float32)
    fs.SGD(lr=1.0).step([array], [Foreign(twin, shape=(3, 2), strides=(4, 12))])
    interface = array.__cuda_array_interface__
    assert (interface["shape"], interface["strides"], interface["typestr"]) == ((3, 2), (4, 12), "<f4")
    assert array.__dlpack_device__() == (2, 0)


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device", ctypes.c_int32 * 2), ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("offset", ctypes.c_uint64),
    ]  # fmt: skip


class Versioned(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint32 * 2), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64), ("tensor", Tensor),
    ]  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [*FLOATS, *COMPLEX, np.dtype(np.uint16)])
def test_capsules_of_dlpack(cupy, dtype):
    pointer, name = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_GetName
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    array = zeros((2, 3), dtype, 0).transpose((1, 0))
    alive = weakref.ref(array)
    for version, expected in ((None, b"dltensor"), ((1, 0), b"dltensor_versioned")):
        capsule = array.__dlpack__(max_version=version, stream=2)
        assert name(capsule) == expected
        address = pointer(capsule, expected)
        tensor = Versioned.from_address(address).tensor if version else Tensor.from_address(address)
        code = {"f": 2, "V": 4, "c": 5, "u": 1}[dtype.kind]
        assert (tensor.data, list(tensor.device), tensor.ndim) == (array.data.ptr, [2, 0], 2)
        assert (tensor.code, tensor.bits, tensor.lanes) == (code, 8 * dtype.itemsize, 1)
        assert (tensor.shape[:2], tensor.strides[:2], tensor.offset) == ([3, 2], [1, 3], 0)
    del array
    gc.collect()
    assert alive() is not None  # the capsule holds it
    del capsule
    gc.collect()
    assert alive() is None
    for options in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError, match=r"^an array of fusedstep on a GPU is shared"):
            zeros((2,), dtype, 0).__dlpack__(**options)


def test_memory_is_given_back(cupy, emulator):
    optimizer, (p, g) = fs.Adam(), twins(cupy, pairs(cupy, 3000, 3000)[0])
    optimizer.step([p], [g])
    state = weakref.ref(optimizer.state[0]["m"]._view.base)
    del optimizer
    gc.collect()
    assert state() is None


def test_too_little_memory(cupy, emulator):
    p, g = twins(cupy, pairs(cupy, 3000, 3000)[0])
    emulator.emulator_fail(b"cudaMallocAsync", 0, 2)
    optimizer = fs.Adam()
    with pytest.raises(MemoryError, match=r"^states need 12,000 bytes more than GPU 0 has left"):
        optimizer.step([p], [g])
    assert not optimizer.state
    optimizer.step([p], [g])


def test_two_devices(cupy, devices):
    (p, g), _ = pairs(cupy, 3000, 3000)
    q, h = [], []
    for device in devices:
        with device:
            q += twins(cupy, [p])
            h += twins(cupy, [g])
    host, gpu = fs.Adam(), fs.Adam()
    for _ in range(2):
        gpu.step(q, h)
        host.step([p], [g])
    assert [gpu.state[i]["m"].device.id for i in range(2)] == [0, 1]
    assert all(same(gpu.state[i]["m"].get(), host.state[0]["m"]) for i in range(2))
    assert all(same(seen(each), p) for each in q)
    del gpu
    gc.collect()
    fs.SGD().step(q[:1], [zeros((3000,), np.float32, 0)])  # lets go of the twins before the second device vanishes


def test_a_stream_of_ones_own(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    (p, g), _ = pairs(cupy, 3000, 3000)
    q, h = twins(cupy, [p, g])
    cupy.cuda.Device(0).synchronize()
    host, gpu = fs.Adam(), fs.Adam()
    for _ in range(3):
        gpu.step([q], [h], stream=stream)
        host.step([p], [g])
        assert same(gpu.state[0]["m"].get(), host.state[0]["m"])
    stream.synchronize()
    assert same(seen(q), p)
