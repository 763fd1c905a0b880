"""Hyperparameters that are schedules, that overrides give to single tensors, or that are refused."""

import inspect

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import functional, reference
from fusedstep.core import overrides
from fusedstep.core.hyperparameters import declared, shown
from tests.formulas.arrays import CLIPS, F64, INF, NAN, bits, copies, normal, same
from tests.rules import FILES

CLASSES = fs.optimizers.classes()


# Overrides: one step over all tensors is a step over each alone.

OWN = [
    {"lr": 0.0},
    {"weight_decay": 0.0},
    {"lr": 0.5, "l1": 0.3},
    {"clip_value": 0.5},
    {"clip_value": None, "clip_norm": 0.25},
    {"decoupled": True},
    {"maximize": True, "grad_scale": -0.3},
    {"ema": 0.5},
    {"ema": None, "zero_grad": False},
    {"lr": lambda done: 0.1 / (1 + done), "ema": lambda done: done / (done + 1)},
]


@pytest.mark.parametrize("cls", [c for c in CLASSES if not c.always_decoupled])
def test_overrides_are_optimizers_of_their_own(cls, isa):
    base = {"weight_decay": 0.2, "clip_value": 1.5, "ema": 0.9, "zero_grad": True}
    params, twins = ([normal(40, seed=i) for i in range(len(OWN))] for _ in range(2))
    together = cls(**base, overrides=dict(enumerate(OWN)))
    alone = [cls(**base | own) for own in OWN]
    for step in range(3):
        grads = [normal(40, seed=100 * step + i) for i in range(len(OWN))]
        others = copies(grads)
        together.step(params, grads)
        for optimizer, p, g in zip(alone, twins, others, strict=True):
            optimizer.step(p, g)
        assert same(params + grads, twins + others)
    for i, optimizer in enumerate(alone):
        assert bits([together.state[i], together.ema.get(i)]) == bits([optimizer.state[0], optimizer.ema.get(0)])
    assert same(params[:1], [normal(40, seed=0)])


# Every hyperparameter that is a number may be a schedule.

VALUES = {
    **dict.fromkeys(("lr", "l1", "weight_decay", "grad_scale", *CLIPS), (0.3, 0.1, 0.2, 0.7)),
    "initial_accumulator": (0.5, 0.25, 0.25, 0.25),
}
NUMBERS = [
    (cls, name) for cls in CLASSES for name in inspect.signature(cls).parameters if declared(cls).get(name) is float
]


def values_of(cls, name):
    """Return what a hyperparameter is in four updates in a row."""
    own = getattr(FILES.get(cls.__name__), "VALUES", {})
    return (own | VALUES).get(name, (0.5, 0.25, 0.75, 0.125))


NUMBER = pytest.mark.parametrize(("cls", "name"), NUMBERS, ids=[f"{cls.__name__}-{name}" for cls, name in NUMBERS])


@NUMBER
def test_any_number_may_be_a_schedule(cls, name):
    values = values_of(cls, name)
    options = {"weight_decay": 0.1} if name != "weight_decay" else {}
    specification = getattr(reference, cls.__name__)
    optimizers = [cls(**options, **{name: f}) for f in (values.__getitem__, values[0])]
    optimizers.append(specification(**options, **{name: values.__getitem__}))
    params = [[normal(20), normal(7, F64)] for _ in optimizers]
    for i in range(len(values)):
        if name != "initial_accumulator":
            setattr(optimizers[1], name, values[i])
        for optimizer, p in zip(optimizers, params, strict=True):
            optimizer.step(p, [normal(20, seed=i), normal(7, F64, i)])
    for optimizer, p in zip(optimizers[1:], params[1:], strict=True):
        assert same(p, params[0])
        assert same([optimizer.ema[i] for i in sorted(optimizer.ema)], optimizers[0].ema.values())
        for i, states in optimizers[0].state.items():
            assert same([optimizer.state[i][n] for n in states], states.values())


@NUMBER
@pytest.mark.parametrize("bad", [NAN, "x", -INF, [1.0], None], ids=repr)
def test_a_schedule_with_a_bad_value_is_refused_by_name(cls, name, bad):
    if bad is None and name in (*CLIPS, "ema"):
        return  # tested by test_a_schedule_switches_nothing_off
    at = 0 if name == "initial_accumulator" else 1
    optimizer = cls(**{name: lambda done: bad if done == at else values_of(cls, name)[0]})
    p, g = normal(9), normal(9, seed=1)
    for _ in range(at):
        optimizer.step(p, g)
    before = bits([p, g, optimizer.state, optimizer.ema, optimizer.t])
    error = ValueError if isinstance(bad, float) else TypeError
    with pytest.raises(error, match=rf"^{name}\({at}\) is ") as caught:
        optimizer.step(p, g)
    assert f" is {shown(bad)}, expected" in str(caught.value)
    assert bits([p, g, optimizer.state, optimizer.ema, optimizer.t]) == before


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("name", [*CLIPS, "ema"])
def test_a_schedule_switches_nothing_off(name, at):
    optimizer, p, g = fs.SGD(**{name: lambda done: None if done == at else 0.5}), normal(9), normal(9, seed=1)
    for _ in range(at):
        optimizer.step(p, g)
    before = bits([p, g, optimizer.ema, optimizer.t])
    with pytest.raises(TypeError, match=rf"^{name}\({at}\) is None"):
        optimizer.step(p, g)
    assert bits([p, g, optimizer.ema, optimizer.t]) == before


def test_hyperparameters_that_are_set_during_a_step_hold_in_the_next(monkeypatch):
    """Another thread, or a schedule, may set a hyperparameter while a step is being made."""
    p, g = {"w": np.zeros(3)}, {"w": np.ones(3)}
    optimizer, layer = fs.SGD(lr=1.0), overrides.Layer
    with monkeypatch.context() as patch:
        patch.setattr(overrides, "Layer", lambda *args: setattr(optimizer, "lr", 8.0) or layer(*args))
        optimizer.step(p, g)
    p["w"][:] = 0
    optimizer.step(p, g)
    assert optimizer.lr == 8
    assert (p["w"] == -8).all()


def test_overrides_that_are_set_during_a_step_hold_in_the_next():
    p, g = {"w": np.zeros(3)}, {"w": np.ones(3)}
    optimizer = fs.SGD(overrides={"w": {"l1": 0.0}})
    optimizer.lr = lambda done: setattr(optimizer, "overrides", {"*": {"maximize": True}}) or 1.0
    optimizer.step(p, g)
    p["w"][:], optimizer.lr = 0, 8.0
    optimizer.step(p, g)
    assert (p["w"] == 8).all()


def test_only_numbers_may_be_schedules():
    for cls in CLASSES:
        for name in inspect.signature(cls).parameters:
            if declared(cls).get(name, float) is not float:
                with pytest.raises(TypeError, match=rf"^{name} is <function .*expected "):
                    cls(**{name: lambda done: True})


# Refusals.

REFUSED = [
    *((clip, bad, ValueError) for clip in CLIPS for bad in (0, -1.0, -INF, NAN, -0.0, 10**400)),
    *((clip, INF, ValueError) for clip in CLIPS if clip != "clip_global_norm"),
    *((clip, bad, TypeError) for clip in CLIPS for bad in ("1", True, 1j)),
    *(("ema", bad, ValueError) for bad in (1.5, -0.1, NAN, INF)),
    *(("ema", bad, TypeError) for bad in ("x", True)),
    *(("l1", bad, ValueError) for bad in (-1e-9, INF, NAN)),
    *(("l1", bad, TypeError) for bad in (None, False)),
    *(("grad_scale", bad, ValueError) for bad in (INF, -INF, NAN, 10**400)),
    *(("grad_scale", bad, TypeError) for bad in ("x", True, None)),
    *((name, bad, TypeError) for name in ("zero_grad", "skip_nonfinite", "maximize") for bad in (1, None, "yes")),
]


@pytest.mark.parametrize(("name", "bad", "error"), REFUSED)
def test_refused_by_name(name, bad, error):
    with pytest.raises(error, match=rf"^{name} is "):
        fs.Adam(**{name: bad})
    optimizer, p, g = fs.Adam(ema=0.5), normal(5), normal(5)
    optimizer.step(p, g)
    before = bits([p, g, optimizer.state, optimizer.ema, optimizer.__getstate__()["hyperparameters"]])
    with pytest.raises(error, match=rf"^{name} is "):
        setattr(optimizer, name, bad)
    if name != "skip_nonfinite":
        with pytest.raises(error, match=rf"^overrides\[0\]\['{name}'\] is "):
            optimizer.overrides = {0: {name: bad}}
    if name == "grad_scale":
        with pytest.raises(error, match=r"^grad_scale is "):
            optimizer.step(p, g, grad_scale=bad)
    if name not in ("ema", "skip_nonfinite"):
        with pytest.raises(error, match=rf"^{name} is "):
            functional.sgd(p, g, lr=1.0, **{name: bad})
    assert bits([p, g, optimizer.state, optimizer.ema, optimizer.__getstate__()["hyperparameters"]]) == before
