"""Checkpoints in half precision: states, masters, and what must fit the parameters."""

import copy
import pickle
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest

import fusedstep as fs
from tests.api.formats import BFLOAT16, needs_bfloat16
from tests.api.runs import frozen, snapshot
from tests.api.wrongs import not_refused, within

NADAM = {"step": 3, "mu_product": 0.5, "exp_avg": np.ones(3), "exp_avg_sq": np.ones(3)}
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
    """Return the optimizer and its parameters as they come back from a way to hand them on."""
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
