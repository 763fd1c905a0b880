"""Arrays are added up in the order of a balanced tree, with the bits of NumPy on every instruction set."""

import threading

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu
from fusedstep.reference import float_mode
from fusedstep.tools.verify import LARGE, THREADS, difference, values

SIZES = (0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 127, 511, 512, 513, 1027)  # around vectors and runs
COUNTS = (*range(1, 10), 11, 16, 17, 33, 40)
TYPES = {
    "float32": [np.float32],
    "float64": [np.float64],
    "float16": [np.float16],
    "bfloat16": [ml_dtypes.bfloat16],
    "mixed": [ml_dtypes.bfloat16, np.float32, np.float16],
    "complex64": [np.complex64],
}


def sum_type(dtype):
    return dtype if np.dtype(dtype) in (np.float64, np.complex64, np.complex128) else np.float32


def tree(arrays):
    """Return the sum, level by level; a node without a neighbour goes up as it is."""
    wide = sum_type(arrays[0].dtype)
    with np.errstate(all="ignore"):
        level = [array.astype(wide) for array in arrays]  # before subnormals are flushed
    with float_mode(wide):
        while len(level) > 1:
            pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
            level = [pair[0] + pair[1] if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0]


def numbers(rng, n, dtype):
    if np.dtype(dtype).kind == "c":
        return (values(rng, 2 * n, np.float32)).view(dtype)
    return values(rng, n, dtype)


def placed(array, offset):
    """Return a copy that begins `offset` elements after some boundary, and all of its memory."""
    room = np.ones(array.size + 80, array.dtype)
    first = (-(room.ctypes.data // array.itemsize)) % 16 + offset
    copy = room[first : first + array.size]
    copy[:] = array
    return copy, room


def real(array):
    return array.view(np.float32) if array.dtype.kind == "c" else array


def summed(arrays, out):
    _cpu.sum_parts(arrays, out)
    return out


@pytest.mark.parametrize("types", TYPES.values(), ids=TYPES)
def test_sums_have_the_bits_of_a_tree(types, isa):
    rng = np.random.default_rng(7)
    for count in COUNTS:
        for size in SIZES:
            arrays = [placed(numbers(rng, size, types[i % len(types)]), 1 + 3 * i % 7)[0] for i in range(count)]
            out, room = placed(np.zeros(size, sum_type(types[0])), count % 5)
            room[:] = 7
            assert difference([real(summed(arrays, out))], [real(tree(arrays))]) == 0, (count, size)
            out[:] = 7
            assert (room == 7).all(), (count, size)


def test_a_sum_flushes_and_a_lone_array_does_not(isa):
    tiny = np.full(5, 1e-39, np.float32)
    assert (summed([tiny], np.zeros_like(tiny)) == tiny).all()
    assert (summed([tiny, tiny], np.ones_like(tiny)) == 0).all()
    assert (summed([tiny.astype(ml_dtypes.bfloat16)], np.ones_like(tiny)) > 0).all()
    assert (summed([np.full(5, 2.0**-24, np.float16)] * 2, tiny.copy()) == 2.0**-23).all()
    assert (summed([np.full(5, 1e-310)] * 2, np.ones(5)) == 2e-310).all()


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("types", [TYPES["float32"], TYPES["float64"], TYPES["mixed"]])
def test_threads_change_no_bit_of_a_sum(types, threads):
    rng = np.random.default_rng(1)
    for count in (2, 3, 9):
        arrays = [placed(values(rng, LARGE[0], types[i % len(types)]), i)[0] for i in range(count)]
        fs.set_num_threads(threads)
        out, room = placed(np.zeros(LARGE[0], sum_type(types[0])), 3)
        assert difference([summed(arrays, out)], [tree(arrays)]) == 0
        out[:] = 1
        assert (room[room != 0] == 1).all()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 17])
def test_the_sum_may_be_one_of_the_arrays(count, isa):
    rng = np.random.default_rng(2)
    for place in {0, count // 2, count - 1}:
        arrays = [values(rng, 2001, np.float32) for _ in range(count)]
        expected = tree(arrays)
        assert difference([summed(arrays, arrays[place])], [expected]) == 0


def test_one_array_may_be_added_more_than_once():
    a = values(np.random.default_rng(4), 1001, np.float32)
    expected = tree([a, a, a])
    assert difference([summed([a, a, a], a)], [expected]) == 0


def test_shapes_of_any_number_of_axes():
    a = np.arange(6.0).reshape(2, 3)
    assert (summed([a, a], np.empty((2, 3))) == 2 * a).all()
    assert summed([np.array(1.5), np.array(2.0)], np.zeros(())) == 3.5
    assert summed([np.zeros((0, 3))] * 2, np.zeros((0, 3))).shape == (0, 3)


def test_the_mode_of_the_caller_stays(float_word):
    before = float_word()
    for dtype in (np.float32, np.float64):
        summed([np.ones(9, dtype)] * 3, np.zeros(9, dtype))
        assert float_word() == before


def test_other_threads_run_during_a_long_sum():
    fs.set_num_threads(1)
    arrays, out, counts, done = (
        [np.ones(2_000_000, np.float32)] * 8,
        np.zeros(2_000_000, np.float32),
        [],
        threading.Event(),
    )

    def count():
        while not done.is_set():
            counts.append(len(counts))

    other = threading.Thread(target=count)
    other.start()
    before = len(counts)
    for _ in range(20):
        _cpu.sum_parts(arrays, out)
    after = len(counts)
    done.set()
    other.join()
    assert after > before
    assert (out == 8).all()


A = np.ones(4, np.float32)
ROOM = np.ones(9, np.float32)
REFUSED = {
    "nothing": ([], A.copy(), ValueError, "arrays is empty, expected at least one array"),
    "no array": ([A, 3], A.copy(), TypeError, r"arrays\[1\] is of type int, expected an array"),
    "out is none": ([A], None, TypeError, "out is of type NoneType, expected an array"),
    "out is narrow": ([A], np.ones(4, np.float16), TypeError, "out is float16, expected float32"),
    "integers": ([np.ones(4, np.int32)], A.copy(), TypeError, r"arrays\[0\] is int32, expected float32 like out"),
    "double": ([A, np.ones(4)], A.copy(), TypeError, r"arrays\[1\] is float64, expected float32 like out"),
    "single": ([np.ones(4), A], np.ones(4), TypeError, r"arrays\[1\] is float32, expected float64 like out"),
    "complex": ([A.astype(np.complex64)], A.copy(), TypeError, r"arrays\[0\] is complex64, expected real numbers"),
    "shape": ([A, np.ones((4, 1), np.float32)], A.copy(), ValueError, r"arrays\[1\] has shape \(4, 1\), expected \(4"),
    "strides": ([A, np.ones(8, np.float32)[::2]], A.copy(), ValueError, r"arrays\[1\] is not contiguous row by row"),
    "order": ([np.ones((2, 3))], np.ones((3, 2)).T, ValueError, "out is not contiguous row by row"),
    "read-only": ([A], np.broadcast_to(np.float32(1), 4), ValueError, "out "),
    "overlap": ([A, ROOM[1:5]], ROOM[2:6], ValueError, r"arrays\[1\] overlaps out in memory, expected separate"),
    "other type": (
        [ROOM[:4].view(np.float16)[:4]],
        ROOM[:4],
        ValueError,
        r"arrays\[0\] overlaps out in memory, expected separate arrays, or the very same one",
    ),
    "unaligned": (
        [np.ones(17, np.uint8)[1:].view(np.float32)],
        A.copy(),
        ValueError,
        r"arrays\[0\] is unaligned, expected an address that is a multiple of 4 bytes",
    ),
}


@pytest.mark.parametrize(("arrays", "out", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_added_is_refused(arrays, out, error, text):
    before = None if out is None else out.copy()
    with pytest.raises(error, match=f"^{text}"):
        _cpu.sum_parts(arrays, out)
    if out is not None:
        assert (out == before).all()
