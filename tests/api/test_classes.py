"""Optimizers as objects of Python: constructors and their messages, repr, copies, subclasses, types."""

import copy
import dataclasses
import json
import pickle
import re
import sys

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.core.attributes import ReadOnly

PARAMS = [np.ones(3), np.ones(2)]
OVERRIDES = {"b": {"lr": 0.25}, "w*": {"weight_decay": 0.0, "clip_value": None}}


# What newcomers write.

ELSEWHERE = [
    (
        lambda: fs.Adam(PARAMS, lr=1e-3),
        "lr is of type list beside another lr, expected hyperparameters only: parameters go",
    ),
    (
        lambda: fs.Adam(PARAMS),
        "lr is of type list, expected hyperparameters only: parameters go to step(params, grads)",
    ),
    (
        lambda: fs.Adam(np.ones(1000)),
        "lr is an array of dtype float64 and shape (1000,), expected hyperparameters only",
    ),
    (lambda: fs.Adam({"w": np.ones(3)}), "lr is of type dict, expected hyperparameters only"),
    (lambda: fs.Adam(p for p in PARAMS), "lr is of type generator, expected hyperparameters only"),
    (lambda: fs.Adam(lr=PARAMS), "lr is of type list, expected a number"),
    (
        lambda: fs.Adam(params=PARAMS),
        "params is no hyperparameter of Adam, expected hyperparameters only: parameters go",
    ),
    (
        lambda: fs.SGD(momentum=0.9),
        "momentum is no hyperparameter of SGD, expected another class: Momentum, or",
    ),
    (
        lambda: fs.Momentum(nesterov=True),
        "nesterov is no hyperparameter of Momentum, expected another class: NAG",
    ),
    (lambda: fs.Adam(betas=(0.9, 0.99)), "betas is no hyperparameter of Adam, expected beta1, beta2"),
    (lambda: fs.Adam(beta_1=0.9), "beta_1 is no hyperparameter of Adam, expected beta1"),
    (lambda: fs.SGD(learning_rate=0.1), "learning_rate is no hyperparameter of SGD, expected lr"),
    (lambda: fs.SGD(step_size=0.1), "step_size is no hyperparameter of SGD, expected lr"),
    (lambda: fs.Adam(epsilon=1e-7), "epsilon is no hyperparameter of Adam, expected eps"),
    (lambda: fs.RMSprop(alpha=0.9), "alpha is no hyperparameter of RMSprop, expected rho"),
    (lambda: fs.SGD(clipnorm=1.0), "clipnorm is no hyperparameter of SGD, expected clip_norm"),
    (lambda: fs.AdamW(decoupled=True), "decoupled is no hyperparameter of AdamW, expected nothing in its place"),
    (
        lambda: fs.SGD(betas=(0.9, 0.99)),
        "betas is no hyperparameter of SGD, expected one of lr, grad_scale, clip_value, ",
    ),
    (
        lambda: fs.SGD(speed=1.0),
        "speed is no hyperparameter of SGD, expected one of lr, grad_scale, clip_value, clip_norm",
    ),
    (lambda: setattr(fs.SGD(), "momentum", 0.9), "momentum is no hyperparameter of SGD, expected another class"),
    (
        lambda: fs.SGD(overrides={0: {"learning_rate": 1}}),
        "overrides[0]['learning_rate'] is no hyperparameter of SGD, ",
    ),
]


@pytest.mark.parametrize(("make", "message"), ELSEWHERE, ids=range(len(ELSEWHERE)))
def test_messages_for_newcomers(make, message):
    with pytest.raises(TypeError) as caught:
        make()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("cls", fs.optimizers.classes())
def test_help_documents_every_argument(cls):
    documented = cls.__doc__.partition("Parameters")[2].partition("Raises")[0]
    heads = re.findall(r"^    (\w[^:\n]*)", documented, re.MULTILINE)
    names = [name.strip() for head in heads for name in head.split(",")]
    assert {f.name for f in dataclasses.fields(cls) if f.init} <= set(names)


# As text.


def test_repr_begins_with_what_the_class_adds():
    assert repr(fs.SGD(0.5, ema=0.9, overrides={"b": {"lr": 1}})) == (
        "SGD(lr=0.5, ema=0.9, overrides={'b': {'lr': 1.0}})"
    )
    assert repr(fs.AdamW(weight_decay=0.0)) == (
        "AdamW(lr=0.001, beta1=0.9, beta2=0.999, eps=1e-08, eps_mode='outside', amsgrad=False, weight_decay=0.0)"
    )
    assert repr(fs.SGD(fs.schedules.step(1, 0.5, 3))) == "SGD(lr=step(lr=1.0, factor=0.5, every=3))"


@pytest.mark.parametrize("cls", fs.optimizers.classes())
def test_repr_is_the_constructor(cls):
    for options in (
        {},
        {"lr": 0.5, "clip_norm": 1.0, "zero_grad": True, "overrides": {0: {"lr": 2.0}, "x": {"l1": 0.5}}},
    ):
        opt = cls(**options)
        again = eval(f"fs.{opt!r}")
        assert again._values() == opt._values()
        assert repr(again) == repr(opt)


# As values: what modules of Python do with them.


def test_overrides_are_a_dictionary():
    opt = fs.Adam(overrides=OVERRIDES)
    assert opt.overrides == OVERRIDES
    assert json.loads(json.dumps(opt.overrides)) == OVERRIDES
    for way in (copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        found = way(opt.overrides)
        assert found == OVERRIDES
        assert not isinstance(found, ReadOnly)  # a copy may be changed, and set again
    assert repr(opt.overrides) == repr(OVERRIDES)
    known = dataclasses.asdict(opt)
    assert known["overrides"] == OVERRIDES
    assert known["lr"] == opt.lr


def test_replace_makes_a_changed_copy_of_a_new_optimizer():
    opt = fs.Adam(lr=0.5, ema=0.9, overrides={"w": {"lr": 0.1}})
    found = dataclasses.replace(opt, beta1=0.5)
    assert (found.lr, found.ema.decay, found.beta1, found.overrides["w"]["lr"]) == (0.5, 0.9, 0.5, 0.1)
    found.ema = found.ema
    assert found.ema.decay == 0.9
    opt.step({"w": np.ones(3)}, {"w": np.ones(3)})
    opt.ema = opt.ema
    ways = [dataclasses.replace, copy.replace] if sys.version_info >= (3, 13) else [dataclasses.replace]
    for way in ways:
        with pytest.raises(ValueError, match=r"^ema is that of an optimizer that has made steps, .* copy\.deepcopy"):
            way(opt, lr=0.25)


# Subclasses.


class Falling(fs.Adam):
    """An optimizer with a constructor of its own."""

    def __init__(self, steps):
        self._steps = steps
        super().__init__(lr=fs.schedules.cosine(0.1, steps), weight_decay=0.5)
        self._log = ["made"]

    def rate(self, key):
        return self.lr(self.t[key]) * self._steps


class Slow(fs.SGD):
    def __init__(self):
        super().__init__(lr=0.125)


@pytest.mark.parametrize("make", [lambda: Falling(10), Slow])
@pytest.mark.parametrize("way", ["copy", "deepcopy", "pickle", "state_dict", ".npz"])
def test_a_subclass_with_its_own_constructor(make, way, tmp_path):
    opt, p, q = make(), np.ones(3), np.ones(3)
    for _ in range(3):
        opt.step(p, np.ones(3))
        q[:] = p
    if way in ("state_dict", ".npz"):
        other = make()
        if way == "state_dict":
            other.load_state_dict(opt.state_dict())
        else:
            fs.save(tmp_path / "x.npz", opt)
            fs.load(tmp_path / "x.npz", other)
    else:
        ways = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}
        other = ways[way](opt)
    opt.step(p, np.ones(3))
    other.step(q, np.ones(3))
    assert (p == q).all()
    assert other.t == opt.t == {0: 4}
    assert {name: vars(other)[name] for name in ("_steps", "_log") if name in vars(opt)} == opt._added()
    if isinstance(opt, Falling):
        assert other.rate(0) == opt.rate(0)
    with pytest.raises(TypeError, match="speed"):
        type(opt)(speed=1)


# Type checkers.

TYPED = """
import fusedstep as fs

opt = fs.Adam(0.1, ema=0.9, overrides={"w": {"lr": 1}})
opt.ema = 0.98
average = opt.ema["w"]
opt.ema = lambda done: 0.9
decay = opt.ema.decay


def halve(opt: fs.optimizers.Optimizer) -> None:
    if isinstance(opt.lr, float):
        opt.lr = opt.lr / 2
"""


@pytest.mark.exhaustive
def test_type_checkers_know_what_is_set_and_what_is_read(tmp_path):
    api = pytest.importorskip("mypy.api")
    path = tmp_path / "typed.py"
    path.write_text(TYPED)
    report, _, code = api.run(["--strict", str(path)])
    assert code == 0, report
