"""The cut of tensors among ranks: each element has one owner, blocks stay whole, and shares are even."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedstep.distributed.layout import BLOCK, Layout, Parcel

SIZES = st.lists(st.one_of(st.integers(0, 5), st.integers(0, 20_000), st.sampled_from([1023, 1024, 1025, 4096])))
DTYPES = (np.float32, np.float64, np.float16, np.complex64)


def container(sizes):
    return {f"tensor {i}": np.arange(n, dtype=np.float32).astype(DTYPES[i % 4]) for i, n in enumerate(sizes)}


@given(SIZES, st.integers(1, 12))
def test_each_element_has_one_owner(sizes, size):
    params = container(sizes)
    layout = Layout(params, size)
    lines = layout.lines(params, "params")
    assert layout.keys == list(params)
    seen = [piece for rank in range(size) for piece in layout.pieces(rank)]
    for key, line in lines.items():
        mine = [piece for piece in seen if piece.key == key]
        assert sum(piece.end - piece.begin for piece in mine) == line.size
        assert all(left.end == right.begin for left, right in pairwise(mine))
        assert all(piece.begin % BLOCK == 0 and piece.begin < piece.end for piece in mine)
    assert [piece.key for piece in seen] == sorted((piece.key for piece in seen), key=layout.keys.index)
    target = sum(line.nbytes for line in lines.values()) / size
    for rank in range(size):
        views = layout.views(lines, rank)
        origins = layout.origins(rank)
        assert list(views) == list(origins) == layout.keys
        owned = layout.pieces(rank)
        assert len({piece.key for piece in owned}) == len(owned)
        for key, view in views.items():
            if view.size:
                assert np.shares_memory(view, params[key])
                assert view.tobytes() == lines[key][origins[key] : origins[key] + view.size].tobytes()
            else:
                assert origins[key] == 0
        assert abs(sum(view.nbytes for view in views.values()) - target) <= BLOCK * 8 + 1


def test_cuts_by_hand():
    params = {"a": np.zeros(1000, np.float32), "b": np.zeros((4, 1024), np.float32), "c": np.zeros(0), "d": np.zeros(1)}
    layout = Layout(params, 2)
    assert layout.pieces(0) == [("a", 0, 1000), ("b", 0, 2048)]
    assert layout.pieces(1) == [("b", 2048, 4096), ("d", 0, 1)]
    assert layout.origins(1) == {"a": 0, "b": 2048, "c": 0, "d": 0}
    assert [Layout([np.zeros(5)], 3).pieces(rank) for rank in range(3)].count([(0, 0, 5)]) == 1
    assert Layout({}, 2).pieces(1) == []


def test_elements_are_numbered_as_they_lie():
    params = {"w": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "z": np.array([1 + 2j], np.complex64)}
    layout = Layout(params, 1)
    lines = layout.lines(params, "params")
    assert lines["w"].tolist() == [0, 3, 1, 4, 2, 5]
    assert lines["z"].tolist() == [1, 2]
    lines["w"][1] = 9
    assert params["w"][1, 0] == 9
    assert Layout(np.array(3.0), 2).lines(np.array(4.0), "grads").popitem()[1].tolist() == [4]


def test_nested_containers_keep_their_keys():
    layout = Layout({"layer": {"w": np.zeros(2), "b": np.zeros(1)}}, 1)
    assert layout.keys == ["layer/w", "layer/b"]


PARAMS = {"w": np.zeros((2, 3)), "b": np.zeros(3)}
WRONGS = [
    ({"w": np.zeros((2, 3))}, r"grads\['b'\] is missing, expected the keys of the parameters: 'w', 'b'"),
    (PARAMS | {"c": np.zeros(1)}, r"grads\['c'\] belongs to no parameter"),
    (PARAMS | {"b": np.zeros(4)}, r"grads\['b'\] has shape \(4,\), expected \(3,\)"),
    (PARAMS | {"w": np.zeros((3, 2)).T}, r"grads\['w'\] has strides \(8, 16\), expected no gaps, and the order of"),
    (PARAMS | {"b": np.zeros(6)[::2]}, r"grads\['b'\] has strides \(16,\), expected no gaps"),
]


@pytest.mark.parametrize(("grads", "message"), WRONGS)
def test_wrong_arrays_are_refused(grads, message):
    with pytest.raises(ValueError, match="^" + message):
        Layout(PARAMS, 2).lines(grads, "grads")


def test_wrong_layouts_are_refused():
    with pytest.raises(ValueError, match=r"^size is 0, expected at least 1 rank"):
        Layout(PARAMS, 0)
    with pytest.raises(ValueError, match=r"^params\['a'\] has strides \(16,\), expected no gaps"):
        Layout({"a": np.zeros(6)[::2]}, 2)


@given(st.lists(st.sampled_from([0, 1, 7, 100, 16383, 16384, 20_000]), max_size=8))
def test_parcels_arrive(sizes):
    sent = [np.random.default_rng(i).standard_normal(n).astype(DTYPES[i % 3]) for i, n in enumerate(sizes)]
    found = [np.zeros_like(array) for array in sent]
    source, target = Parcel(sent), Parcel(found)
    for again in range(2):
        for array in sent:
            array += again
        messages = source.pack()
        assert len(messages) <= 1 + sum(array.nbytes >= 65536 for array in sent)
        for message, room in zip(messages, target.messages, strict=True):
            assert message.nbytes == room.nbytes
            room.reshape(-1).view(np.uint8)[:] = message.reshape(-1).view(np.uint8)
        target.unpack()
        assert [array.tobytes() for array in found] == [array.tobytes() for array in sent]


def test_large_arrays_are_not_copied():
    large = np.zeros(20_000)
    assert Parcel([large, np.zeros(1)]).pack()[0] is large
    assert any(message is large for message in Parcel([np.zeros(1), large, np.zeros(2)]).pack())
