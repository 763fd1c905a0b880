"""What an optimizer knows goes into files and comes back bit for bit, or is refused as a whole."""

import contextlib
import copy
import json
import math
import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fusedstep as fs
from fusedstep import schedules
from fusedstep.core import archive
from fusedstep.core.arrays import Stored
from tests.api.archives import read
from tests.api.runs import RUNS, frozen, rich_nadam, snapshot, start, train, trained
from tests.api.wrongs import within

ROOT = Path(__file__).parents[2]


def test_a_new_process_continues_with_the_same_bits(path):
    expected = []
    for name, (make, steps, dtypes) in RUNS.items():
        opt, (params, batches) = make(), start(dtypes)
        train(opt, params, batches, steps // 2)
        fs.save(path.with_stem(name), opt, params, extra={"done": batches.done})
        train(opt, params, batches, steps)
        expected += [[name, repr(snapshot(opt, params))]] * 2
    command = [sys.executable, "-m", "tests.api.runs", str(path.parent), path.suffix]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, cwd=ROOT)
    found = [json.loads(line) for line in found.stdout.splitlines()]
    assert [name for name, _ in found] == [name for name, _ in expected]
    for one, other in zip(found, expected, strict=True):
        assert one == other


def test_a_rule_that_was_changed_since_the_last_step_can_be_saved(path):
    for cls, option in (
        (fs.Adam, {"amsgrad": True}),
        (fs.RMSprop, {"momentum": 0.9}),
        (fs.RMSprop, {"centered": True}),
    ):
        opt, params = trained(cls)
        for name, value in option.items():
            setattr(opt, name, value)
        fs.save(path, opt, params)
        other, loaded = cls(), copy.deepcopy(params)
        fs.load(path, other, loaded)
        for one, its in ((opt, params), (other, loaded)):
            train(one, its, fs.minibatches(20, 3, seed=2), 5)
        assert snapshot(other, loaded) == snapshot(opt, params)


def test_wrong_targets_of_a_file_change_nothing(path):
    opt, params = trained()
    fs.save(path, opt, params)
    train(opt, params, fs.minibatches(20, 3, seed=2), 5)
    read_only = np.ones(5)
    read_only.flags.writeable = False
    w, others = params["w"], {key: p for key, p in params.items() if key != "w"}
    for wrong, error, message in (
        (others, ValueError, "params has the keys .*, expected"),
        (params | {"x": w}, ValueError, "params has the keys .*, expected"),
        (list(params.values()), ValueError, "params has the keys .*, expected"),
        (w, ValueError, "params has the keys .*, expected"),
        (others | {"w": np.ones(6)}, ValueError, r"params\['w'\] has shape \(6,\), expected \(5,\)"),
        (others | {"w": np.ones((5, 1))}, ValueError, r"params\['w'\] has shape \(5, 1\), expected \(5,\)"),
        (others | {"w": np.ones(5, np.float32)}, TypeError, r"params\['w'\] is float32, expected float64"),
        (others | {"w": np.ones(5, ">f8")}, TypeError, r"params\['w'\] is >f8, expected float64"),
        (others | {"w": read_only}, ValueError, r"params\['w'\] is read-only, expected a writable"),
        (others | {"w": [1.0] * 5}, TypeError, r"params\['w/0'\] is of type float, expected an array"),
        ([[1.0]], TypeError, r"params\['0/0'\] is of type float, expected an array"),
    ):
        before = snapshot(opt, params)
        with pytest.raises(error, match=message):
            fs.load(path, opt, wrong)
        assert snapshot(opt, params) == before
    fs.save(path, opt)
    with pytest.raises(ValueError, match="holds no parameters, expected"):
        fs.load(path, opt, params)
    for other in (fs.AdamW(), fs.SGD(), fs.Nadam()):
        with pytest.raises(ValueError, match=f"optimizer is 'Adam', expected '{type(other).__name__}'"):
            fs.load(path, other)


def test_damaged_files_change_nothing(path, monkeypatch):
    opt, params = trained(rich_nadam)
    fs.save(path, opt, params)
    data, before = path.read_bytes(), snapshot(opt, params)
    spots = np.linspace(0, len(data) - 1, 25).astype(int).tolist()
    wrongs = [data[:i] for i in spots] + [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in spots]
    for wrong in wrongs:
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="checkpoint"):
            fs.load(path, opt, params)
        assert snapshot(opt, params) == before
    monkeypatch.setattr(archive, "VERSION", 3)
    fs.save(path, opt, params)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format version 3, expected 1 to 2"):
        fs.load(path, opt, params)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        fs.load(path, opt, params)
    assert snapshot(opt, params) == before


def test_sealed_files_that_are_no_checkpoints(path):
    opt, params = trained(rich_nadam)
    fs.save(path, opt, params)
    arrays, meta = read(path)
    before = snapshot(opt, params)
    for wrong in (
        {},
        {"weights": 3},
        meta | {"t": None},
        meta | {"arrays": meta["arrays"][:-1]},
        meta | {"t": [[{}, 3]]},
        meta | {"arrays": [["state", "w", {}]] * len(arrays)},
    ):
        archive.write(path, arrays, wrong)
        with pytest.raises((ValueError, TypeError), match="expected"):
            fs.load(path, opt, params)
        assert snapshot(opt, params) == before


def test_files_that_are_nested_deeply_do_no_harm(path):
    key, schedule = "x", 0.1
    for _ in range(250):
        key, schedule = [[[key]]], {"schedule": "product", "schedules": [schedule]}
    fs.save(path, fs.SGD())
    _, meta = read(path)
    for wrong in (meta | {"t": [[key, 1]]}, within(meta, "hyperparameters", "lr", value=schedule)):
        archive.write(path, {}, wrong)
        with contextlib.suppress(ValueError, TypeError):  # some versions of Python go so deep, and then it is no fault
            fs.load(path, fs.SGD())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "w", "m", "state", "plateau"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["schedule", "lr", "w"]), inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_edited_files_are_refused_or_read(tmp_path_factory, data):
    opt, params = trained(rich_nadam, 4)
    path = tmp_path_factory.getbasetemp() / "edited.npz"
    if not path.exists():
        fs.save(path, opt, params)
    arrays, meta = read(path)
    part = meta
    while True:
        place = data.draw(st.sampled_from(list(part) if isinstance(part, dict) else range(len(part))))
        if not (isinstance(part[place], (dict, list)) and part[place] and data.draw(st.booleans())):
            break
        part = part[place]
    part[place] = data.draw(JSON)
    stored = {name: Stored(array.dtype, array.shape, partial(np.copyto, src=array)) for name, array in arrays.items()}
    before = snapshot(opt, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "opened", lambda path: contextlib.nullcontext((stored, meta)))
        try:
            fs.load(path, opt, params, hyperparameters="file")
        except (ValueError, TypeError):
            assert snapshot(opt, params) == before


# Keys.


@pytest.mark.parametrize(
    "keys",
    [
        ["a/b", "a", "a/b/m", "", "/", "é", "名前/🙂", "\ud800", "nul\0", "#0", "params", "w.npy", "x" * 300],
        [(), ("a", 1), ("a", ("b", None)), (1.5, True), "('a', 1)", "{}"],
        [None, True, 0, 2, -7, 2**70, 0.5, 1e300, math.inf, "x"],
        [np.str_("s"), np.int64(3), np.float64(2.5)],
    ],
    ids=["strings", "tuples", "numbers", "numpy"],
)
def test_keys_come_back(path, keys):
    params = {key: np.full(2, i, np.float64) for i, key in enumerate(keys)}
    opt = fs.Nadam(ema=0.5, overrides={key: {"lr": 0.01 * i} for i, key in enumerate(keys)})
    opt.step(params, copy.deepcopy(params))
    fs.save(path, opt, params)
    other, loaded = fs.Nadam(), {key: np.zeros(2) for key in keys}
    fs.load(path, other, loaded)
    assert snapshot(other, loaded) == snapshot(opt, params)
    assert list(map(type, other.t)) == [
        {np.str_: str, np.int64: int, np.float64: float}.get(type(k), type(k)) for k in keys
    ]


@pytest.mark.parametrize("keys", [("0", 0), ("null", None), ("true", True), ("[]", ()), ('["a"]', ("a",))], ids=repr)
def test_keys_that_look_alike_are_refused(path, keys):
    params = {key: np.ones(2) for key in keys}
    with pytest.raises(ValueError, match="keys"):
        fs.save(path, fs.SGD(), params)
    opt = fs.Adam()
    opt.step(params, copy.deepcopy(params))
    with pytest.raises(ValueError, match="expected keys that differ as text"):
        fs.save(path, opt)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("key", [b"x", frozenset(), 1j, len, ("a", b"b"), math.nan, (math.nan,)], ids=repr)
def test_keys_that_cannot_be_saved_are_refused_before_anything_is_written(path, key):
    path.write_bytes(b"old")
    stepped = fs.SGD()
    stepped.step({key: np.ones(2)}, {key: np.ones(2)})
    for opt, params in ((stepped, None), (fs.SGD(), {key: np.ones(2)}), (fs.SGD(overrides={key: {"lr": 1}}), None)):
        with pytest.raises((TypeError, ValueError), match="cannot be saved, expected"):
            fs.save(path, opt, params)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


# Schedules.


def half(done):
    return 0.5


def test_functions_of_the_caller_are_only_noted(path):
    opt = fs.SGD(half, overrides={"b": {"lr": half}})
    assert opt.state_dict()["hyperparameters"]["lr"] == {"schedule": None}
    fs.save(path, opt)
    for mine in (lambda done: 0.25, schedules.constant(3)):
        other = fs.SGD(mine, overrides={"b": {"lr": mine}})
        fs.load(path, other)
        assert other.lr is other.overrides["b"]["lr"] is mine
    for other in (fs.SGD(0.1, overrides=opt.overrides), fs.SGD(half), fs.SGD(half, overrides={"b": {"lr": 1}})):
        before = snapshot(other)
        with pytest.raises(
            ValueError, match="was a function that cannot be saved, expected the same function to be there"
        ):
            fs.load(path, other)
        assert snapshot(other) == before
    for partly in (schedules.product(0.1, half), schedules.warmup(0, half, 3)):
        fs.save(path, fs.SGD(partly))
        fs.load(path, other := fs.SGD(copy.deepcopy(partly)))
        assert other.lr == partly
        with pytest.raises(ValueError, match="was a function that cannot be saved"):
            fs.load(path, fs.SGD())


def test_equal_schedules_stay_and_others_are_replaced(path):
    def make(steps=10):
        return [schedules.plateau(1.0, 0.5, patience=0), schedules.cosine(0.1, steps)]

    shared, own = make(), schedules.plateau(0.5, 0.5, patience=0)
    opt = fs.SGD(schedules.product(*shared), overrides={"a": {"lr": shared[0]}, "b": {"lr": own}})
    for x in (1, 2, 3):
        shared[0].observe(x)
    own.observe(7)
    fs.save(path, opt)
    mine, mine_own = make(), schedules.plateau(0.5, 0.5, patience=0)
    other = fs.SGD(schedules.product(*mine), overrides={"a": {"lr": mine[0]}, "b": {"lr": mine_own}})
    lr = other.lr
    fs.load(path, other)
    assert other.lr is lr
    assert other.overrides["a"]["lr"] is mine[0]
    assert other.overrides["b"]["lr"] is mine_own
    assert snapshot(other) == snapshot(opt)
    p = {"a": np.ones(1), "b": np.ones(1), "c": np.ones(1)}
    other.step(p, {key: np.ones(1) for key in p})
    assert [float(p[key][0]) for key in "abc"] == [0.75, 0.5, 1 - 0.25 * 0.1]
    mine[0].observe(9)
    mine_own.observe(9)
    other.step(p, {key: np.ones(1) for key in p})
    assert [float(p[key][0]) for key in "ab"] == [0.625, 0.25]
    changed = make(steps=11)
    other = fs.SGD(schedules.product(*changed), overrides={"b": {"lr": 1}})
    fs.load(path, other, hyperparameters="file")
    assert snapshot(other) == snapshot(opt)
    assert other.lr.schedules[0] is other.overrides["a"]["lr"] is changed[0]  # in one place, and so in both
    assert changed[0].rate == 0.25
    assert list(other.overrides) == ["a", "b"]


def test_a_plateau_with_other_arguments_stays_the_one_in_use_and_this_is_told(path):
    plateau = schedules.plateau(1.0, 0.5, patience=3)
    opt = fs.SGD(plateau)
    for x in (1, 2, 2, 2, 2):
        plateau.observe(x)
    fs.save(path, opt)
    mine = schedules.plateau(1.0, 0.5, patience=0)
    for load in (lambda opt: fs.load(path, opt), lambda other: other.load_state_dict(opt.state_dict())):
        other = fs.SGD(mine)
        with pytest.warns(UserWarning, match=r"^plateau\(.*patience=0.*\) stays, with the memory of the plateau\(.*=3"):
            load(other)
        assert other.lr is mine
        assert (mine.rate, mine.best, mine.patience) == (0.5, 1, 0)
    mine.observe(9)
    p = np.ones(1)
    other.step(p, np.ones(1))
    assert p[0] == 0.75


def test_one_plateau_in_two_places_stays_one(path):
    plateau = schedules.plateau(1.0, 0.5, patience=0)
    opt = fs.SGD(plateau, overrides={"a": {"lr": plateau}})
    fs.save(path, opt)
    loaded = fs.SGD()
    fs.load(path, loaded)
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)), loaded):
        for x in (1, 2):
            other.lr.observe(x)
        assert other.lr(0) == other.overrides["a"]["lr"](0) == 0.5


# What else the loop needs.


def test_numbers_of_numpy_in_extra(path):
    extra = {"loss": np.float32(0.1), "n": [np.int64(3), np.uint8(4)], "done": np.bool_(True), "name": np.str_("x")}
    fs.save(path, fs.SGD(), extra=extra)
    found = fs.load(path, fs.SGD())
    assert found == {"loss": float(np.float32(0.1)), "n": [3, 4], "done": True, "name": "x"}


@pytest.mark.parametrize(
    "extra", [{1, 2}, [np.ones(2)], 3j, np.complex64(3), np.longdouble(3), {(1,): 2}, {np.int64(1): 2}, b"x", len]
)
def test_an_extra_that_cannot_be_written(path, extra):
    with pytest.raises(TypeError, match=r"^extra .*, expected what JSON can hold: numbers, strings"):
        fs.save(path, fs.SGD(), extra=extra)
    (circle := []).append(circle)
    with pytest.raises(TypeError, match=r"^extra cannot be written: Circular reference detected, expected"):
        fs.save(path, fs.SGD(), extra=circle)
    assert os.listdir(path.parent) == []


# Containers, and optimizers without states.


class Tensor:
    """An array of another library on the CPU."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


CONTAINERS = {
    "array": lambda: np.arange(3.0),
    "0-d": lambda: np.array(2.0),
    "empty": lambda: np.zeros((0, 2), np.float32),
    "list": lambda: [np.ones(2), np.ones((2, 2), np.float32)],
    "tuple": lambda: (np.ones(2), np.ones(0), np.array(1.0)),
    "dict": lambda: {"b": np.ones(2), "a": np.ones(3)},
    "tensor": lambda: Tensor(np.arange(4.0)),
    "tensors": lambda: {"x": Tensor(np.ones(2)), "y": np.ones(1)},
    "nothing": list,
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(("cls", "options"), [(fs.SGD, {}), (fs.SGD, {"ema": 0.5}), (fs.Nadam, {"ema": 0.9})])
def test_every_container(path, cls, options, steps, container):
    opt, params, loaded = cls(**options), CONTAINERS[container](), CONTAINERS[container]()
    for _ in range(steps):
        opt.step(params, CONTAINERS[container]())
    fs.save(path, opt, params, extra=[container, 1.5, None])
    items = loaded if isinstance(loaded, (list, tuple)) else loaded.values() if isinstance(loaded, dict) else [loaded]
    for item in items:
        getattr(item, "array", item)[...] = 7
    other = cls(**options)
    assert fs.load(path, other, loaded) == [container, 1.5, None]
    again = path.with_stem("again")
    fs.save(again, other, loaded, extra=[container, 1.5, None])
    assert snapshot(other) == snapshot(opt)
    (one, meta), (two, its) = read(path), read(again)
    assert (frozen(one), repr(meta)) == (frozen(two), repr(its))


def test_parameters_without_updates_have_no_states(path):
    opt, params = fs.Adam(ema=0.9), {"a": np.ones(3), "b": np.ones(3)}
    opt.step(params, {"b": np.ones(3)})
    fs.save(path, opt, params)
    other = fs.Adam()
    fs.load(path, other)
    assert dict(other.t) == {"a": 0, "b": 1}
    assert list(other.state) == list(opt.state) == ["b"]
    assert list(other.ema) == ["a", "b"]
    for one in (opt, other):
        one.step(copy.deepcopy(params), {"a": np.ones(3)})
    assert snapshot(other) == snapshot(opt)
    never = fs.Adam()
    fs.save(path, never)
    fs.load(path, fs.Adam())
    fs.load(path, other, hyperparameters="file")  # a file from before the first step takes all progress away
    assert not other.t
    assert not other.state
    assert not other.ema


def test_states_that_were_loaded_must_fit_the_parameters(path):
    for cls, wrong, error in ((fs.Adam, np.ones(99_999), ValueError), (fs.Adam, np.ones(3, np.float32), TypeError)):
        opt = cls(ema=0.9)
        opt.step(np.ones(3), np.ones(3))
        with pytest.raises(ValueError, match="params"):
            fs.save(path, opt, np.ones(99))
        fs.save(path, opt)
        other = cls()
        fs.load(path, other)
        before = snapshot(other)
        with pytest.raises(error, match="expected"):
            other.step(wrong, wrong.copy())
        assert snapshot(other) == before


# Locks.


def test_during_a_step_everything_is_refused_and_afterwards_not(path):
    inside, done = threading.Event(), threading.Event()

    def lr(_):
        inside.set()
        assert done.wait(20)
        return 0.5

    opt, p = fs.SGD(), np.ones(3)
    fs.save(path, opt, p)
    saved, data = opt.state_dict(), path.read_bytes()
    opt.lr = lr
    thread = threading.Thread(target=opt.step, args=(p, np.ones(3)))
    thread.start()
    try:
        assert inside.wait(20)
        for call in (
            lambda: fs.save(path, opt, p),
            lambda: fs.load(path, opt, p),
            opt.state_dict,
            lambda: opt.load_state_dict(saved),
        ):
            with pytest.raises(RuntimeError, match="already in a step"):
                call()
    finally:
        done.set()
        thread.join()
    assert path.read_bytes() == data
    assert p.tolist() == [0.5] * 3
    for wrong in (
        lambda: fs.save(path, opt, [3]),
        lambda: fs.save(path, opt, extra={1, 2}),
        lambda: fs.save(path.parent / "no" / path.name, opt),
        lambda: opt.load_state_dict({"t": 3}),
        lambda: fs.load(path, opt, np.ones(4)),
    ):
        with pytest.raises((TypeError, ValueError, OSError)):
            wrong()
        opt.state_dict()  # the lock is free
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_numbers(path, dtype):
    opt, params = fs.Adam(ema=0.5), {"w": np.array([1 + 2j, 3], dtype), "b": np.array(1j, dtype)}
    opt.step(params, {key: p * 2 for key, p in params.items()})
    fs.save(path, opt, params)
    again, found = fs.Adam(), {key: np.zeros_like(p) for key, p in params.items()}
    fs.load(path, again, found, hyperparameters="file")
    for other in (again, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert snapshot(other, found) == snapshot(opt, params)
