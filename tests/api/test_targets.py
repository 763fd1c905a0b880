"""Parameters that a file is loaded into: memory of their own, which stays, or an error that changes nothing."""

import copy
import tracemalloc
from collections import OrderedDict, UserDict, UserList
from itertools import count
from types import MappingProxyType

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import schedules
from tests.api.runs import snapshot
from tests.interrupts import interrupted

VALUES = {"a": np.arange(1.0, 7), "b": np.arange(7.0, 13)}


@pytest.fixture
def saved(path):
    opt, params = fs.Adam(ema=0.5), {key: value.copy() for key, value in VALUES.items()}
    opt.step(params, {key: np.ones(6) for key in params})
    fs.save(path, opt, VALUES)
    return opt


def refused(path, opt, params, message):
    before = snapshot(opt, params)
    with pytest.raises(ValueError, match=message):
        fs.load(path, opt, params)
    assert snapshot(opt, params) == before


def test_targets_that_overlap(path, saved):
    memory = np.zeros(12)
    for a, b in ((memory[:6], memory[:6]), (memory[:6], memory[5:11]), (memory[6::-1][:6], memory[6:])):
        message = r"^params\['a'\] overlaps params\['b'\] in memory, expected separate arrays$"
        refused(path, fs.Adam(), {"a": a, "b": b}, message)
    fs.load(path, fs.Adam(), {"a": memory[:6], "b": memory[6:]})
    assert memory.tolist() == list(range(1, 13))


@pytest.mark.parametrize(("strides", "shape"), [((0,), (6,)), ((8, 8), (2, 3)), ((0, 8), (2, 3)), ((4,), (6,))])
def test_targets_that_overlap_themselves(path, strides, shape):
    params = {"a": np.lib.stride_tricks.as_strided(np.zeros(6), shape, strides)}
    fs.save(path, fs.SGD(), {"a": np.zeros(shape)})
    refused(path, fs.SGD(), params, r"^params\['a'\] has strides \(.*\), expected each element in memory of its own$")


def test_targets_of_any_order(path):
    values = np.arange(24.0).reshape(2, 3, 4)
    fs.save(path, fs.SGD(), {"a": values})
    for a in (np.zeros((4, 3, 2)).T, np.zeros((3, 2, 4)).swapaxes(0, 1), np.zeros((4, 6, 8))[::2, ::-2, ::2][:2]):
        fs.load(path, fs.SGD(), {"a": a})
        assert (a == values).all()


def test_targets_that_are_states_of_the_optimizer(path, saved):
    for name, array in (("state['a']['m']", saved.state["a"]["m"]), ("ema['b']", saved.ema["b"])):
        name = name.replace("[", r"\[").replace("]", r"\]")
        refused(path, saved, {"a": array, "b": np.zeros(6)}, rf"^params\['a'\] overlaps {name} in memory, expected")


class Remade(UserDict):
    def __getitem__(self, key):
        return super().__getitem__(key).copy()


class RemadeList(UserList):
    def __getitem__(self, i):
        return super().__getitem__(i).copy()

    def __iter__(self):
        return (self[i] for i in range(len(self)))


class Viewed(UserDict):
    def __getitem__(self, key):
        return super().__getitem__(key)[...]


def test_containers_that_make_their_values_anew(path, saved, tmp_path):
    np.savez(tmp_path / "w.npz", **VALUES)
    with np.load(tmp_path / "w.npz") as file:
        for params in (file, Remade(VALUES)):
            with pytest.raises(
                ValueError,
                match=r"^params\['a'\] is a new array each time it is asked for, expected the same one: dict\(params\)",
            ):
                fs.load(path, fs.Adam(), params)
        fs.load(path, fs.Adam(), dict(file))
        fs.save(path, fs.Adam(), file)  # only reads
    with pytest.raises(ValueError, match=r"^params\[0\] is a new array .* expected the same one: list\(params\), say$"):
        fs.load(path, fs.Adam(), RemadeList(VALUES.values()))


@pytest.mark.parametrize("container", [dict, OrderedDict, UserDict, MappingProxyType, Viewed])
def test_containers_that_keep_their_values(path, saved, container):
    params = {key: np.zeros(6) for key in VALUES}
    fs.load(path, fs.Adam(), container(params))
    assert all((params[key] == value).all() for key, value in VALUES.items())


class Layer:
    def __init__(self, n, value):
        self.W, self.dW = np.full(n, value), np.ones(n)


def test_nested_containers_and_objects(path):
    """A file holds what a step takes; the keys are paths, so that it also fits a flat mapping."""

    def nested(value):
        return {"enc": [{"W": np.full(2, value)}, (np.full(3, value), np.full((), value))], "b": np.full(1, value)}

    params, opt = nested(1.0), fs.Adam()
    opt.step(params, nested(1.0))
    keys = ["enc/0/W", "enc/1/0", "enc/1/1", "b"]
    assert list(opt.t) == keys
    fs.save(path, opt, params)
    flat = {key: np.zeros_like(opt.state[key]["m"]) for key in keys}
    loaded, others = nested(0.0), (fs.Adam(), fs.Adam())
    fs.load(path, others[0], loaded)
    fs.load(path, others[1], flat)
    opt.step(params, nested(1.0))
    others[0].step(loaded, nested(1.0))
    others[1].step(flat, {key: np.ones_like(p) for key, p in flat.items()})
    for each in (loaded["enc"][0]["W"], flat["enc/0/W"]):
        assert each.tolist() == params["enc"][0]["W"].tolist()
    assert snapshot(others[0]) == snapshot(others[1]) == snapshot(opt)
    layers = [Layer(2, 1.0), Layer(3, 1.0)]
    bound, opt = fs.bind(layers, "W", "dW"), fs.Adam()
    opt.step(bound)
    fs.save(path, opt, bound)
    copies = [Layer(2, 0.0), Layer(3, 0.0)]
    fs.load(path, fs.Adam(), fs.bind(copies, "W", "dW"))
    assert [layer.W.tolist() for layer in copies] == [layer.W.tolist() for layer in layers]


# Memory.


def test_loading_needs_no_memory_but_for_new_states(path):
    n = 250_000
    opt, params = fs.Adam(), {"a": np.ones(n), "b": np.ones(n)}
    opt.step(params, {key: np.ones(n) for key in params})
    fs.save(path, opt, params)
    new, megabyte = 4 * 8 * n, 1e6
    for other, expected in ((fs.Adam(), new), (opt, 0)):
        fs.load(path, copy.deepcopy(other), params)  # imports what it needs
        tracemalloc.start()
        try:
            fs.load(path, other, params)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert expected <= peak < expected + megabyte


# Interrupts.


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore:.*unclosed file", "ignore:.*FileIO")  # the interrupt comes as `with` ends
@pytest.mark.parametrize("way", ["file", "params", "state dict"])
def test_an_interrupt_comes_before_everything_or_after(tmp_path, way):
    path = tmp_path / "x.npz"

    def make(steps):
        opt, params = fs.Nadam(schedules.plateau(0.5), ema=0.5), {"a": np.ones(2)}
        for _ in range(steps):
            opt.step(params, {"a": np.ones(2)})
        opt.lr.observe(steps)
        return opt, params

    saved, values = make(3)
    fs.save(path, saved, values)
    state_dict = saved.state_dict()

    def load(opt, params):
        if way == "file":
            fs.load(path, opt, params)
        elif way == "params":
            fs.load(path, None, params)
        else:
            opt.load_state_dict(state_dict)

    opt, params = make(2)
    old = snapshot(opt, params)
    load(opt, params)
    new = snapshot(opt, params)
    seen = set()
    for number in count(1):
        opt, params = make(2)
        if not interrupted(lambda opt=opt, params=params: load(opt, params), number, most=1):
            break
        found = snapshot(opt, params)
        assert found in (old, new), number
        seen.add(found == new)
        load(opt, params)
        assert snapshot(opt, params) == new
    assert seen == {False, True}
    assert number > 50  # lines
