"""Containers of parameters of any depth, objects, and gradients under other names."""

import collections
import dataclasses
import types

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu, reference
from tests.api.arrays import F32, ones


@dataclasses.dataclass
class Layer:
    W: np.ndarray
    b: np.ndarray


Pair = collections.namedtuple("Pair", "W b")


class Everything(collections.abc.Mapping):
    """A mapping that is no dict, and gives the same items each time."""

    def __init__(self, items):
        self.items_ = items

    def __getitem__(self, key):
        return self.items_[key]

    def __iter__(self):
        return iter(self.items_)

    def __len__(self):
        return len(self.items_)


def model(make=ones):
    return {
        "enc": [{"W": make(3), "b": make(2)}, (make(4), make(5))],
        "data": Layer(make(6), make(7)),
        "pair": Pair(make(8), make(9)),
        "view": {"x": make(2), "y": make(3)}.values(),
        "own": Everything({"z": make(2)}),
        7: make(1),
    }


KEYS = [
    "enc/0/W", "enc/0/b", "enc/1/0", "enc/1/1", "data/W", "data/b", "pair/W", "pair/b", "view/0", "view/1", "own/z", 7,
]  # fmt: skip


def test_keys_are_paths():
    params = model()
    opt, ref = fs.Adam(overrides={"*/b": {"lr": 0.5}, "enc/1/0": {"frozen": True}}), reference.Adam()
    assert _cpu.leaves(params)[0] == KEYS
    for _ in range(2):
        opt.step(params, model())
        ref.step(model(), model())
    assert list(opt.t) == KEYS
    assert opt.t["enc/1/0"] == 0
    assert opt.groups()[1].keys == ["enc/0/b", "data/b", "pair/b"]
    arrays = dict(zip(*_cpu.leaves(params), strict=True))
    assert (arrays["enc/1/0"] == 1).all()
    assert all((p != 1).all() for key, p in arrays.items() if key != "enc/1/0")


def test_equal_to_a_flat_mapping(tmp_path):
    rng = np.random.default_rng(0)
    flat, nested = fs.Adam(clip_global_norm=1.0, ema=0.9), fs.Adam(clip_global_norm=1.0, ema=0.9)
    params = model(rng.standard_normal)
    twin = {key: array.copy() for key, array in zip(*_cpu.leaves(params), strict=True)}
    for step in range(4):
        grads = model(rng.standard_normal)
        if step == 2:
            grads["enc"][1], grads["data"], grads["pair"] = None, None, Pair(None, np.ones(9))
        known = dict(zip(*_cpu.leaves({k: g for k, g in grads.items() if g is not None}), strict=True))
        found = {key: known.get(key) for key in twin}
        assert nested.step(params, grads).grad_norm == flat.step(twin, found).grad_norm
        for key, array in zip(*_cpu.leaves(params), strict=True):
            assert (array == twin[key]).all()
    assert dict(nested.t) == dict(flat.t)
    fs.save(tmp_path / "a.npz", nested, params)
    other, again = fs.Adam(), model(np.zeros)
    fs.load(tmp_path / "a.npz", other, again, hyperparameters="file")
    for key, array in zip(*_cpu.leaves(again), strict=True):
        assert (array == twin[key]).all()
    assert dict(other.t) == dict(flat.t)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda g: g["enc"].pop(), ValueError, r"grads\['enc'\] has 1 items, expected 2 like params\['enc'\]$"),
        (lambda g: g["enc"][0].update(c=1), ValueError, r"grads\['enc/0/c'\] belongs to no parameter, expected only"),
        (
            lambda g: g.update(enc={}),
            TypeError,
            r"grads\['enc'\] is a mapping, expected a sequence like params",
        ),
        (lambda g: g.update(own=ones(2)), TypeError, r"grads\['own'\] is one array, expected a mapping like params"),
        (lambda g: g.update({7: [1.0]}), TypeError, r"grads\[7\] is of type list, expected an array"),
        (
            lambda g: g["enc"][0].update(W=ones(4)),
            ValueError,
            r"grads\['enc/0/W'\] has shape \(4,\), expected \(3,\)",
        ),
        (lambda g: g.update(enc=(x for x in ())), TypeError, r"grads\['enc'\] is of type generator, which can"),
        (
            lambda g: g.update(other=ones()),
            ValueError,
            r"grads\['other'\] belongs to no parameter, expected only keys of",
        ),
    ],
)
@pytest.mark.parametrize("steps", [0, 1])
def test_structures_that_part_are_told_by_their_path(change, error, message, steps):
    params, opt = model(), fs.Adam()
    for _ in range(steps):
        opt.step(params, model())
    before = [array.copy() for array in _cpu.leaves(params)[1]]
    grads = model()
    change(grads)
    with pytest.raises(error, match="^" + message):
        opt.step(params, grads)
    assert all((a == b).all() for a, b in zip(_cpu.leaves(params)[1], before, strict=True))
    assert set(opt.t.values()) == ({1} if steps else set())
    opt.step(params, model())


def test_parameters_that_cannot_be():
    for params, error, message in (
        ({"a/b": ones(), "a": {"b": ones()}}, ValueError, r"params\['a/b'\] is the key of two parameters"),
        ({"a": {(1, 2): ones()}}, TypeError, r"params\[.*\] has tuple as the key of a container, expected text or int"),
        ({"a": {"b": "text"}}, TypeError, r"params\['a/b'\] is of type str, expected an array"),
        ({"a": {ones(1).tobytes()}}, TypeError, r"params\['a'\] is of type set, which has no order"),
    ):
        with pytest.raises(error, match="^" + message):
            fs.SGD().step(params, params)
    deep = params = {}
    for _ in range(300):
        deep["x"] = deep = {}
    with pytest.raises(ValueError, match="more than 200 deep"):
        fs.SGD().step(params, params)


def test_what_has_no_gradient_is_not_looked_at():
    fixed = np.ones(3, F32)
    fixed.flags.writeable = False
    params = {"w": ones(), "count": 3, "name": "dense", "bias": None, "ints": np.arange(3), "fixed": fixed}
    opt = fs.Adam()
    for _ in range(2):
        opt.step(params, {"w": ones(), "bias": None})
    assert {key for key, t in opt.t.items() if t} == {"w"}
    with pytest.raises(ValueError, match=r"^params\['fixed'\] is read-only"):
        opt.step(params, {"fixed": np.ones(3, F32)})


def test_a_container_that_makes_its_arrays_anew_is_refused(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.zeros(3, F32))
    opt = fs.SGD(lr=1.0)
    with np.load(tmp_path / "w.npz") as params:
        with pytest.raises(ValueError, match=r"^params\['a'\] is a new array each time it is asked.*dict\(params\)"):
            opt.step(params, {"a": np.ones(3, F32)})
        assert not opt.t
        held = dict(params)
        opt.step(held, {"a": np.ones(3, F32)})
        opt.step(held, params)  # gradients are only read
    assert (held["a"] == -1).all()


def test_one_bare_array_after_the_other_is_refused():
    arrays, opt = [ones(), ones()], fs.Adam(lr=0.1)
    opt.step(arrays[0], ones())
    with pytest.raises(ValueError, match="knows one array by the key 0: give several as a mapping"):
        opt.step(arrays[1], ones())
    assert (arrays[1] == 1).all()
    opt.step(arrays[0], ones())
    assert opt.t[0] == 2
    w = arrays.pop(0)
    for _ in range(3):
        w = w - 0.0  # a new array in place of one that nobody has any more
        opt.step(w, ones())
    assert opt.t[0] == 5


def test_bound_objects():
    layers = [types.SimpleNamespace(W=ones(2), b=ones(1), inner=types.SimpleNamespace(w=ones(3))) for _ in range(3)]
    names = {"param": "W b inner.w", "grad": "dW db inner.dw"}
    bound, opt = fs.bind(layers, **names), fs.SGD(lr=1.0)
    layers[0].dW, layers[0].inner.dw = np.ones(2), np.ones(3)
    layers[1].dW = None
    opt.step(bound)
    assert {key for key, t in opt.t.items() if t} == {"0/W", "0/inner.w"}
    del layers[0].dW
    first = layers.pop(0)
    layers[0].dW = np.ones(2)
    opt.step(bound)  # the keys are those of the objects, not of places in a list
    assert opt.t["1/W"] == 1
    assert opt.t["0/W"] == 1
    assert opt.t["0/inner.w"] == 2
    assert first.inner.w.tolist() == [-1] * 3
    assert fs.bind({"a": first}, **names).params["a"]["W"] is first.W
    for wrong in ({"param": "W b", "grad": "dW"}, {"param": "", "grad": ""}, {"param": "V", "grad": "dV"}):
        with pytest.raises(ValueError, match="expected"):
            fs.bind(layers, **wrong)


class Anew:
    """A layer whose parameter is a new array each time it is asked for."""

    w = property(lambda self: ones(2))
    dw = property(lambda self: ones(2))


def test_objects_that_lack_a_parameter():
    linear, activation = types.SimpleNamespace(W=ones(2), dW=ones(2), b=None), types.SimpleNamespace()
    opt = fs.SGD(lr=1.0)
    linear.b = ones(1)
    bound = fs.bind([linear, activation], "W b", "dW db")
    linear.b = None
    opt.step(bound)
    assert dict(opt.t) == {"0/W": 1}
    linear.b, linear.db = ones(1), ones(1)
    opt.step(bound)
    assert dict(opt.t) == {"0/W": 2, "0/b": 1}
    del linear.W
    opt.step(bound)
    assert dict(opt.t) == {"0/W": 2, "0/b": 2}
    assert opt.groups(bound)[0].keys == ["0/b"]
    with pytest.raises(TypeError, match=r"^grads is given beside objects that are bound, expected None"):
        opt.step(bound, [ones(1)])
    with pytest.raises(ValueError, match=r"^params\['0/w'\] is a new array each time it is asked for"):
        fs.bind([Anew()], "w", "dw")


def test_gradients_under_other_names_in_any_container():
    weights, slopes = collections.namedtuple("weights", "W"), collections.namedtuple("slopes", "dW")
    params = {"a": weights(ones(2)), "b": {"W": ones(2)}, "c": [{"W": ones(1)}]}
    opt = fs.SGD(lr=1.0)
    opt.step(params, {"a": slopes(ones(2)), "b": None, "c": [{"dW": ones(1)}]}, grad_key="d{}")
    assert dict(opt.t) == {"a/W": 1, "b/W": 0, "c/0/W": 1}
    for wrong in ("d{x}", "d{}{}", "d", "d{", 3):
        with pytest.raises(ValueError, match=r"expected a function, or a format with a place for the name: 'd\{\}'"):
            opt.step({"W": ones(1)}, {"dW": ones(1)}, grad_key=wrong)


def test_gradients_under_other_names():
    params = {"W1": ones(2), "layer": [{"b": ones(1)}]}
    grads = {"dW1": ones(2), "layer": [{"db": ones(1)}]}
    for grad_key in ("d{}", lambda name: "d" + name):
        opt = fs.SGD(lr=0.5)
        opt.step(params, grads, grad_key=grad_key)
        assert set(opt.t.values()) == {1}
    assert params["W1"].tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"^grads\['W2'\] belongs to no parameter, expected names such as 'dW1'"):
        opt.step(params, grads | {"W2": ones()}, grad_key="d{}")
    with pytest.raises(TypeError, match="expected a mapping, as grad_key is given"):
        opt.step(params, [ones()], grad_key="d{}")
