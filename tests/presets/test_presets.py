"""Every preset makes what the page of dialects says, documents itself, and refuses what it does not have."""

import dataclasses
import inspect
import pickle
import re
import subprocess
import sys
from importlib import import_module
from types import FunctionType
from typing import get_type_hints

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import presets
from fusedstep.presets.preset import DecoupledOptions, Options, OptionsBesideDecay
from tests.presets.page import PAGE, make, rows

ROWS = rows()
FUNCTIONS = [
    (library, name)
    for library in presets.__all__
    for name in getattr(presets, library).__all__
    if isinstance(getattr(getattr(presets, library), name), FunctionType)
]


def found(library, name):
    return getattr(getattr(presets, library), name)


def made(function, **options):
    """Return what a preset makes, with 0.5 for those arguments that have no default."""
    parameters = inspect.signature(function).parameters.values()
    wanted = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return function(**dict.fromkeys(wanted, 0.5) | options)


@pytest.mark.parametrize("row", [row for row in ROWS if row.preset], ids=lambda row: row.preset)
def test_a_preset_is_what_is_spelled_out(row):
    assert repr(make(row.preset)) == repr(make(row.spelled_out))


def test_the_page_has_every_preset():
    on_page = set(re.findall(r"`presets\.(\w+)\.(\w+)\(", PAGE.read_text()))
    assert on_page == set(FUNCTIONS)
    assert len(ROWS) > len(FUNCTIONS) > 80


@pytest.mark.parametrize(("library", "name"), FUNCTIONS)
def test_a_preset_says_what_it_is(library, name):
    function = found(library, name)
    signature = inspect.signature(function)
    cls = signature.return_annotation
    assert type(made(function)) is cls
    version = re.search(rf"### `presets\.{library}`: ([^\n,]+)", PAGE.read_text())[1]
    assert f"of {version}" in function.__doc__
    section = re.search(r"(?s)Parameters\n-+\n(.*)\*\*options\n", function.__doc__)[1]
    explained = [each for names in re.findall(r"(?m)^(\w.*) : ", section) for each in names.split(", ")]
    assert explained == [each for each in signature.parameters if each != "options"]
    assert f"An optimizer of the class `fusedstep.{cls.__name__}`" in function.__doc__
    assert function.__module__ == f"fusedstep.presets.{library}"


@pytest.mark.parametrize(("library", "name"), FUNCTIONS)
def test_a_preset_takes_options_and_makes_steps(library, name):
    opt = made(found(library, name), ema=0.5, maximize=True, overrides={"b": {"lr": 0.0}})
    params = {"a": np.ones(3), "b": np.ones(2)}
    opt.step(params, {"a": np.ones(3), "b": np.ones(2)})
    assert (params["a"] > 1).all()
    assert (params["b"] == 1).all()
    assert opt.ema["a"].shape == (3,)
    assert repr(pickle.loads(pickle.dumps(opt))) == repr(opt)


@pytest.mark.parametrize(("library", "name"), FUNCTIONS)
def test_a_preset_refuses_wrong_arguments(library, name):
    function = found(library, name)
    with pytest.raises(TypeError, match=r"^learning_rate is no hyperparameter of \w+, expected lr$"):
        made(function, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"^lr is -1"):
        made(function, lr=-1)
    with pytest.raises(TypeError, match=r"^lr is "):
        made(function, lr="fast")


def test_the_form_of_a_library_is_not_an_argument():
    with pytest.raises(TypeError, match="eps_mode"):
        presets.keras3.Adam(eps_mode="outside")
    with pytest.raises(TypeError, match="velocity"):
        presets.torch.NAG(velocity="step")


@pytest.mark.parametrize(
    ("library", "name", "why"),
    [
        ("chainer", "NesterovAG", "the momentum is squared"),
        ("chainer", "AdamW", "its decay is not multiplied by the learning rate"),
        ("keras3", "Ftrl", "fusedstep has no such rule"),
        ("optax", "amsgrad", "optax takes the maximum of the corrected v"),
        ("optax", "RAdam", "optax adds eps to the root of the corrected v"),
        ("thinc", "RAdam", "thinc counts its updates from 2"),
        ("torch", "Muon", "fusedstep has no such rule"),
    ],
)
def test_what_is_absent_says_why(library, name, why):
    with pytest.raises(AttributeError, match=rf"^fusedstep\.presets\.{library} has no {name}: {why}"):
        found(library, name)


@pytest.mark.parametrize("place", ["keras3.Adan", "lua.Adan", "Adan"])
def test_other_names_are_refused(place):
    with pytest.raises(AttributeError, match=r"^module 'fusedstep.presets(\.\w+)?' has no attribute 'Adan'"):
        eval(f"presets.{place}")


def test_the_types_of_the_options_are_those_of_every_optimizer():
    shared = {f.name for f in dataclasses.fields(fs.optimizers.Optimizer)}
    assert set(get_type_hints(Options)) == shared
    assert set(get_type_hints(DecoupledOptions)) == shared - {"decoupled"}
    assert set(get_type_hints(OptionsBesideDecay)) == shared - {"decoupled", "weight_decay"}
    hints = get_type_hints(fs.optimizers.Optimizer)
    for name, hint in get_type_hints(Options).items():
        assert hint == hints[name] or name == "ema", name


def test_a_library_is_loaded_when_it_is_asked_for():
    code = "import fusedstep, sys; {}; print(*(m for m in sys.modules if 'presets' in m or m == 'torch'))"

    def modules(statement):
        done = subprocess.run(
            [sys.executable, "-c", code.format(statement)], capture_output=True, text=True, check=True, timeout=60
        )
        return set(done.stdout.split())

    assert modules("pass") == set()
    wanted = {f"fusedstep.presets{name}" for name in ("", ".preset", ".torch")}
    assert modules("fusedstep.presets.torch.Adam()") == wanted
    assert set(dir(presets)) >= set(presets.__all__)
    for library in presets.__all__:
        assert getattr(presets, library) is import_module(f"fusedstep.presets.{library}")


# What single presets do.


def test_decay_beside_clipping_is_refused_for_thinc():
    for decay in (0.1, lambda done: 0.1):
        with pytest.raises(ValueError, match=r"^weight_decay is .*, expected 0 or clip_norm=None"):
            presets.thinc.SGD(0.1, weight_decay=decay)
        presets.thinc.SGD(0.1, clip_norm=None, weight_decay=decay)


def test_a_schedule_counts_as_momentum_in_tf_keras():
    assert presets.tf_keras.RMSprop(momentum=lambda done: 0.0).eps_mode == "inside"
    assert presets.tf_keras.RMSprop(momentum=0).eps_mode == "outside"


def test_dampening_follows_the_momentum_in_lua():
    assert presets.lua.Momentum(momentum=0.7).dampening == 0.7
    assert presets.lua.Momentum(momentum=0.7, dampening=0.0).dampening == 0.0


def test_a_schedule_without_corrections():
    schedule = presets.mlx.Uncorrected(lambda done: 0.1 * (done + 1), beta1=0.5, beta2=0.75)
    decay = presets.mlx.Uncorrected(0.3, beta1=0.5, beta2=0.75, inverse=True)
    assert [schedule(0), schedule(1)] == [0.1 * 0.5 / 0.25**0.5, 0.2 * 0.75 / (1 - 0.75**2) ** 0.5]
    assert decay(1) * schedule(1) == pytest.approx(0.3 * 0.2, rel=1e-15)
    with pytest.raises(TypeError, match=r"^beta1 is "):
        presets.mlx.Uncorrected(0.1, beta1=lambda done: 0.9)
