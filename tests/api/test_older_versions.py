"""What 0.1.0 wrote is read, and the next steps have the bits that 0.1.0 gave; `data/0.1.0/make.py` made the files."""

import importlib.util
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fusedstep as fs

FOLDER = Path(__file__).parent / "data" / "0.1.0"
SPEC = importlib.util.spec_from_file_location("make_0_1_0", FOLDER / "make.py")
make = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make)


def read(name):
    """Return the contents of a pickle: what 0.1.0 knew before the last steps, and what came of these steps."""
    both = pickle.loads((FOLDER / f"{name}.pickle").read_bytes())
    return pickle.loads(both["known"]), both["expected"]


@pytest.mark.parametrize("way", ["optimizer", "state_dict", ".npz", ".safetensors"])
@pytest.mark.parametrize("name", make.MAKE)
def test_a_run_of_0_1_0_goes_on_with_the_same_bits(name, way):
    known, expected = read(name)
    opt, params = make.MAKE[name](fs), known["params"]
    if way == "optimizer":
        opt = known["optimizer"]
    elif way == "state_dict":
        opt.load_state_dict(known["state_dict"])
    else:
        if way == ".safetensors" and not find_spec("safetensors"):
            pytest.skip("needs safetensors")
        params = make.params()
        assert fs.load(FOLDER / f"{name}{way}", opt, params) == {"done": make.BEFORE}
    e = opt.ema[7].copy() if 7 in opt.ema else None
    for step in range(make.BEFORE + 1, make.BEFORE + 1 + make.AFTER):
        make.advance(opt, params, step, 1)
        e = None if e is None else np.float32(0.9) * e + np.float32(1 - 0.9) * params[7]
    if e is not None:  # 0.1.0 did not average a parameter in a step without its gradient
        expected["ema[7]"] = e.dtype.name, e.shape, e.tobytes()
    assert make.outcome(opt, params) == expected
    opt.load_state_dict(opt.state_dict())


def test_a_state_dict_of_0_1_0_is_checked():
    known, _ = read("nadam")
    saved = known["state_dict"]
    for wrong in (
        {key: value for key, value in saved.items() if key != "product"},
        saved | {"product": {key: x for key, x in saved["product"].items() if key != 7}},
        *(saved | {"product": saved["product"] | {7: bad}} for bad in (1.5, -0.5, float("nan"), None, "x", True)),
        *(saved | {"product": bad} for bad in (None, 3, [0.5])),
    ):
        opt = make.nadam(fs)
        with pytest.raises((TypeError, ValueError), match="product"):
            opt.load_state_dict(wrong)
        assert not opt.t
    with pytest.raises(ValueError, match="product"):
        fs.Adam().load_state_dict({"t": {0: 1}, "product": {0: 0.5}, "state": {0: dict.fromkeys("mv", np.ones(3))}})
    fs.Adam().load_state_dict({"t": {0: 1}, "product": {0: 1.0}, "state": {0: dict.fromkeys("mv", np.ones(3))}})
