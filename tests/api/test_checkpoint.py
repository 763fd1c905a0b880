"""What an optimizer knows goes into plain values and files and comes back bit for bit, or is refused as a whole."""

import contextlib
import copy
import json
import math
import os
import pickle
import subprocess
import sys
import threading
from fractions import Fraction
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fusedstep as fs
from fusedstep import schedules
from fusedstep.core import archive
from fusedstep.schedules.description import describe
from fusedstep.tools import verify

ENDINGS = [
    ".npz",
    pytest.param(".safetensors", marks=pytest.mark.skipif(not find_spec("safetensors"), reason="not installed")),
]
SHAPES = {"w": (5,), "layer/b": (2, 3), ("c", 0): (), None: (3, 0)}
DTYPES = {"w": np.float64, "layer/b": np.float32, ("c", 0): np.float32, None: np.float64}
BFLOAT16 = import_module("ml_dtypes").bfloat16 if find_spec("ml_dtypes") else None
needs_bfloat16 = pytest.mark.skipif(not BFLOAT16, reason="not installed")


@pytest.fixture(params=ENDINGS)
def path(request, tmp_path):
    return tmp_path / f"checkpoint{request.param}"


# A run: two dtypes, mini-batches, a parameter that often lacks a gradient, and metrics for each plateau.


def plateaus(schedule):
    if isinstance(schedule, schedules.plateau):
        yield schedule
    for part in getattr(schedule, "schedules", [getattr(schedule, "inner", None)]):
        yield from plateaus(part) if part is not None else ()


def start(dtypes=DTYPES):
    params = {key: np.full(shape, 2, dtypes[key]) for key, shape in SHAPES.items()}
    return params, fs.minibatches(20, 3, seed=1)


def train(opt, params, batches, stop):
    rng = np.random.default_rng(0)
    targets = {key: rng.standard_normal((20, *p.shape)).astype(p.dtype) for key, p in params.items()}
    while batches.done < stop:
        for rows in batches:
            grads = {key: np.asarray((p - targets[key][rows]).sum(0) / p.dtype.type(3)) for key, p in params.items()}
            opt.step(params, {key: g for key, g in grads.items() if key != "layer/b" or batches.done % 3})
            if batches.done % 10 == 0:
                loss = math.fsum(abs(float(g)) for grad in grads.values() for g in grad.flat)
                for value in (opt.lr, *(some.get("lr") for some in opt.overrides.values())):
                    for plateau in plateaus(value):
                        plateau.observe(loss)
            if batches.done == stop:
                break


def rich_adam():
    lr = schedules.product(
        schedules.plateau(1.0, 0.7, patience=2), schedules.warmup(0.0, schedules.cosine(0.1, 900, 0.1), 40)
    )
    overrides = {
        "layer/*": {"weight_decay": schedules.exponential(0.1, 0.5, 100), "ema": None},
        "w": {"lr": schedules.plateau(0.01, 0.5, patience=1, cooldown=1), "beta1": 0.8},
    }
    return fs.Adam(lr, amsgrad=True, ema=schedules.cosine(0.9, 700, 0.5), clip_global_norm=1.5, overrides=overrides)


def rich_nadam():
    beta1 = schedules.sequential([0.5, schedules.polynomial(0.9, 0.7, 500)], [300])
    lr = schedules.plateau(0.05, 0.8, patience=3)
    return fs.Nadam(lr, beta1=beta1, schedule_decay=0.1, ema=0.99, l1=1e-3, overrides={("c", 0): {"lr": 1 / 3}})


def rich_rmsprop():
    return fs.RMSprop(schedules.inverse_time(0.1, 0.1), momentum=0.9, centered=True, skip_nonfinite=True, clip_norm=1)


def half_adam():
    overrides = {
        "w": {"master_weights": "split"},
        "layer/*": {"state_dtype": "same", "rounding": "stochastic"},
        ("c", 0): {"rounding": "stochastic", "seed": 2**53 - 1},
        None: {"master_weights": True, "state_dtype": "same"},
    }
    return fs.Adam(schedules.cosine(0.1, 150), ema=0.9, seed=7, overrides=overrides)


RUNS = {f"{i}-{cls.__name__}": (cls, 60, DTYPES) for i, cls in enumerate(verify.classes())}
RUNS |= {"adam": (rich_adam, 1000, DTYPES), "nadam": (rich_nadam, 1000, DTYPES), "rmsprop": (rich_rmsprop, 200, DTYPES)}
if BFLOAT16:
    RUNS["half"] = (half_adam, 200, {"w": BFLOAT16, "layer/b": np.float16, ("c", 0): BFLOAT16, None: np.float16})


def frozen(value):
    """Return something that is equal where all bits and types are; schedules with their memory."""
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, schedules.Schedule):
        return repr(describe(value, []))
    if hasattr(value, "items"):
        return {key: frozen(part) for key, part in value.items()}
    return value if callable(value) else repr(value)


def snapshot(opt, params=None):
    known = opt.__getstate__()
    known["state"] = {key: states for key, states in known["state"].items() if states}
    return frozen({"opt": known, "params": params or {}})


def resume(folder, ending):
    """What the new process does: the second half of each run, once with an optimizer that knows nothing."""
    empty = {"adam": fs.Adam, "nadam": fs.Nadam, "rmsprop": fs.RMSprop, "half": fs.Adam}
    for name, (make, steps, dtypes) in RUNS.items():
        for fresh in (make, empty.get(name, make)):
            opt, (params, batches) = fresh(), start(dtypes)
            batches.done = fs.load(f"{folder}/{name}{ending}", opt, params)["done"]
            train(opt, params, batches, steps)
            print(json.dumps([name, repr(snapshot(opt, params))]))


def test_a_new_process_continues_with_the_same_bits(path):
    expected = []
    for name, (make, steps, dtypes) in RUNS.items():
        opt, (params, batches) = make(), start(dtypes)
        train(opt, params, batches, steps // 2)
        fs.save(path.with_stem(name), opt, params, extra={"done": batches.done})
        train(opt, params, batches, steps)
        expected += [[name, repr(snapshot(opt, params))]] * 2
    command = [sys.executable, __file__, str(path.parent), path.suffix]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    found = [json.loads(line) for line in found.stdout.splitlines()]
    assert [name for name, _ in found] == [name for name, _ in expected]
    for one, other in zip(found, expected, strict=True):
        assert one == other


@pytest.mark.parametrize("cls", verify.classes())
def test_state_dicts_of_every_dialect_continue_with_the_same_bits(cls):
    for options in verify.dialects(cls):
        one, (params, batches) = cls(**options), start()
        train(one, params, batches, 3)
        others = [(cls(**options), "fusedstep"), (cls(), "torch")]
        for other, names in others:
            other.load_state_dict(copy.deepcopy(one.state_dict(names=names)), names=names)
            assert snapshot(other) == snapshot(one)
        mine, theirs, again = params, copy.deepcopy(params), copy.copy(batches)
        train(one, mine, batches, 6)
        train(others[1][0], theirs, again, 6)
        assert snapshot(one, mine) == snapshot(others[1][0], theirs)


# The state dict.


def trained(make=rich_adam, steps=25):
    opt, (params, batches) = make(), start()
    train(opt, params, batches, steps)
    return opt, params


def assert_plain(value):
    if type(value) is dict:
        for part in value.values():
            assert_plain(part)
    elif type(value) is list:
        for part in value:
            assert_plain(part)
    else:
        assert type(value) in (str, float, int, bool, type(None), np.ndarray)


@pytest.mark.parametrize("make", [rich_adam, rich_nadam, rich_rmsprop, fs.SGD])
def test_a_state_dict_is_plain_and_a_snapshot(make):
    opt, params = trained(make)
    saved, before = opt.state_dict(), frozen(opt.state_dict())
    assert list(saved) == ["optimizer", "hyperparameters", "t", "memory", "state", "ema"]
    assert_plain(saved)
    assert_plain(opt.state_dict(names="torch"))
    train(opt, params, fs.minibatches(20, 3, seed=2), 20)
    assert frozen(saved) == before
    hyperparameters = saved["hyperparameters"] | {"overrides": {}}
    assert json.loads(json.dumps(hyperparameters)) == hyperparameters
    other = make()
    other.load_state_dict(saved)
    other.load_state_dict(saved)
    saved["state"].clear()
    for average in saved["ema"].values():
        average[...] = 77  # copied, so without effect
    assert frozen(other.state_dict()) == before


def test_loading_in_mid_run_fills_the_arrays_that_are_there():
    opt, params = trained()
    saved, before, kept = opt.state_dict(), snapshot(opt, params), copy.deepcopy(params)
    views, plateau = opt.state, opt.overrides["w"]["lr"]
    arrays = {(key, name): array for key, some in opt.state.items() for name, array in some.items()}
    averages, lr = dict(opt.ema), opt.lr
    assert arrays
    train(opt, params, fs.minibatches(20, 3, seed=2), 90)
    after = snapshot(opt, params)
    opt.load_state_dict(saved)
    for key, array in params.items():
        array[...] = kept[key]
    assert snapshot(opt, params) == before
    assert opt.lr is lr
    assert opt.overrides["w"]["lr"] is plateau
    assert all(opt.state[key][name] is array is views[key][name] for (key, name), array in arrays.items())
    assert all(opt.ema[key] is array for key, array in averages.items())
    train(opt, params, fs.minibatches(20, 3, seed=2), 90)
    assert snapshot(opt, params) == after
    with pytest.raises(TypeError):
        opt.overrides["w"]["lr"] = 3


def test_other_hyperparameters_are_overwritten_and_missing_ones_stay():
    opt, _ = trained()
    other = fs.Adam(0.5, beta1=0.1, eps_mode="hat", overrides={"x": {"lr": 3}, "w": {"eps": 1}}, maximize=True)
    other.load_state_dict(opt.state_dict())
    assert snapshot(other) == snapshot(opt)
    third = fs.Adam(0.5, amsgrad=True)
    third.load_state_dict({part: value for part, value in opt.state_dict().items() if part != "hyperparameters"})
    assert third.lr == 0.5
    assert dict(third.t) == dict(opt.t)


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


# What is refused changes nothing.


def within(saved, *places, value=None, drop=False):
    """Return a deep copy with another value at a place."""
    saved = part = copy.deepcopy(saved)
    for place in places[:-1]:
        part = part[place]
    if drop:
        del part[places[-1]]
    else:
        part[places[-1]] = value
    return saved


class Unfit:
    def __float__(self):
        raise OverflowError


M = ("state", "w", "m")
JUNK = [None, 3, "x", b"x", [], [("w", 3)], {1}, True, math.nan]
WRONG = [
    *[((part,), junk) for part in ("t", "memory", "product", "state", "ema", "hyperparameters") for junk in JUNK],
    *[(("state", "w"), junk) for junk in JUNK],
    *[(("hyperparameters", "overrides"), junk) for junk in JUNK],
    *[(("hyperparameters", "overrides", "w"), junk) for junk in JUNK],
    *[(M, junk) for junk in [*JUNK, [1.0] * 5, np.float64(1)]],
    *[(("ema", "w"), junk) for junk in [*JUNK, np.ones(4), np.ones(5, np.float32)]],
    *[(M, np.ones(5, code)) for code in (">f8", "f4", "f2", "i8", "?", "c16", "O", "U3", "V8", "M8[s]", "f8,f8")],
    *[(M, np.ones(shape)) for shape in ((), 4, 6, 0, (5, 1), (1, 5))],
    *[(("optimizer",), value) for value in ("AdamW", "adam", None, 3, ["Adam"])],
    *[(("t", "w"), value) for value in (-1, 1.5, True, 2**62, 1e300, 10**400, math.nan, math.inf, None, [3], 3j)],
    *[(("t", "w"), value) for value in ("3", b"3", np.True_, np.ones(2), Fraction(10**400), Unfit())],
    *[(("memory", "w"), value) for value in (*JUNK, {"product": 0.5}, {"x": 0.5}, {3: 0.5})],
    *[(("hyperparameters", "lr"), value) for value in (-1, math.nan, math.inf, "1", None, True, [1], {}, np.ones(1))],
    *[(("hyperparameters", name), value) for name, value in (("amsgrad", 1), ("eps_mode", "x"), ("beta1", 1.0))],
    *[(("hyperparameters", "lr"), {"schedule": value}) for value in ("constant", "x", "Schedule", [], 3)],
    (("hyperparameters", "beta1"), {"schedule": None}),
    (("hyperparameters", "overrides", "w", "nix"), 3),
    (("hyperparameters", "overrides", "w", "skip_nonfinite"), True),
    (("hyperparameters", "overrides", "w", "amsgrad"), False),
    (("hyperparameters", "clip_norm"), 1.0),
    (("hyperparameters", "nix"), 3),
    (("hyperparameters", 3), 3),
    (("nix",), 3),
    (("t", "nix"), 3),
    (("state", "nix"), {}),
    (("ema", "nix"), np.ones(5)),
    (("memory", "nix"), {}),
    (("state", "w", "nix"), np.ones(5)),
    (("state", "w", "a"), np.ones(5)),  # another class has it
    (("state", "w", 3), np.ones(5)),
]
DROPPED = [("t",), ("t", "w"), ("state",), ("state", "w"), M, ("state", "w", "w"), ("hyperparameters", "lr")]


def not_refused(make, wrongs, **options):
    """Return those that are loaded, change something, or raise anything but an error with a clear message."""
    opt, found = make(), []
    before = snapshot(opt)
    for label, wrong in wrongs:
        try:
            opt.load_state_dict(wrong, **options)
        except (TypeError, ValueError) as error:
            if ", expected " not in str(error) or snapshot(opt) != before:
                found.append((label, repr(error)))
        except Exception as error:
            found.append((label, repr(error)))
        else:
            found.append((label, "loaded"))
        if snapshot(opt) != before:
            opt = make()
            before = snapshot(opt)
    return found


@pytest.mark.parametrize("make", [lambda: trained()[0], rich_adam], ids=["mid-run", "fresh"])
def test_wrong_state_dicts_change_nothing(make):
    saved = trained()[0].state_dict()
    wrongs = [((*places, value), within(saved, *places, value=value)) for places, value in WRONG]
    wrongs += [((*places, "dropped"), within(saved, *places, drop=True)) for places in DROPPED]
    assert not_refused(make, wrongs + [(junk, junk) for junk in (*JUNK, np.ones(3))]) == []


NADAM = {"step": 3, "mu_product": 0.5, "exp_avg": np.ones(3), "exp_avg_sq": np.ones(3)}


def test_wrong_states_of_torch_change_nothing():
    wrongs = [*JUNK, *[{0: junk} for junk in JUNK]]
    wrongs += [{0: NADAM | {"step": step}} for step in (-1, 0.5, "3", None, True, math.inf)]
    wrongs += [{0: NADAM | {"mu_product": x}} for x in (2.0, -1, "0.5", None, [1], 10**400, math.nan, True, np.ones(2))]
    wrongs += [{0: {n: value for n, value in NADAM.items() if n != dropped}} for dropped in NADAM]
    wrongs += [{0: NADAM | {"m": np.zeros(3)}}, {0: NADAM | {"square_avg": np.zeros(3)}}]  # twice, and another's
    wrongs = [(repr(wrong), {"state": wrong}) for wrong in wrongs] + [(junk, junk) for junk in JUNK]
    assert not_refused(fs.Nadam, wrongs, names="torch") == []


def test_missing_memory_is_refused():
    opt, _ = trained(fs.Nadam)
    for places in (["memory", "w", "product"], ["memory", "w"], ["memory"]):
        with pytest.raises(ValueError, match=r"^memory\['w'\] lacks product, expected product$"):
            fs.Nadam().load_state_dict(within(opt.state_dict(), *places, drop=True))


def test_wrong_memory_changes_nothing():
    saved = trained(fs.Nadam)[0].state_dict()
    numbers = (-0.1, 1.1, math.nan, math.inf, "0.5", None, [0.5], True, 2, 10**400, np.ones(2))
    wrongs = [(x, within(saved, "memory", "w", "product", value=x)) for x in numbers]
    wrongs += [("state", within(saved, "state", "w", "product", value=x)) for x in (0.5, np.ones(5))]
    wrongs += [(junk, within(saved, "memory", "w", value=junk)) for junk in [*JUNK, {"product": 0.5, "x": 0.5}]]
    assert not_refused(lambda: trained(fs.Nadam)[0], wrongs) == []
    assert not_refused(fs.Nadam, wrongs) == []


def test_memory_begins_with_the_first_update():
    opt, p = fs.Nadam(), {"a": np.ones(3), "b": np.ones(3)}
    opt.step(p, {"a": np.ones(3)})
    assert opt.state_dict()["memory"].keys() == {"a"}
    other = fs.Nadam()
    other.load_state_dict(opt.state_dict())
    q = copy.deepcopy(p)
    for one, its in ((opt, p), (other, q)):
        for _ in range(2):
            one.step(its, {key: np.ones(3) for key in its})
    assert snapshot(other, q) == snapshot(opt, p)


def test_a_state_that_is_read_only_is_refused():
    opt, params = trained()
    saved = opt.state_dict()
    train(opt, params, fs.minibatches(20, 3, seed=2), 5)
    opt.state["w"]["v"].flags.writeable = False
    before = snapshot(opt)
    with pytest.raises(ValueError, match="read-only"):
        opt.load_state_dict(saved)
    assert snapshot(opt) == before


def test_names_are_two():
    for call in (fs.Adam().state_dict, lambda names: fs.Adam().load_state_dict({}, names=names)):
        with pytest.raises(ValueError, match="names is 'keras', expected one of 'fusedstep', 'torch'"):
            call(names="keras")


# Files.


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
        (others | {"w": [1.0] * 5}, TypeError, r"params\['w'\] is of type list, expected an array"),
        ([[1.0]], TypeError, r"params\[0\] is of type list, expected an array"),
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
    arrays, meta = archive.read(path)
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
    _, meta = archive.read(path)
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
    arrays, meta = archive.read(path)
    part = meta
    while True:
        place = data.draw(st.sampled_from(list(part) if isinstance(part, dict) else range(len(part))))
        if not (isinstance(part[place], (dict, list)) and part[place] and data.draw(st.booleans())):
            break
        part = part[place]
    part[place] = data.draw(JSON)
    before = snapshot(opt, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "read", lambda path: (arrays, meta))
        try:
            fs.load(path, opt, params)
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
    fs.load(path, other)
    assert snapshot(other) == snapshot(opt)
    assert other.lr.schedules[0] is not changed[0]
    assert changed[0].rate == 1.0
    assert list(other.overrides) == ["a", "b"]


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


# Half precision.

KINDS = [(np.float16, False), (np.float16, True)] + [(BFLOAT16, m) for m in (False, True, "split") if BFLOAT16]
WAYS = ["state_dict", "torch", "pickle", "deepcopy", ".npz"] + [".safetensors"] * bool(find_spec("safetensors"))
LARGE = {"w": (300,), 0: (2, 3), ("c", None): ()}


def half_params(dtype=BFLOAT16):
    return {key: np.full(shape, 2, dtype) for key, shape in LARGE.items()} | {"float": np.ones(3, np.float32)}


def half_steps(opt, params, first, last):
    for i in range(first, last):
        rng = np.random.default_rng(i)
        grads = {key: np.asarray(rng.standard_normal(p.shape)) for key, p in params.items()}
        opt.step(params, {key: g.astype(np.float32 if i % 3 else params[key].dtype) for key, g in grads.items()})


def handed_on(way, opt, params, folder):
    """Return the optimizer and its parameters as they come back."""
    theirs, other = copy.deepcopy(params), type(opt)()
    if way == "pickle":
        other = pickle.loads(pickle.dumps(opt))
    elif way == "deepcopy":
        other = copy.deepcopy(opt)
    elif way in ("state_dict", "torch"):
        names = "torch" if way == "torch" else "fusedstep"
        other.load_state_dict(opt.state_dict(names=names), names=names)
    else:
        fs.save(folder / f"x{way}", opt, params)
        for array in theirs.values():
            array[...] = 0
        fs.load(folder / f"x{way}", other, theirs)
    return other, theirs


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("state_dtype", ["float32", "same"])
@pytest.mark.parametrize(("dtype", "master"), KINDS)
@pytest.mark.parametrize(("cls", "ema"), [(fs.Adam, 0.9), (fs.Nadam, None), (fs.SGD, None), (fs.SGD, 0.9)])
def test_half_precision_continues_with_the_same_bits(tmp_path, cls, ema, dtype, master, state_dtype, rounding):
    options = {"state_dtype": state_dtype, "master_weights": master, "rounding": rounding, "seed": 2**53 - 1}
    opt, params = cls(0.01, ema=ema, **options), half_params(dtype)
    half_steps(opt, params, 0, 3)
    others = [handed_on(way, opt, params, tmp_path) for way in WAYS]
    half_steps(opt, params, 3, 6)
    for way, (other, theirs) in zip(WAYS, others, strict=True):
        assert {name: getattr(other, name) for name in options} == options, way
        half_steps(other, theirs, 3, 6)
        assert snapshot(other, theirs) == snapshot(opt, params), way
    assert opt.state["w"].keys() >= {{True: "master", "split": "remainder"}[master]} if master else True


def without(saved, *names):
    """Return a state dict without some states."""
    state = {key: {n: a for n, a in some.items() if n not in names} for key, some in saved["state"].items()}
    return saved | {"state": state}


@needs_bfloat16
@pytest.mark.parametrize(("master", "name"), [(True, "master"), ("split", "remainder")])
def test_a_master_that_is_missing_begins_anew(master, name):
    opt, params = fs.Adam(0.01, master_weights=master), half_params()
    half_steps(opt, params, 0, 3)
    expected, theirs = copy.deepcopy(opt), copy.deepcopy(params)
    for key in LARGE:
        expected.state[key][name][...] = params[key] if master is True else 0
    opt.load_state_dict(without(opt.state_dict(), name))
    assert set(opt.state["w"]) == {"m", "v"}
    half_steps(opt, params, 3, 6)
    half_steps(expected, theirs, 3, 6)
    assert snapshot(opt, params) == snapshot(expected, theirs)


@needs_bfloat16
@pytest.mark.parametrize("master", [True, "split"])
def test_a_master_that_nobody_wants_has_no_effect(master):
    saving, params = fs.Adam(0.01, master_weights=master), half_params()
    half_steps(saving, params, 0, 3)
    saved = {part: value for part, value in saving.state_dict().items() if part != "hyperparameters"}
    results = []
    for state in (saved, without(saved, "master", "remainder")):
        opt, theirs = fs.Adam(0.01), copy.deepcopy(params)
        opt.load_state_dict(state)
        half_steps(opt, theirs, 3, 6)
        results.append(frozen([theirs, without(opt.state_dict(), "master", "remainder")]))
    assert results[0] == results[1]


def half_wrongs(saved, master):
    """Yield state dicts of bfloat16 that no parameter can have, as label and value."""
    other = import_module("ml_dtypes").float8_e5m2
    codes = ["f2", "f4", "f8", "i2", "u2", "u4", "V2", BFLOAT16, other, np.dtype(BFLOAT16).newbyteorder()]
    dtypes = [np.dtype(code) for code in codes]
    for part in (("state", "w", "m"), ("state", "w", master), ("ema", "w")):
        right = saved["ema"]["w"] if part[0] == "ema" else saved["state"]["w"][part[-1]]
        for dtype in dtypes:
            if dtype != right.dtype:
                yield (part, dtype), within(saved, *part, value=np.zeros(300, dtype))
        for shape in ((), 299, (300, 1), 0):
            yield (part, shape), within(saved, *part, value=np.zeros(shape, right.dtype))


def cast(saved, dtype):
    """Return a state dict of one parameter whose states and average have another dtype."""
    known = {n: a.astype(dtype) if n in "mv" else a for n, a in saved["state"]["w"].items()}
    return saved | {"t": {"w": 3}, "state": {"w": known}, "ema": {"w": saved["ema"]["w"].astype(dtype)}}


@needs_bfloat16
@pytest.mark.parametrize("state_dtype", ["float32", "same"])
@pytest.mark.parametrize(("master", "name"), [(True, "master"), ("split", "remainder")])
def test_wrong_states_of_half_precision_change_nothing(master, name, state_dtype):
    def make():
        opt = fs.Adam(ema=0.9, master_weights=master, state_dtype=state_dtype)
        half_steps(opt, half_params(), 0, 2)
        return opt

    saved = make().state_dict()
    wrongs = list(half_wrongs(saved, name))
    assert not_refused(make, wrongs) == []
    assert not_refused(fs.Adam, wrongs) == []
    alone = [(dtype, cast(saved, dtype)) for dtype in ("f8", *(["f2"] if master == "split" else []))]
    assert not_refused(fs.Adam, alone) == []
    for dtype in ("f4", BFLOAT16, *(["f2"] if master is True else [])):
        fs.Adam().load_state_dict(cast(saved, dtype))


def test_a_master_beside_states_of_another_parameter_is_refused():
    state = {"m": np.ones(3, np.float16), "v": np.ones(3, np.float16), "remainder": np.ones(3, np.uint16)}
    message = r"^state\[0\]\['remainder'\] stands beside states of float16, expected float32 or bfloat16$"
    with pytest.raises(TypeError, match=message):
        fs.Adam().load_state_dict({"t": {0: 1}, "state": {0: state}})
    state = {name: np.ones(3) for name in "mv"} | {"master": np.ones(3, np.float32)}
    message = r"^state\[0\]\['master'\] stands beside states of float64, expected float32, float16 or bfloat16$"
    with pytest.raises(TypeError, match=message):
        fs.Adam().load_state_dict({"t": {0: 1}, "state": {0: state}})


@needs_bfloat16
@pytest.mark.parametrize(
    ("dtype", "options", "others"),
    [
        (BFLOAT16, {}, [np.float64]),
        (BFLOAT16, {"state_dtype": "same"}, [np.float16, np.float32, np.float64]),
        (np.float16, {"state_dtype": "same"}, [BFLOAT16, np.float32, np.float64]),
        (BFLOAT16, {"master_weights": True}, [np.float32, np.float64]),
        (BFLOAT16, {"master_weights": "split"}, [np.float16, np.float32, np.float64]),
    ],
)
def test_half_states_that_were_loaded_must_fit_the_parameters(path, dtype, options, others):
    opt, p = fs.Adam(ema=0.9, **options), np.ones(3, dtype)
    opt.step(p, p.copy())
    fs.save(path, opt, p)
    for wrong in (np.ones(3, other) for other in others):
        with pytest.raises(ValueError, match=r"^params\[0\] is .*, expected one that fits"):
            fs.save(path, opt, wrong)
        with pytest.raises(TypeError, match=r"^params\[0\] is .*, expected .* like the file"):
            fs.load(path, opt, wrong)
        other = fs.Adam()
        fs.load(path, other)
        before = snapshot(other, {0: wrong})
        with pytest.raises(TypeError, match="expected"):
            other.step(wrong, wrong.copy())
        assert snapshot(other, {0: wrong}) == before
        other.step(p.copy(), p.copy())


class Foreign:
    """A bfloat16 tensor as PyTorch has it."""

    dtype = "torch.bfloat16"

    def __dlpack__(self, **options):
        raise RuntimeError("Unsupported dtype in DLTensor.")

    def __dlpack_device__(self):
        return (1, 0)


def test_bfloat16_of_another_library_is_refused_with_advice(path):
    opt = fs.Nadam()
    opt.step(np.ones(3), np.ones(3))
    fs.save(path, opt, np.ones(3))
    before, found = snapshot(opt), r"is bfloat16 of .*Foreign, which NumPy cannot view, expected"
    advice = rf"{found} .* tensor\.view\(torch\.uint16\)\.numpy\(\)\.view\(ml_dtypes\.bfloat16\)$"
    for name in ("exp_avg", "mu_product", "step"):
        message = (
            rf"^state\[0\]\['m'\] {advice}" if name == "exp_avg" else rf"{found} a number, as from float\(tensor\)$"
        )
        with pytest.raises(TypeError, match=message):
            opt.load_state_dict({"state": {0: NADAM | {name: Foreign()}}}, names="torch")
    for call in (fs.save, fs.load):
        with pytest.raises(TypeError, match=rf"^params\[0\] {advice}"):
            call(path, opt, Foreign())
    assert snapshot(opt) == before


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
    (one, meta), (two, its) = archive.read(path), archive.read(again)
    assert (frozen(one), repr(meta)) == (frozen(two), repr(its))


def test_parameters_without_updates_have_no_states(path):
    opt, params = fs.Adam(ema=0.9), {"a": np.ones(3), "b": np.ones(3)}
    opt.step(params, {"b": np.ones(3)})
    fs.save(path, opt, params)
    other = fs.Adam()
    fs.load(path, other)
    assert dict(other.t) == {"a": 0, "b": 1}
    assert list(other.state) == list(other.ema) == ["b"]
    for one in (opt, other):
        one.step(copy.deepcopy(params), {"a": np.ones(3)})
    assert snapshot(other) == snapshot(opt)
    never = fs.Adam()
    fs.save(path, never)
    fs.load(path, fs.Adam())
    fs.load(path, other)  # back to the start
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


if __name__ == "__main__":
    resume(*sys.argv[1:])
