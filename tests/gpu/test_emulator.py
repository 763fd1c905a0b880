"""The emulator on which the CUDA engine is tested where there is no GPU."""

import importlib.util
import platform
import shutil
import subprocess
import sys
import weakref
from ctypes import CDLL, POINTER, byref, c_char_p, c_double, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

FOLDER = Path(__file__).with_name("emulator")
COMPILER = shutil.which("g++")

pytestmark = pytest.mark.skipif(
    not COMPILER or (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="needs g++ on x86-64 Linux"
)

KERNELS = r"""
#include <cuda_runtime.h>
#include <immintrin.h>

namespace {

__global__ void add(double* x, double value) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    x[i] = x[i] + value;
}

__global__ void multiply(double* x, double value) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    x[i] = x[i] * value;
}

// The sum of a block, to all of its threads.
__global__ void sum(double* x, double) {
    __shared__ double sums[32];
    double* const mine = x + blockIdx.x * blockDim.x + threadIdx.x;
    double s = *mine;
    for (int half = 16; half; half /= 2) s += __shfl_down_sync(0xffffffff, s, half);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = s;
    __syncthreads();
    s = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) s += sums[w];
    *mine = s;
}

// Warps of unequal patience hand a number from lane to lane, and some lanes leave early.
__global__ void pass_on(double* x, double rounds) {
    __shared__ double room[32][33];
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (unsigned round = 0; round < rounds * (warp + 1); ++round) {
        if (lane == round % 31) room[warp][lane + 1] = x[threadIdx.x];
        __syncwarp();
        if (lane == round % 31 + 1) x[threadIdx.x] = room[warp][lane] + 1;
        __syncwarp();
    }
    if (lane == 31) return;
    __syncwarp();
    __syncthreads();
}

// Every other thread flushes what is subnormal, across a barrier.
__global__ void halve(double* x, double) {
    _mm_setcsr(threadIdx.x % 2 ? 0x9fc0 : 0x1f80);
    __syncthreads();
    volatile double least = 2.2250738585072014e-308;
    x[threadIdx.x] = least * 0.5;
}

__global__ void read_mode(double* x, double) {
    x[threadIdx.x] = _mm_getcsr();
}

__global__ void disagree(double*, double) {
    if (threadIdx.x == 3)
        __syncwarp();
    else
        __syncthreads();
}

// The order in which threads come.
__global__ void enter(double* x, double) {
    const int place = static_cast<int>(x[0]++);
    x[place + 1] = threadIdx.x;
}

using Kernel = void (*)(double*, double);
constexpr Kernel kKernels[] = {add, multiply, sum, pass_on, halve, read_mode, disagree, enter};

}  // namespace

#define TEST extern "C" __attribute__((visibility("default")))

TEST int launch(int kernel, unsigned grid, unsigned block, double* x, double value, cudaStream_t stream) {
    void* arguments[] = {&x, &value};
    const cudaError_t error = cudaLaunchKernel(kKernels[kernel], grid, block, arguments, 0, stream);
    x = nullptr, value = -1;  // arguments have been copied
    return error;
}
TEST int test_malloc(void** address, size_t bytes) { return cudaMalloc(address, bytes); }
TEST int test_malloc_async(void** address, size_t bytes, cudaStream_t stream) {
    return cudaMallocAsync(address, bytes, stream);
}
TEST int test_free_async(void* address, cudaStream_t stream) { return cudaFreeAsync(address, stream); }
TEST int test_free(void* address) { return cudaFree(address); }
TEST int test_last_error() { return cudaGetLastError(); }
TEST int test_query(cudaEvent_t event) { return cudaEventQuery(event); }
TEST int test_wait(cudaEvent_t event) { return cudaEventSynchronize(event); }
TEST int test_device_of(const void* address, int* type) {
    cudaPointerAttributes found = {};
    cudaPointerGetAttributes(&found, address);
    *type = found.type;
    return found.device;
}
TEST const char* test_name(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }
"""

NAMES = ("add", "multiply", "sum", "pass_on", "halve", "read_mode", "disagree", "enter")
NOT_READY, CAPTURING, INVALIDATED, IMPLICIT = 600, 900, 901, 906


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulated")
    source, target = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text(KERNELS)
    command = [COMPILER, "-std=c++20", "-O1", "-fPIC", "-shared", "-Wall", "-Werror", "-I", FOLDER]
    subprocess.run([*command, source, FOLDER / "control.cpp", "-o", target], check=True, timeout=300)
    return target


@pytest.fixture(scope="module")
def cp(built):
    spec = importlib.util.spec_from_file_location("cupy", FOLDER / "cupy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    library = CDLL(str(built))
    library.launch.argtypes = [c_int, c_uint, c_uint, c_void_p, c_double, c_void_p]
    library.test_malloc.argtypes = [POINTER(c_void_p), c_size_t]
    library.test_malloc_async.argtypes = [POINTER(c_void_p), c_size_t, c_void_p]
    library.test_free_async.argtypes = [c_void_p, c_void_p]
    for name in ("free", "query", "wait"):
        getattr(library, f"test_{name}").argtypes = [c_void_p]
    module.connect(library)
    module.library = library
    return module


@pytest.fixture
def lib(cp):
    yield cp.library
    cp.library.emulator_set_device_count(1)
    cp.library.emulator_reset_calls()
    cp.library.test_last_error()


def launch(lib, name, x, value=0.0, grid=1, stream=None):
    pointer = stream.ptr if stream else 0
    return lib.launch(NAMES.index(name), grid, x.size // grid, x.data.ptr, value, pointer)


def host(n):
    return np.arange(n, dtype=float)


def test_a_block_adds_up_by_shuffles_and_barriers(cp, lib):
    for threads in (32, 96, 1024):
        x = cp.array(host(3 * threads))
        assert launch(lib, "sum", x, grid=3) == 0
        expected = host(3 * threads).reshape(3, threads).sum(axis=1)
        np.testing.assert_array_equal(x.get().reshape(3, threads), np.repeat(expected, threads).reshape(3, threads))


def test_warps_wait_for_themselves_and_for_the_block(cp, lib):
    x = cp.zeros(96)
    for _ in range(4):  # in several orders of warps and lanes
        x.fill(0)
        launch(lib, "pass_on", x, 31)
        np.testing.assert_array_equal(x.get(), np.tile(host(32), 3))


def test_each_launch_has_its_order(cp, lib):
    orders = []
    for _ in range(4):
        x = cp.zeros(65)
        lib.launch(NAMES.index("enter"), 1, 64, x.data.ptr, 0, None)
        orders.append(x.get()[1:].tolist())
        assert sorted(orders[-1]) == host(64).tolist()
    assert len({tuple(order) for order in orders}) == 4


def test_each_thread_has_its_floating_point_mode(cp, lib, float_word):
    before = float_word()
    x = cp.zeros(64)
    launch(lib, "halve", x)
    np.testing.assert_array_equal(x.get(), np.tile([np.finfo(float).tiny / 2, 0], 32))
    launch(lib, "read_mode", x)
    np.testing.assert_array_equal(x.get(), 0x1F80)
    assert float_word() == before


def test_a_deadlock_is_reported(built):
    code = (
        f"import ctypes as c; l = c.CDLL({str(built)!r}); l.launch.argtypes = [c.c_int] * 3 + [c.c_void_p, c.c_double]"
    )
    code += f"; l.launch({NAMES.index('disagree')}, 1, 64, 0, 0.0, None); l.emulator_device_synchronize(0)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.returncode < 0
    assert "deadlock" in process.stderr


def test_a_stream_does_nothing_until_somebody_waits(cp, lib):
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        x = cp.zeros(32)
        launch(lib, "add", x, 1, stream=stream)
        assert cp.cuda.get_current_stream() is stream
    assert cp.cuda.get_current_stream() is cp.cuda.Stream.null
    assert lib.emulator_pending(stream.ptr, 0) == 2
    x.get()  # waits for another stream
    assert lib.emulator_pending(stream.ptr, 0) == 2
    stream.synchronize()
    np.testing.assert_array_equal(x.get(), 1)


def test_events_order_streams(cp, lib):
    first, second = cp.cuda.Stream(), cp.cuda.Stream(non_blocking=True)
    x = cp.zeros(32)
    first.wait_event(cp.cuda.Stream.null.record())
    launch(lib, "add", x, 3, stream=first)
    event = first.record()
    launch(lib, "add", x, 100, stream=first)
    second.wait_event(event)
    launch(lib, "multiply", x, 2, stream=second)
    assert lib.test_query(event.ptr) == NOT_READY
    second.synchronize()
    assert lib.test_query(event.ptr) == 0
    np.testing.assert_array_equal(x.get(), 6)
    assert lib.emulator_record_wait(first.ptr, second.ptr) == 0
    second.synchronize()
    np.testing.assert_array_equal(x.get(), 106)


def test_capture_and_replay(cp, lib):
    stream, other = cp.cuda.Stream(), cp.cuda.Stream()
    x = cp.zeros(32)
    x.get()
    stream.begin_capture()
    launch(lib, "add", x, 1, stream=stream)
    other.wait_event(stream.record())
    launch(lib, "multiply", x, 2, stream=other)
    stream.wait_event(other.record())
    launch(lib, "add", x, 5, stream=stream)
    graph = stream.end_capture()
    stream.synchronize()
    other.synchronize()
    np.testing.assert_array_equal(x.get(), 0)
    for expected in (7, 21):
        graph.launch(other)
        other.synchronize()
        np.testing.assert_array_equal(x.get(), expected)


def test_a_graph_has_memory_of_its_own(cp, lib):
    stream, x, address = cp.cuda.Stream(non_blocking=True), cp.zeros(32), c_void_p()
    x.get()
    stream.begin_capture()
    assert lib.test_malloc_async(byref(address), x.nbytes, stream.ptr) == 0
    assert lib.emulator_fill(address, 0, x.nbytes, stream.ptr, 0) == 0
    assert lib.launch(NAMES.index("add"), 1, 32, address, 2, stream.ptr) == 0
    assert lib.emulator_copy(x.data.ptr, address, x.nbytes, stream.ptr, 0) == 0
    assert lib.test_free_async(address, stream.ptr) == 0
    graph = stream.end_capture()
    for _ in range(2):
        x.fill(0)
        x.get()
        graph.launch(stream)
        stream.synchronize()
        np.testing.assert_array_equal(x.get(), 2)
    stream.begin_capture()
    assert lib.test_free_async(x.data.ptr, stream.ptr) != 0  # memory that the capture has not allocated
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        stream.end_capture()


def test_work_that_is_not_joined_fails_a_capture(cp, lib):
    stream, other, x = cp.cuda.Stream(), cp.cuda.Stream(), cp.zeros(32)
    stream.begin_capture()
    other.wait_event(stream.record())
    launch(lib, "add", x, 1, stream=other)
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        stream.end_capture()
    assert not other.is_capturing()


@pytest.mark.parametrize("mode", [0, 1])
def test_what_a_capture_forbids_ends_it(cp, lib, mode):
    stream, event = cp.cuda.Stream(non_blocking=True), cp.cuda.Event()
    x = cp.zeros(32)
    for call in (
        lambda: lib.test_malloc(byref(c_void_p()), 8),
        lambda: lib.test_free(None),
        lambda: lib.test_query(event.ptr),
        lambda: lib.test_wait(event.ptr),
    ):
        stream.begin_capture(mode)
        assert launch(lib, "add", x, 1, stream=stream) == 0
        assert call() == CAPTURING
        assert launch(lib, "add", x, 1, stream=stream) == INVALIDATED
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
            stream.end_capture()


def test_a_relaxed_capture_is_ended_by_what_concerns_its_stream(cp, lib):
    stream, x = cp.cuda.Stream(), cp.zeros(32)
    stream.begin_capture()
    assert lib.test_malloc(byref(c_void_p()), 8) == 0
    assert launch(lib, "add", x, 1) == IMPLICIT  # in the default stream, which a blocking one waits for
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        stream.end_capture()
    stream.begin_capture()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        stream.synchronize()
    del stream
    assert launch(lib, "add", x, 1) == 0
    np.testing.assert_array_equal(x.get(), 1)


def test_what_was_freed_is_poison(cp, lib):
    address = c_void_p()
    assert lib.test_malloc(byref(address), 8) == 0
    memory = c_double.from_address(address.value)
    poison = np.full(8, 0xCC, np.uint8).view(float)[0]
    assert memory.value == poison
    lib.emulator_fill(address, 0, 8, None, 0)
    assert lib.test_free(address) == 0
    assert memory.value == poison

    stream = cp.cuda.Stream()
    address = lib.emulator_malloc(8, 0)
    memory = c_double.from_address(address)
    lib.emulator_fill(address, 0, 8, stream.ptr, 0)
    assert lib.emulator_free(address, stream.ptr) == 0
    assert memory.value == poison
    memory.value = 1
    stream.synchronize()
    assert memory.value == poison
    assert lib.test_free(address) != 0


def test_calls_fail_once_and_are_counted(cp, lib):
    x = cp.zeros(32)
    lib.emulator_fail(b"cudaLaunchKernel", 1, 700)
    assert [launch(lib, "add", x, 1) for _ in range(3)] == [0, 700, 0]
    assert lib.emulator_calls(b"cudaLaunchKernel") == 3
    assert lib.test_last_error() == 700
    assert lib.test_last_error() == 0
    lib.test_name.restype = c_char_p
    assert lib.test_name(700) == b"cudaErrorIllegalAddress"
    np.testing.assert_array_equal(x.get(), 2)
    lib.emulator_reset_calls()
    assert lib.emulator_calls(b"cudaLaunchKernel") == 0
    assert lib.launch(0, 0, 32, x.data.ptr, 0, None) == 9  # a grid without blocks


def test_memory_has_a_device_and_a_type(cp, lib):
    lib.emulator_set_device_count(2)
    with cp.cuda.Device(1) as device:
        x = cp.zeros(4)
        assert x.device == device
    assert cp.cuda.Device().id == 0
    found, kind = np.zeros(2), c_int()
    lib.test_device_of.argtypes = [c_void_p, POINTER(c_int)]
    for address, expected in ((x[2:].data.ptr, (1, 2)), (found.ctypes.data, (0, 2))):
        assert (lib.test_device_of(address, byref(kind)), kind.value) == expected
    lib.emulator_place(found.ctypes.data, found.nbytes, 1, 3)
    assert (lib.test_device_of(found.ctypes.data + 8, byref(kind)), kind.value) == (1, 3)
    lib.emulator_place(found.ctypes.data, found.nbytes, 1, -1)
    with cp.cuda.Device(1):
        assert launch(lib, "add", x, 1) == 0
        assert cp.cuda.Stream().device_id == 1
    np.testing.assert_array_equal(x.get(), 1)


def test_arrays(cp, lib):
    x = cp.array(np.arange(12, dtype=np.float32).reshape(3, 4))
    assert (x.shape, x.strides, x.nbytes, x.ndim, len(x), x.flags.c_contiguous) == ((3, 4), (16, 4), 48, 2, 3, True)
    row, column = x[1], x[:, 2]
    assert row.data.ptr == x.data.ptr + 16
    assert not column.flags.c_contiguous
    assert column.__cuda_array_interface__["strides"] == (16,)
    row[1:3] = np.array([50, 60], np.float32)
    x[0] = row
    x[2].fill(7)
    np.testing.assert_array_equal(x.get(), [[4, 50, 60, 7], [4, 50, 60, 7], [7, 7, 7, 7]])
    assert float(x[0, 1]) == 50
    interface = x.__cuda_array_interface__
    assert (interface["data"], interface["stream"], interface["version"]) == ((x.data.ptr, False), 1, 3)
    half = cp.full(5, 1.5, ml_dtypes.bfloat16)
    assert half.view(cp.uint16).get().tolist() == [0x3FC0] * 5
    assert half.dtype == ml_dtypes.bfloat16
    assert cp.zeros((0, 3)).get().shape == (0, 3)
    assert cp.zeros_like(x).ravel().reshape(2, -1).get().tolist() == [[0] * 6] * 2
    with pytest.raises(TypeError, match="Implicit"):
        np.asarray(x)


def test_memory_dies_with_the_last_view_in_the_order_of_its_stream(cp, lib):
    stream = cp.cuda.Stream()
    with stream:
        x = cp.zeros(8)
    view, dead = x[2:], weakref.ref(x)
    address = x.data.ptr
    del x
    assert dead() is None
    stream.synchronize()
    assert view.get().tolist() == [0] * 6
    del view
    memory = c_double.from_address(address)
    assert memory.value == 0  # not poisoned yet
    stream.synchronize()
    assert memory.value != 0
    assert cp.empty(8).data.ptr != address
    with stream:
        assert cp.empty(8).data.ptr == address


def test_memory_has_a_limit(cp, lib):
    cp.set_limit(0)
    try:
        with pytest.raises(cp.cuda.memory.OutOfMemoryError):
            cp.empty(8)
    finally:
        cp.set_limit()
    cp.empty(8)
