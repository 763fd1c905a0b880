"""What an optimizer knows, as plain values: it goes on with the same bits, or nothing is changed."""

import copy
import json
import math
from fractions import Fraction

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.tools import verify
from tests.api.runs import frozen, rich_adam, rich_nadam, rich_rmsprop, snapshot, start, train, trained
from tests.api.wrongs import JUNK, M, Unfit, not_refused, within


@pytest.mark.parametrize("cls", fs.optimizers.classes())
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
        average[...] = 77  # without effect, since averages are copied
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
    for (key, name), array in arrays.items():
        assert opt.state[key][name].ctypes.data == array.ctypes.data == views[key][name].ctypes.data
    assert all(opt.ema[key].ctypes.data == array.ctypes.data for key, array in averages.items())
    train(opt, params, fs.minibatches(20, 3, seed=2), 90)
    assert snapshot(opt, params) == after
    with pytest.raises(TypeError):
        opt.overrides["w"]["lr"] = 3


def test_other_hyperparameters_are_overwritten_and_missing_ones_stay():
    opt, _ = trained()
    other = fs.Adam(0.5, beta1=0.1, eps_mode="hat", overrides={"x": {"lr": 3}, "w": {"eps": 1}}, maximize=True)
    other.load_state_dict(opt.state_dict(), hyperparameters="saved")
    assert snapshot(other) == snapshot(opt)
    third = fs.Adam(0.5, amsgrad=True)
    third.load_state_dict({part: value for part, value in opt.state_dict().items() if part != "hyperparameters"})
    assert third.lr == 0.5
    assert dict(third.t) == dict(opt.t)


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
    (("state", "w", "a"), np.ones(5)),  # a state of another class
    (("state", "w", 3), np.ones(5)),
]
DROPPED = [("t",), ("t", "w"), ("state",), ("state", "w"), M, ("state", "w", "w"), ("hyperparameters", "lr")]


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
    # A state that is given twice, and a state of another class.
    wrongs += [{0: NADAM | {"m": np.zeros(3)}}, {0: NADAM | {"square_avg": np.zeros(3)}}]
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


def test_what_is_set_on_a_view_of_a_state_does_not_change_the_state():
    opt, params = trained()
    other, theirs = copy.deepcopy(opt), copy.deepcopy(params)
    saved = opt.state_dict()
    v = opt.state["w"]["v"]
    v.flags.writeable = False
    v.shape = (v.size, 1)
    for some, arrays in ((opt, params), (other, theirs)):
        train(some, arrays, fs.minibatches(20, 3, seed=2), 5)
    assert snapshot(opt, params) == snapshot(other, theirs)
    opt.load_state_dict(saved)
    assert snapshot(opt) == snapshot(trained()[0])


def test_names_are_two():
    for call in (fs.Adam().state_dict, lambda names: fs.Adam().load_state_dict({}, names=names)):
        with pytest.raises(ValueError, match="names is 'keras', expected one of 'fusedstep', 'torch'"):
            call(names="keras")
