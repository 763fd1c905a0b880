"""The batches of rows: complete, reproducible, and resumed anywhere."""

import copy
import hashlib
import pickle
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fusedstep as fs

ARGUMENTS = st.fixed_dictionaries(
    {
        "n": st.integers(1, 60),
        "batch_size": st.integers(1, 70),
        "seed": st.integers(0, 2**70),
        "shuffle": st.booleans(),
        "drop_last": st.booleans(),
    }
).filter(lambda a: not (a["drop_last"] and a["batch_size"] > a["n"]))


def lists(batches):
    return [rows.tolist() for rows in batches]


@given(arguments=ARGUMENTS)
def test_an_epoch_has_each_row_once(arguments):
    n, size = arguments["n"], arguments["batch_size"]
    batches = fs.minibatches(**arguments)
    for epoch in range(3):
        dealt = list(batches)
        lengths = [len(rows) for rows in dealt]
        assert len(dealt) == len(batches)
        assert batches.done == (epoch + 1) * len(batches)
        assert lengths[:-1] == [size] * (len(dealt) - 1)
        assert lengths[-1] == (size if arguments["drop_last"] or n % size == 0 else n % size)
        assert all(rows.dtype == np.int64 for rows in dealt)
        order = np.concatenate(dealt).tolist()
        left_out = n % size if arguments["drop_last"] else 0
        assert len(set(order)) == len(order) == n - left_out
        assert set(order) <= set(range(n))
        if not arguments["shuffle"]:
            assert order == list(range(n - left_out))


@given(arguments=ARGUMENTS, data=st.data())
def test_every_batch_is_a_function_of_its_number(arguments, data):
    batches = fs.minibatches(**arguments)
    run = [rows for _ in range(3) for rows in batches]
    other = fs.minibatches(**arguments)
    for i in data.draw(st.lists(st.integers(0, len(run) - 1), max_size=10)):
        assert other[i].tolist() == run[i].tolist()
    assert other.done == 0


def test_orders_differ_by_epoch_and_seed():
    orders = {tuple(fs.minibatches(100, 100, seed)[epoch]) for seed in range(30) for epoch in range(30)}
    assert len(orders) == 900


@pytest.mark.parametrize(
    ("seed", "epoch", "order"),
    [
        (0, 0, [4, 8, 3, 1, 5, 7, 2, 0, 6, 9]),
        (0, 1, [2, 3, 4, 1, 9, 0, 8, 5, 7, 6]),
        (2**32, 0, [5, 3, 2, 1, 9, 4, 7, 0, 6, 8]),
        (2**100 + 7, 2**40, [5, 3, 0, 7, 8, 2, 1, 9, 4, 6]),
    ],
)
def test_orders_are_the_same_forever(seed, epoch, order):
    assert fs.minibatches(10, 10, seed)[epoch].tolist() == order


def test_a_long_order_is_the_same_forever():
    order = fs.minibatches(100_003, 100_003, 1)[2].astype("<i8")
    digest = hashlib.sha256(order.tobytes()).hexdigest()
    assert digest == "ae0c0c8bf7d5fb4c229d4c3af8963454fd22ae38c14216f8651107ac33de2ffb"


@pytest.mark.parametrize("drop_last", [False, True])
def test_resumed_at_every_position(drop_last):
    whole = fs.minibatches(11, 4, 5, drop_last=drop_last)
    run = [rows.tolist() for _ in range(3) for rows in whole]
    for done in range(len(run)):
        batches = fs.minibatches(11, 4, 5, drop_last=drop_last)
        batches.done = done
        rest = []
        while batches.done < len(run):
            rest += lists(batches)
            assert batches.done % len(batches) == 0
        assert rest == run[done:]


def test_a_place_far_away():
    batches = fs.minibatches(10, 4, 0)
    batches.done = 3 * 2**40 + 1
    assert [len(rows) for rows in batches] == [4, 2]
    assert batches.done == 3 * 2**40 + 3


@pytest.mark.parametrize("taken", [1, 2, 3])
def test_a_for_that_was_left_early_is_continued(taken):
    run = lists(fs.minibatches(7, 3, 1)[i] for i in range(6))
    batches, seen = fs.minibatches(7, 3, 1), []
    for rows in batches:
        seen.append(rows.tolist())
        assert batches.done == len(seen)  # what a checkpoint after this step would save
        if len(seen) == taken:
            break
    assert seen + lists(batches) == run[: 6 if taken == 3 else 3]


def test_done_set_inside_a_for():
    batches = fs.minibatches(8, 2, 0)
    numbers = []
    for _ in batches:
        numbers.append(batches.done - 1)
        if batches.done == 2:
            batches.done = 9
    assert numbers == [0, 1, 9, 10, 11]


@pytest.mark.parametrize("shuffle", [False, True])
def test_arrays_are_the_callers(shuffle):
    expected = lists(fs.minibatches(9, 4, 0, shuffle))
    batches = fs.minibatches(9, 4, 0, shuffle)
    for _ in range(2):
        batches.done = 0
        for rows, numbers in zip(batches, expected, strict=True):
            assert rows.tolist() == numbers
            assert rows.base is None
            rows[...] = -1


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_copies_go_on_at_the_same_place(clone):
    batches = fs.minibatches(1000, 3, 7, drop_last=True)
    list(islice(batches, 100))
    other = clone(batches)
    assert other == batches
    assert other.done == 100
    assert len(pickle.dumps(batches)) < 300  # too little to contain the order of 1000 rows
    assert lists(other) == lists(batches)
    assert other == batches
    list(islice(other, 1))
    assert other != batches


def test_equality_is_that_of_arguments_and_done():
    a, b = fs.minibatches(9, 4, 0), fs.minibatches(np.int32(9), np.int64(4), np.uint8(0), True, False)
    b[5]
    assert a == b
    assert type(b.n) is type(b.batch_size) is type(b.seed) is int
    assert repr(b) == "minibatches(n=9, batch_size=4, seed=0, shuffle=True, drop_last=False, done=0)"
    for other in (
        fs.minibatches(8, 4, 0),
        fs.minibatches(9, 3, 0),
        fs.minibatches(9, 4, 1),
        fs.minibatches(9, 4, 0, shuffle=False),
        fs.minibatches(9, 4, 0, drop_last=True),
    ):
        assert a != other
    b.done = 1
    assert a != b


def refused(error, name, value):
    """Return the message with which a value is refused, as an argument or as `done`."""
    batches = fs.minibatches(9, 4, 0)
    with pytest.raises(error) as caught:
        setattr(batches, name, value) if name == "done" else replace(batches, **{name: value})
    assert batches == fs.minibatches(9, 4, 0)
    return str(caught.value)


INTEGERS = [("n", 1), ("batch_size", 1), ("seed", 0), ("done", 0)]


@pytest.mark.parametrize(("name", "least"), INTEGERS)
def test_integers_out_of_range(name, least):
    for value in (least - 1, -5, -(10**30)):
        assert refused(ValueError, name, value) == f"{name} is {value}, expected an integer >= {least}"


@pytest.mark.parametrize(("name", "least"), INTEGERS)
def test_no_integers(name, least):
    for value in (True, np.True_, 2.0, np.float64(2), "2", None, np.ones(1, np.int64)):
        assert refused(TypeError, name, value) == f"{name} is {value!r}, expected an integer >= {least}"


@pytest.mark.parametrize("name", ["shuffle", "drop_last"])
def test_no_bools(name):
    for value in (1, None, "no", np.False_):
        assert refused(TypeError, name, value) == f"{name} is {value!r}, expected True or False"


def test_nothing_left():
    with pytest.raises(ValueError, match=r"^batch_size is 5, expected at most n = 4 with drop_last$"):
        fs.minibatches(4, 5, 0, drop_last=True)
    assert lists(fs.minibatches(4, 10**30, 0, shuffle=False)) == [[0, 1, 2, 3]]
    assert len(fs.minibatches(4, 4, 0, drop_last=True)) == 1


@pytest.mark.parametrize(("i", "error"), [(-1, ValueError), (1.0, TypeError), (slice(2), TypeError)])
def test_refused_numbers_of_batches(i, error):
    with pytest.raises(error, match=r"^i is .*, expected an integer >= 0$"):
        fs.minibatches(9, 4, 0)[i]


@pytest.mark.parametrize("name", ["n", "batch_size", "seed", "shuffle", "drop_last", "dnoe"])
def test_only_done_can_be_set(name):
    batches = fs.minibatches(9, 4, 0)
    with pytest.raises(AttributeError, match=f"^{name} cannot be set, expected done"):
        setattr(batches, name, 1)
    assert batches == fs.minibatches(9, 4, 0)
