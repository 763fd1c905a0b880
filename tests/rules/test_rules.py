"""What the file of every optimizer says, held against the reference and the package."""

import inspect
from decimal import Decimal, localcontext
from types import SimpleNamespace
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import fusedstep
from fusedstep import reference
from tests.rules import FILES, NAMES, entries
from tests.rules.notation import GRADIENTS, f32

REQUIRED = {"DEFAULTS", "RULES", "formula", "CASES", "ORDER", "FAMILY", "TORCH", "TORCH_STATES"}
FOUND = list(FILES)
SHARED = {
    "grad_scale": 1.0,
    "clip_value": None,
    "clip_norm": None,
    "clip_global_norm": None,
    "maximize": False,
    "l1": 0.0,
    "bounds": None,
    "weight_decay": 0.0,
    "decoupled": False,
    "ema": None,
    "zero_grad": False,
    "frozen": False,
    "skip_nonfinite": False,
    "measure": "needed",
    "state_dtype": "float32",
    "master_weights": False,
    "rounding": "nearest",
    "seed": 0,
    "overrides": {},
}
both = pytest.mark.parametrize("classes", [reference, fusedstep], ids=["reference", "fusedstep"])


def shared(name):
    """Return the options that every optimizer has, with their defaults for one of them."""
    return SHARED | getattr(FILES[name], "OPTIONS", {})


def test_every_optimizer_has_a_file():
    missing = [f"tests/rules/{name.lower()}.py" for name in NAMES if name not in FILES]
    assert not missing, f"write {', '.join(missing)}: what it is to say stands in tests/rules/__init__.py"
    lacking = {name: REQUIRED - vars(file).keys() for name, file in FILES.items() if REQUIRED - vars(file).keys()}
    assert not lacking, "these files lack what tests/rules/__init__.py asks for"


# Defaults.


@pytest.mark.parametrize("classes", [fusedstep, reference], ids=["fusedstep", "reference"])
@pytest.mark.parametrize("name", FOUND)
def test_defaults(name, classes):
    cls = getattr(classes, name)
    expected = FILES[name].DEFAULTS
    parameters = inspect.signature(cls).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == list(expected)
    expected = expected | shared(name)
    assert {key: getattr(cls(), key) for key in expected if key != "ema"} | {"ema": None} == expected
    assert {p.name: p.default for p in parameters if p.name == "ema"} == {"ema": None}
    assert {p.name for p in parameters} <= set(expected)


# The formulas of the papers, in decimal arithmetic of 50 digits: each function returns the last update from all
# gradients and rates so far. A function has no states: what a rule remembers is a sum over its past.

OPTIONS = [
    {},
    {"weight_decay": 0.2},
    {"weight_decay": 0.2, "decoupled": True},
    {"maximize": True},
    {"maximize": True, "weight_decay": 0.2},
    {"maximize": True, "weight_decay": 0.2, "decoupled": True},
    {"grad_scale": 0.25, "l1": 0.1},
    {"clip_value": 0.375, "maximize": True, "l1": 0.1, "weight_decay": 0.2},
    {"clip_norm": 0.75, "grad_scale": 2.0},
    {"clip_global_norm": 0.75, "l1": 0.1, "weight_decay": 0.2, "decoupled": True},
]
RATES = [0.3, 0.3, 0.1, 0.25, 0.0, 0.2, 0.15, 0.4]
CASES = [
    pytest.param(name, hyper, options, id=f"{name} {hyper} {options}")
    for name, file in FILES.items()
    for hyper in file.CASES
    for options in OPTIONS
    if "decoupled" not in options or "decoupled" in inspect.signature(getattr(fusedstep, name)).parameters
]


def exact(value):
    return Decimal(value) if isinstance(value, float) else value


def trajectory(name, given, start=0.75):
    """Return the parameter and its average after each update, to 50 digits."""
    hyper = {key: exact(value) for key, value in (FILES[name].DEFAULTS | shared(name) | given).items()}
    del hyper["lr"]
    around = SimpleNamespace(**{option: hyper.pop(option) for option in SHARED})
    p, e, gradients, rates, path = exact(start), None, [], [], []
    for g, lr in zip(map(exact, GRADIENTS), map(exact, RATES), strict=True):
        downhill = around.grad_scale * (-g if around.maximize else g)
        for limit in (around.clip_value, around.clip_norm, around.clip_global_norm):  # alike for one number
            if limit and abs(downhill) > limit:
                downhill *= limit / abs(downhill)
        downhill += around.l1 * (p > 0) - around.l1 * (p < 0)
        gradients.append(downhill if around.decoupled else downhill + around.weight_decay * p)
        rates.append(lr)
        shrunk = p * (1 - lr * around.weight_decay) if around.decoupled else p
        p = shrunk - FILES[name].formula(gradients, rates, **hyper)
        e = p if e is None else exact(0.75) * e + (1 - exact(0.75)) * p
        path.append((float(p), float(e)))
    return path


@pytest.mark.parametrize(("name", "hyper", "options"), CASES)
def test_papers(name, hyper, options):
    with localcontext(prec=50):
        expected = trajectory(name, hyper | options)
    opt = getattr(reference, name)(lr=RATES.__getitem__, ema=0.75, **hyper, **options)
    p, path = np.array([0.75]), []
    for g in GRADIENTS:
        opt.step(p, np.array([g]))
        path.append((p.item(), opt.ema[0].item()))
    np.testing.assert_allclose(path, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", FOUND)
def test_every_choice_is_tried(name):
    hints = get_type_hints(getattr(fusedstep, name))
    choices = {(key, choice) for key, hint in hints.items() if get_origin(hint) is Literal for choice in get_args(hint)}
    choices |= {(key, choice) for key, hint in hints.items() if hint is bool for choice in (False, True)}
    choices = {(key, choice) for key, choice in choices if key not in SHARED and not key.startswith("_")}
    tried = {item for hyper in FILES[name].CASES for item in (FILES[name].DEFAULTS | hyper).items()}
    assert choices <= tried


# Published examples and loops, in float64.


@both
@pytest.mark.parametrize(("name", "hyper", "expected"), entries("PARABOLA"))
def test_parabola(classes, name, hyper, expected):
    opt, x = getattr(classes, name)(**hyper), np.array([10.0])
    for _ in range(10):
        opt.step(x, 2 * x)
    assert x.item() == pytest.approx(expected, rel=1e-12)


@both
@pytest.mark.parametrize(("name", "loop", "hyper"), entries("LOOPS"))
def test_loops_of_other_documents(classes, name, loop, hyper):
    opt, p, path = getattr(classes, name)(**hyper), np.array([1.0]), []
    for g in GRADIENTS:
        opt.step(p, np.array([g]))
        path.append(p.item())
    np.testing.assert_allclose(path, list(loop()), rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in FOUND if "velocity" in FILES[name].DEFAULTS])
def test_velocities_agree_while_the_rate_is_constant_and_only_then(name):
    for lr, agree in ((0.1, True), (RATES.__getitem__, False)):
        p, q = np.ones(1), np.ones(1)
        opt, other = (getattr(reference, name)(lr=lr, velocity=v, momentum=0.9) for v in ("grad", "step"))
        for g in GRADIENTS:
            opt.step(p, np.array([g]))
            other.step(q, np.array([g]))
        assert np.allclose(p, q, rtol=1e-12) == agree


# Which bits are right: scalars are derived in float64 and rounded once, and operations come in one order.


@pytest.mark.parametrize(("name", "hyper", "state", "expected"), entries("ROUNDED"))
def test_scalars_are_formed_in_float64_and_rounded_once(name, hyper, state, expected):
    opt = getattr(reference, name)(**hyper)
    opt.step(np.ones(1, f32), np.ones(1, f32))
    assert opt.state[0][state].tolist() == [f32(expected)]
    assert f32(expected) not in (f32(1) - f32(0.999), f32(1) - f32(0.99), (f32(1) - f32(0.99)) * f32(0.1))


@pytest.mark.parametrize(("name", "hyper", "what", "right", "wrong"), entries("ORDER"))
def test_order_of_operations(name, hyper, what, right, wrong):
    """A few thousand elements after two updates."""
    rng = np.random.default_rng(12)
    p, first, g = rng.normal(size=(3, 3000)).astype(f32)
    opt = getattr(reference, name)(**hyper)
    opt.step(p, first)
    before, s = p.copy(), SimpleNamespace(**{key: x.copy() for key, x in opt.state[0].items()})
    opt.step(p, g)
    n = SimpleNamespace(**opt.state[0])
    found = p if what == "p" else opt.state[0][what]
    assert found.dtype == f32
    assert found.tobytes() == right(before, g, s, n).tobytes()
    assert (found != wrong(before, g, s, n)).any()


def test_order_is_tested_for_every_class():
    missing = set(FOUND) - {name for name, *_ in entries("ORDER")}
    assert not missing, "public optimizers whose ORDER is empty"


@pytest.mark.parametrize(("name", "hyper", "updates"), entries("SCALARS"))
def test_order_of_scalars(name, hyper, updates):
    opt, g, differ = getattr(reference, name)(lr=0.3, eps=0.01, **hyper), 0.7, 0
    for t in range(1, 50):
        p = np.zeros(1)
        opt.step(p, np.array([g]))
        state = opt.state[0]
        right, wrong = updates(0.3, t, state["m"].item(), state["v"].item(), g, opt.memory[0])
        assert p.item() == -right
        differ += right != wrong
    assert differ


# Names in other libraries.


@pytest.mark.parametrize("name", FOUND)
def test_names_of_torch(name):
    cls, names = getattr(fusedstep, name), FILES[name].TORCH_STATES
    # Options with which the optimizer has every state of its class.
    options = {key: value for chosen in FILES[name].RULES.values() for key, value in chosen.items()}
    opt, params = cls(**options), {"w": np.linspace(1, 2, 5), "b": np.ones((2, 3), f32)}
    for update in range(4):
        grads = {key: p / 3 for key, p in params.items()}
        opt.step(params, grads if update % 3 else {"w": grads["w"]})
    saved = opt.state_dict(names="torch")
    assert "t" not in saved
    assert {key: set(some) for key, some in saved["state"].items()} == {
        key: {"step", *names.values()} for key in params
    }
    assert {key: some["step"] for key, some in saved["state"].items()} == dict(opt.t) == {"w": 4, "b": 2}
    assert dict(cls.torch_states) == names
    for key, states in opt.state.items():
        assert {names[our]: state.tobytes() for our, state in states.items()} == {
            its: value.tobytes() for its, value in saved["state"][key].items() if isinstance(value, np.ndarray)
        }
