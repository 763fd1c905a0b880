"""How the classes behave: containers, keys, states, step counts, hyperparameters, copies."""

import collections
import copy
import inspect
import operator
import pickle
import re
import subprocess
import sys
import threading
import types
from fractions import Fraction
from importlib import import_module
from importlib.util import find_spec

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import reference
from fusedstep.core.optimizer import Result
from fusedstep.tools import verify


def ones(n=8, dtype=np.float32):
    return np.ones(n, dtype)


def trained(cls, steps=3, **options):
    optimizer, p, rng = cls(**options), ones(), np.random.default_rng(0)
    for _ in range(steps):
        optimizer.step({"w": p}, {"w": rng.standard_normal(8).astype(np.float32)})
    return optimizer, p


def test_one_array_a_sequence_and_a_mapping_are_the_same_step():
    results = []
    for wrap in (
        lambda a: a,
        lambda a: [a],
        lambda a: (a,),
        lambda a: {"w": a},
        lambda a: types.MappingProxyType({"w": a}),
        lambda a: collections.OrderedDict(w=a),
        lambda a: collections.defaultdict(list, w=a),
        lambda a: collections.UserList([a]),
        lambda a: collections.deque([a]),
    ):
        optimizer, p, g = fs.Adam(), ones(), ones()
        for _ in range(3):
            assert optimizer.step(wrap(p), wrap(g)) == Result()
        results.append(p)
        assert len(optimizer.state) == 1
    assert verify.difference(results, [results[0]] * len(results)) == 0


def test_keys_of_state_and_t():
    for params, keys in ((ones(), [0]), ([ones(), ones()], [0, 1]), ({"a": ones(), ("b", 2): ones()}, ["a", ("b", 2)])):
        optimizer = fs.Adam()
        grads = copy.deepcopy(params)
        optimizer.step(params, grads)
        assert list(optimizer.state) == list(optimizer.t) == keys
        assert all(list(state) == ["m", "v"] for state in optimizer.state.values())


def test_a_missing_gradient_leaves_everything_about_its_parameter_alone():
    params = {"a": ones(), "b": ones(), "c": ones()}
    optimizer = fs.Adam()
    optimizer.step(params, {"c": ones(), "a": None})
    assert list(optimizer.state) == ["c"]
    assert dict(optimizer.t) == {"a": 0, "b": 0, "c": 1}
    assert (params["a"] == 1).all()
    assert (params["b"] == 1).all()
    optimizer.step(params, {"b": ones(), "c": ones()})
    assert dict(optimizer.t) == {"a": 0, "b": 1, "c": 2}
    optimizer.step(params, {})
    optimizer.step(params, {"a": None, "b": None, "c": None})
    assert dict(optimizer.t) == {"a": 0, "b": 1, "c": 2}
    one = ones()
    optimizer = fs.SGD(lr=1.0)
    optimizer.step(one, None)
    assert (one == 1).all()
    optimizer.step([one], [None])
    assert (one == 1).all()
    optimizer.step([one], [ones()])
    assert (one == 0).all()


def test_order_of_keys_does_not_matter():
    a, b = {"x": ones(), "y": ones()}, {"x": ones(), "y": ones()}
    grads = {"x": ones() * 2, "y": ones() * 3}
    one, other = fs.Adam(), fs.Adam()
    for _ in range(3):
        one.step(a, grads)
        other.step(dict(reversed(b.items())), dict(reversed(grads.items())))
        other.step(b, {}) if _ == 1 else None
    assert verify.difference(list(a.values()), list(b.values())) == 0


def test_a_subset_of_the_parameters_may_be_stepped_alone():
    params = {k: ones() for k in "abc"}
    optimizer = fs.Adam()
    optimizer.step(params, {k: ones() for k in "abc"})
    optimizer.step({"b": params["b"]}, {"b": ones()})
    optimizer.step({"b": params["b"], "d": ones()}, {"b": ones(), "d": ones()})
    optimizer.step(params, {k: ones() for k in "abc"})
    assert dict(optimizer.t) == {"a": 2, "b": 4, "c": 2, "d": 1}


def test_states_are_arrays_beside_their_parameter():
    optimizer, _ = trained(fs.Adam)
    m = optimizer.state["w"]["m"]
    assert type(m) is np.ndarray
    assert m.dtype == np.float32
    assert m.shape == (8,)
    assert m.ctypes.data % 64 == 0
    m[...] = 0  # states may be written to
    optimizer.step({"w": ones()}, {"w": ones()})
    assert (m == np.float32(1 - 0.9) * 1).all()
    for replace in (
        lambda: optimizer.state.update(w={}),
        lambda: optimizer.state["w"].update(m=m),
    ):
        with pytest.raises(AttributeError):
            replace()
    with pytest.raises(TypeError):
        optimizer.state["w"]["m"] = m
    with pytest.raises(ValueError, match="own"):
        m.resize(3, refcheck=False)


def test_states_start_at_the_accumulator():
    for cls, name in ((fs.Adagrad, "a"), (fs.RMSprop, "v")):
        optimizer = cls(initial_accumulator=0.25, overrides={1: {"initial_accumulator": 0.5}})
        optimizer.step([ones(), ones()], [np.zeros(8, np.float32), np.zeros(8, np.float32)])
        rho = 1 if cls is fs.Adagrad else np.float32(0.99)
        assert (optimizer.state[0][name] == rho * np.float32(0.25)).all()
        assert (optimizer.state[1][name] == rho * np.float32(0.5)).all()


def test_no_two_optimizers_share_anything():
    a, b = fs.Adam(), fs.Adam()
    a.step(ones(), ones())
    assert not b.state
    assert a != b
    assert len({a, b}) == 2


@pytest.mark.parametrize("through", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("cls", fs.optimizers.classes())
def test_copies_continue_with_the_same_bits_and_live_arrays(cls, through):
    options = {"weight_decay": 0.1, "overrides": {"w": {"lr": 0.05}}}
    one, p = trained(cls, **options)
    other, q = through(one), p.copy()
    assert type(other) is cls
    assert dict(other.t) == dict(one.t)
    rng = np.random.default_rng(1)
    for _ in range(3):
        g = rng.standard_normal(8).astype(np.float32)
        one.step({"w": p}, {"w": g})
        other.step({"w": q}, {"w": g})
    assert verify.difference([p], [q]) == 0
    for name, state in one.state.get("w", {}).items():
        assert not np.shares_memory(state, other.state["w"][name])
        assert verify.difference([state], [other.state["w"][name]]) == 0


def test_a_pickle_that_was_tampered_with_is_refused():
    optimizer, _ = trained(fs.Adam)
    for name, value, message in (
        ("t", {"w": -5}, "t['w'] is -5, expected"),
        ("t", {"w": 2**63}, "t['w'] is 9223372036854775808, expected"),
        ("t", {"w": 1.5}, "t['w'] is 1.5, expected"),
        ("t", {}, "state['w'] belongs to no step count"),
        ("memory", {"w": {"product": 0.5}}, "memory['w'] has 'product', expected nothing"),
        ("memory", {"x": {}}, "memory['x'] belongs to no step count"),
        ("state", {}, "state['w'] lacks m, v, expected m, v"),
        ("state", {"w": {"m": ones(8)}}, "state['w'] lacks v, expected m, v"),
        ("state", {"w": {"m": ones(8), "v": ones(7)}}, "state['w']['v'] has shape (7,), expected (8,)"),
        ("state", {"w": {"m": ones(), "v": ones(), "y": ones()}}, "state['w'] has 'y', expected m, v"),
        ("state", {"w": {"m": ones(), "v": ones()}, "x": {}}, "state['x'] belongs to no step count"),
        ("ema", {"w": ones(5)}, "ema['w'] has shape (5,), expected (8,)"),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            fs.Adam().__setstate__(optimizer.__getstate__() | {name: value})
    for name, value in (
        ("t", 3),
        ("t", {"w": True}),
        ("state", {"w": 3}),
        ("state", {"w": {"m": ones(), "v": 3}}),
        ("ema", {"w": 3}),
    ):
        with pytest.raises(TypeError, match=f"^{name}"):
            fs.Adam().__setstate__(optimizer.__getstate__() | {name: value})


def test_first_steps_in_two_threads_make_one_or_are_refused():
    for _ in range(20):
        optimizer, p, made = fs.SGD(lr=1.0), ones(400_000), []

        def work(optimizer=optimizer, p=p, made=made):
            try:
                optimizer.step(p, ones(400_000))
                made.append(1)
            except RuntimeError as error:
                assert "already in a step" in str(error)  # noqa: PT017

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert optimizer.t[0] == len(made)
        assert (p == 1 - len(made)).all()


def test_positional_rate():
    assert fs.SGD(0.5).lr == 0.5
    assert isinstance(fs.AdamW(), fs.Adam)


def test_numbers_of_other_kinds_are_numbers():
    optimizer = fs.Adam(lr=np.float32(0.5), eps=0, beta1=np.int64(0))
    assert optimizer.lr == 0.5
    assert type(optimizer.lr) is type(optimizer.eps) is type(optimizer.beta1) is float


SCALARS = [
    np.array(0.5),
    np.array(0.5, np.float32),
    np.float16(0.5),
    ml_dtypes.bfloat16(0.5),
    np.array(0.5, ml_dtypes.bfloat16),
    Fraction(1, 2),
]


def of_other_libraries():
    """Return the number 0.5 as other libraries that are installed have it."""
    found = []
    for name, make in (("torch", "tensor"), ("jax.numpy", "asarray")):
        if find_spec(name.partition(".")[0]):
            found.append(getattr(import_module(name), make)(0.5))
    return found


def test_numbers_in_arrays_without_dimensions_are_numbers():
    for half in SCALARS + of_other_libraries():
        optimizer, p = fs.SGD(lr=half, overrides={1: {"lr": half}}), [ones(), ones()]
        assert type(optimizer.lr) is float
        optimizer.step(p, [ones(), ones()], grad_scale=half)
        assert p[0][0] == p[1][0] == 0.75
        optimizer.lr = lambda done, half=half: half
        optimizer.step(p, [ones(), ones()])
        assert p[0][0] == 0.25
        assert fs.schedules.constant(half)(0) == 0.5
        plateau = fs.schedules.plateau(1.0)
        plateau.observe(half)
        assert plateau.best == 0.5
    for array in (np.ones(1), np.array(True), np.array(1j), np.array("x"), np.array(None), np.array(3, "m8[s]")):
        with pytest.raises(TypeError, match=r"^lr is an array of dtype .* and shape .*, expected a number"):
            fs.SGD(lr=array)


def test_an_infinite_limit_tells_the_norm_and_clips_nothing():
    for dtype in (np.float32, np.float64):
        for module in (fs, reference):
            p, g = np.zeros(2, dtype), np.array([3, 4], dtype)
            optimizer = module.SGD(lr=1.0, clip_global_norm=np.inf)
            assert optimizer.step(p, g).grad_norm == 5
            assert (p == -g).all()
            optimizer.overrides = {0: {"clip_global_norm": 1.0}}
            optimizer.step(p, g)
            assert abs(p + g * 1.2).max() < 1e-6
    p = np.zeros(2)
    fs.functional.sgd(p, np.ones(2), lr=1.0, clip_global_norm=np.inf)
    assert (p == -1).all()


def test_a_rate_that_is_a_function_of_finished_updates():
    asked = []

    def rate(done):
        asked.append(done)
        return 1.0 if done < 2 else 0.25

    optimizer, p = fs.SGD(lr=rate), ones()
    for _ in range(4):
        optimizer.step(p, ones())
    assert (p == 1 - 1 - 1 - 0.25 - 0.25).all()
    assert sorted(set(asked)) == [0, 1, 2, 3]
    optimizer.lr = 0.5
    optimizer.step(p, ones())
    assert (p == -2).all()


def test_a_changed_rule_keeps_the_states_it_shares():
    p, q = ones(), ones()
    optimizer, specification = fs.Adam(), reference.Adam()
    rng = np.random.default_rng(2)
    for amsgrad in (False, True, True, False, True):
        optimizer.amsgrad = specification.amsgrad = amsgrad
        g = rng.standard_normal(8).astype(np.float32)
        optimizer.step(p, g)
        specification.step(q, g)
    assert verify.difference([p], [q]) == 0
    assert set(optimizer.state[0]) == {"m", "v", "w"}


def test_overrides_are_read_only_and_replaceable():
    options = {"b": {"lr": 0.5}}
    optimizer, p = fs.SGD(lr=1.0, overrides=options), {"a": ones(), "b": ones()}
    options["b"]["lr"] = 0.0  # a later change of the caller's mapping has no effect
    for change in (
        lambda: optimizer.overrides["b"].update(lr=0.0),
        lambda: operator.setitem(optimizer.overrides["b"], "lr", 0.0),
        lambda: operator.setitem(optimizer.overrides, "a", {}),
        lambda: operator.delitem(optimizer.overrides, "b"),
        lambda: operator.ior(optimizer.overrides, {}),
        lambda: optimizer.overrides.pop("b"),
        lambda: optimizer.overrides.popitem(),
        lambda: optimizer.overrides.clear(),
        lambda: optimizer.overrides.setdefault("a", {}),
    ):
        with pytest.raises(TypeError, match=r"^overrides is read-only inside, expected a new mapping"):
            change()
    grads = {"a": ones(), "b": ones()}
    optimizer.step(p, grads)
    assert p["a"][0] == 0
    assert p["b"][0] == 0.5
    optimizer.overrides = {"[ab]": {"lr": 0.0}, "a": {"lr": 2.0}}
    optimizer.step(p, grads)
    assert p["a"][0] == -2
    assert p["b"][0] == 0.5


def test_rates_of_zero_and_betas_of_zero():
    for options in ({"lr": 0.0}, {"beta1": 0.0}, {"beta2": 0.0}, {"beta1": 0.0, "beta2": 0.0, "eps": 0.0}):
        for name in ("Adam", "Adamax", "Nadam"):
            p, q, g = ones(), ones(), np.linspace(-1, 1, 8).astype(np.float32)
            one, other = getattr(fs, name)(**options), getattr(reference, name)(**options)
            for _ in range(3):
                one.step(p, g)
                other.step(q, g)
            assert verify.difference([p], [q]) == 0
            assert (p == 1).all() == (options == {"lr": 0.0})


@pytest.mark.parametrize("cls", fs.optimizers.classes())
def test_every_option_has_an_effect(cls):
    def result(**options):
        p = {"w": np.linspace(0.5, 2, 64).astype(np.float32)}
        optimizer = cls(**options)
        if hasattr(optimizer, "eps"):
            optimizer.eps = 0.01
        for i, scale in enumerate((5, 10, 0.05)):  # a smaller gradient tells amsgrad from adam
            optimizer.lr = options.get("lr", 0.1 + 0.1 * i)  # a rate that changes tells one velocity from the other
            g = scale * np.linspace(-1, 1.5, 64).astype(np.float32)
            told = optimizer.step(p, {"w": g}).update_norm
        return [told, *(array.tobytes() for array in (p["w"], g, *optimizer.ema.values()))]

    plain = result()
    for options in verify.dialects(cls):
        for name, value in options.items():
            context = {"momentum": 0.9} if name == "velocity" and cls is fs.RMSprop else {}
            context |= {"weight_decay": 0.3} if name == "decoupled" else {}
            context |= {"dampening": 0.3} if name == "dampen_first" else {}
            context |= {"l1": 0.3} if "scale" in name or "clip" in name else {}  # scaling alone keeps signs, as lion
            default = inspect.signature(cls).parameters[name].default
            if value != default:
                assert result(**context) != result(**context, **{name: value}), name
    assert result(lr=0.3) != plain


def test_the_gradient_is_only_read():
    rng = np.random.default_rng(4)
    g = verify.values(rng, 100, np.float32)
    before = g.tobytes()
    g.flags.writeable = False
    fs.AdamW(maximize=True).step(np.ones(100, np.float32), g)
    assert g.tobytes() == before


def test_one_optimizer_in_two_threads_is_refused_not_a_crash():
    optimizer, n = fs.Adam(), 3_000_000
    p, g = ones(n), ones(n)
    optimizer.step(p, g)
    errors = []

    def work():
        for _ in range(20):
            try:
                optimizer.step(p, g)
            except RuntimeError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(errors) <= {"this optimizer is already in a step, expected one step at a time"}
    assert optimizer.t[0] == 61 - len(errors)


def test_import_brings_numpy_and_nothing_else():
    code = """
import sys, threading, fusedstep
for name in ("cupy", "torch", "sklearn", "rich", "matplotlib", "ml_dtypes"):
    assert name not in sys.modules, name
assert len(open("/proc/self/status").read().split("Threads:")[1].split()[0]) >= 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mappings_that_the_caller_holds_stay_current():
    optimizer = fs.Adam(ema=0.9)
    state, ema = optimizer.state, optimizer.ema
    optimizer.step({"w": ones()}, {"w": ones()})
    optimizer.step({"v": ones()}, {"v": ones()})
    assert list(state) == list(ema) == ["w", "v"]
    assert np.shares_memory(state["w"]["m"], optimizer.state["w"]["m"])
    fresh = fs.Adam()
    state = fresh.state
    fresh.load_state_dict(optimizer.state_dict())
    assert list(state) == ["w", "v"]


@pytest.mark.parametrize(
    ("cls", "override", "name", "value"),
    [
        (fs.SGD, {"clip_value": 1.0}, "clip_norm", 1.0),
        (fs.Adam, {"amsgrad": False}, "amsgrad", True),
        (fs.RMSprop, {"momentum": 0.0}, "momentum", 0.9),
    ],
)
def test_an_attribute_that_clashes_with_an_override_is_refused_when_it_is_set(cls, override, name, value):
    optimizer = cls(overrides={"w": override})
    before = getattr(optimizer, name)
    with pytest.raises(ValueError, match=r"^overrides\['w'\]"):
        setattr(optimizer, name, value)
    assert getattr(optimizer, name) == before
    pickle.loads(pickle.dumps(optimizer)).step({"w": ones()}, {"w": ones()})


def test_overrides_that_clash_are_refused_again_and_again():
    optimizer, params = fs.SGD(lr=1.0), {"w1": np.zeros(2), "b": np.zeros(2)}
    grads = {key: np.full(2, 10.0) for key in params}
    optimizer.step(params, grads)
    optimizer.overrides = {"w*": {"clip_value": 1.0}, "*1": {"clip_norm": 5.0}}
    for _ in range(3):
        with pytest.raises(ValueError, match="clip_norm stands beside clip_value"):
            optimizer.step(params, grads)
    assert all((p == -10).all() for p in params.values())
    optimizer.overrides = {"w*": {"clip_value": 1.0}}
    optimizer.step(params, grads)
    assert (params["w1"] == -11).all()
    assert (params["b"] == -20).all()


class Meddling(collections.UserDict):
    """A mapping that sets an attribute of an optimizer when it is read."""

    def __init__(self, items, optimizer, name, value):
        super().__init__(items)
        self.set = lambda: setattr(optimizer, name, value)

    def __getitem__(self, key):
        self.set()
        return super().__getitem__(key)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(
    ("cls", "name", "value", "has"),
    [
        (fs.RMSprop, "centered", True, lambda o: "m" in o.state["w"]),
        (fs.RMSprop, "momentum", 0.9, lambda o: "b" in o.state["w"]),
        (fs.Adam, "ema", 0.9, lambda o: "w" in o.ema),
        (fs.Adam, "skip_nonfinite", True, lambda o: o.step({"w": ones()}, {"w": ones() * np.inf}).skipped),
    ],
)
def test_what_is_set_while_a_step_reads_its_arguments_holds_in_the_next(cls, name, value, has, fresh):
    optimizer, params, grads = cls(), {"w": ones()}, {"w": ones()}
    if not fresh:
        optimizer.step(params, grads)
    optimizer.step(Meddling(params, optimizer, name, value), grads)
    optimizer.step(params, grads)
    assert has(optimizer)


def test_a_copy_during_a_step_is_refused():
    refused = []

    def rate(done):
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(RuntimeError, match="already in a step"):
                copied(optimizer)
            refused.append(done)
        return 0.5

    optimizer = fs.SGD(lr=rate)
    optimizer.step(ones(), ones())
    assert refused == [0, 0, 0]


class Foreign:
    """An array of another library."""

    def __init__(self, array):
        self.__dlpack__ = array.__dlpack__
        self.__dlpack_device__ = array.__dlpack_device__


@pytest.mark.parametrize(
    "wrap", [lambda a: a, lambda a: a[:], Foreign, lambda a: a[::-1]], ids=["array", "view", "foreign", "reversed"]
)
def test_states_that_are_swapped_in_place(wrap):
    optimizer, _ = trained(fs.Adam)
    saved = optimizer.state_dict()
    m, v = (optimizer.state["w"][name].copy() for name in "mv")
    saved["state"]["w"] = {"m": wrap(optimizer.state["w"]["v"]), "v": wrap(optimizer.state["w"]["m"])}
    reverse = -1 if isinstance(saved["state"]["w"]["m"], np.ndarray) and saved["state"]["w"]["m"].strides[0] < 0 else 1
    optimizer.load_state_dict(saved)
    assert verify.difference([optimizer.state["w"]["m"], optimizer.state["w"]["v"]], [v[::reverse], m[::reverse]]) == 0
