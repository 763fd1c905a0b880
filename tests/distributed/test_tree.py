"""The sum of parts: the bits of one balanced tree, whatever ranks the parts are on."""

import ml_dtypes
import numpy as np
import pytest

from fusedstep import _cpu
from fusedstep.distributed.tree import Forest, nodes_of, parts_of, row_of
from fusedstep.reference import float_mode


def balanced(arrays):
    """Return the sum of arrays level by level, in the mode of floating-point numbers of the rules."""
    row = [array.astype(np.float64 if array.dtype == np.float64 else np.float32) for array in arrays]
    with float_mode(row[0].dtype.type):
        while len(row) > 1:
            pairs = [row[i : i + 2] for i in range(0, len(row), 2)]
            row = [pair[0] + pair[1] if len(pair) == 2 else pair[0] for pair in pairs]
    return row[0]


def finished(nodes, arrays):
    """Return the sum of the whole tree, of arrays that stay as they are."""
    before = [array.tobytes() for array in arrays]
    out = np.full(arrays[0].shape, np.nan, np.float64 if arrays[0].dtype == np.float64 else np.float32)
    rooms = {}
    row = row_of(nodes, arrays, lambda i: rooms.setdefault(i, np.full_like(out, np.nan)))
    assert len(rooms) < len(nodes)
    _cpu.sum_parts(row, out)
    assert [array.tobytes() for array in arrays] == before
    return out


def parts_for(count, dtype=np.float32, size=17):
    """Return gradients over many orders of magnitude, with subnormal numbers."""
    random = np.random.default_rng(count)
    found = random.standard_normal((count, size)) * 10.0 ** random.integers(-4, 4, (count, size))
    found[:, ::3] *= 1e-38
    return list(found.astype(dtype))


def sum_on_ranks(parts, size):
    """Return the sum of the parts as `size` ranks find it, and how many nodes the ranks send at most."""
    nodes, arrays, most = [], [], 0
    for rank in range(size):
        share = parts_of(len(parts), rank, size)
        own = nodes_of(share.start, share.stop)
        forest = Forest(share.start, share.stop)
        room = np.empty_like(parts[0])  # as of a caller who makes all gradients in one array
        for part in share:
            room[...] = parts[part]
            forest.add(room)
        assert [array.shape for array in forest.arrays] == [parts[0].shape] * len(own)
        nodes += own
        arrays += forest.arrays
        most = max(most, len(own))
    return finished(nodes, arrays), most


@pytest.mark.parametrize("count", range(1, 49))
def test_any_ranks_give_the_bits_of_one_tree(count):
    parts = parts_for(count)
    expected = balanced(parts).tobytes()
    for size in range(1, count + 1):
        out, most = sum_on_ranks(parts, size)
        assert out.tobytes() == expected, size
        assert most <= 8


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 11])
def test_any_dtype(dtype, count):
    parts = parts_for(count, dtype)
    for size in range(1, count + 1):
        assert sum_on_ranks(parts, size)[0].tobytes() == balanced(parts).tobytes()


def test_a_plain_sum_has_other_bits():
    parts = parts_for(8)
    assert sum(parts[1:], start=parts[0]).tobytes() != balanced(parts).tobytes()


def test_a_rank_sends_one_node_where_ranks_divide_parts_into_powers_of_two():
    for size in (1, 2, 4, 8):
        for rank in range(size):
            share = parts_of(8, rank, size)
            assert nodes_of(share.start, share.stop) == [(3 - size.bit_length() + 1, rank)]
    assert nodes_of(2, 5) == [(1, 1), (0, 4)]
    assert nodes_of(3, 3) == []


def test_ranks_with_as_many_parts_need_no_further_sums():
    parts = parts_for(8)
    for size in (1, 2, 4, 8):
        nodes = [node for r in range(size) for node in nodes_of(8 * r // size, 8 * (r + 1) // size)]
        row = row_of(nodes, parts[:size], lambda i: pytest.fail("room is asked for"))
        assert len(row) == size
        assert all(a is b for a, b in zip(row, parts, strict=False))


def test_a_forest_keeps_its_memory():
    parts = parts_for(7)
    forest = Forest(0, 7)
    addresses = []
    for _ in range(3):
        for part in parts:
            forest.add(part)
        addresses.append({array.ctypes.data for array in forest.arrays})
        assert len(forest._own) == 2  # the two sums; the last part stands for itself
        assert forest.arrays[-1] is parts[-1]
        forest.clear()
    assert addresses[0] == addresses[1] == addresses[2]


def test_parts_too_many_or_too_few_are_refused():
    forest = Forest(2, 4)
    forest.add(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match=r"^part 3 has not been added, expected all parts to 3"):
        forest.arrays  # noqa: B018
    forest.add(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match=r"^part 4 is one too many, expected the parts 2 to 3"):
        forest.add(np.zeros(1, np.float32))
