"""The functions of `functional` are those of the rules, and the stub that editors read says what they are."""

import ast
import inspect
import pickle
import re
import traceback
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu, functional
from fusedstep.core import functions
from fusedstep.core.hyperparameters import RANGES, Range
from fusedstep.optimizers import classes
from fusedstep.tools import stub

OUTLINES = functions.outlines(classes())
STUB = Path(functional.__file__).with_suffix(".pyi")


def clock(outline):
    """Return what tells a function how far its arrays are, as before the first update."""
    return dict.fromkeys(outline.rule.memory, 0.0) | ({"t": 1} if outline.rule.counts else {})


def test_every_rule_has_a_function_in_the_order_of_the_rules():
    assert functional.__all__ == [name for name in _cpu.rules if name.isidentifier() and not name.startswith("limit")]
    assert {outline.cls for outline in OUTLINES} >= {cls for cls in classes() if "rule" in vars(cls)}


@pytest.mark.parametrize("outline", OUTLINES, ids=lambda outline: outline.name)
def test_a_function_is_one(outline):
    function = getattr(functional, outline.name)
    assert inspect.isfunction(function)
    assert (function.__module__, function.__qualname__) == ("fusedstep.functional", outline.name)
    assert pickle.loads(pickle.dumps(function)) is function
    parameters = inspect.signature(function).parameters
    arrays = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert arrays == ["p", "g", *_cpu.rules[outline.name][1]]
    assert parameters["lr"].default is inspect.Parameter.empty
    opt = outline.cls(**outline.chosen)
    for name, parameter in parameters.items():
        if hasattr(opt, name) and name not in ("t", "lr"):
            assert parameter.default == getattr(opt, name), name
    with pytest.raises(TypeError) as caught:
        function(*(3 for _ in arrays), lr=1.0, **clock(outline))
    assert "_packed(lr" in traceback.extract_tb(caught.value.__traceback__)[1].line


@pytest.mark.parametrize("outline", OUTLINES, ids=lambda outline: outline.name)
def test_nothing_that_tells_how_far_arrays_are_can_be_forgotten(outline):
    function, told = getattr(functional, outline.name), clock(outline)
    arrays = np.full((2 + len(outline.rule.states), 3), 0.5)
    for name in told:
        with pytest.raises(TypeError, match=f"missing 1 required keyword-only argument: '{name}'"):
            function(*arrays, lr=0.1, **{other: value for other, value in told.items() if other != name})
    assert (arrays == 0.5).all()
    function(*arrays, lr=0.1, **told)
    assert (arrays[0] != 0.5).all()


@pytest.mark.parametrize("name", functional.__all__)
def test_a_docstring_is_complete(name):
    function = getattr(functional, name)
    text = function.__doc__
    titles = re.findall(r"^(.*)\n-+$", text, re.MULTILINE)
    returns = ["Returns"] if inspect.signature(function).return_annotation is not None else []
    assert titles == ["Parameters", *returns, "Raises", "Notes", "References"]
    section = text.partition("Parameters\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^(\S.*?)(?: : .*)?\n    \S", section, re.MULTILINE)
    documented = [word for entry in entries for word in entry.split(", ")]
    parameters = [
        f"**{p.name}" * (p.kind is p.VAR_KEYWORD) or p.name for p in inspect.signature(function).parameters.values()
    ]
    assert documented == parameters
    assert "callable" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert ".. math::" in text
    assert re.search(r"^References\n-+\n\w.*\d{4}", text, re.MULTILINE)


def named(tree):
    return {node.name: ast.unparse(node) for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_stub_says_what_the_package_has():
    written, made = named(ast.parse(STUB.read_text())), named(ast.parse(stub.text()))
    assert written.pop("__getattr__") == made.pop("__getattr__")  # stands for rules that are not written out
    for name, signature in written.items():
        assert signature == made[name], "run python -m fusedstep.tools.stub"
        source = inspect.getsource(getattr(functional, name))
        assert signature.removesuffix("...").strip() == ast.unparse(ast.parse(source).body[0]).partition("\n")[0]


# A rule that is new.


def strange(monkeypatch):
    """Return the functions of a class whose rules the engine does not have."""

    @dataclass(eq=False)
    class Strange(fs.Optimizer):
        """
        Strange.

        Parameters
        ----------
        lr, speed : float or callable
            How fast.
        wild : bool
            Whether to be stranger.
        """

        lr: float = 0.1
        speed: float = 2.0
        drift: float = 0.5
        wild: bool = False
        rule = "strange"
        other_rules: ClassVar = {"stranger": {"wild": True}}
        ranges: ClassVar = RANGES | {"drift": Range(-1, 1), "c": Range(0, 2)}
        derived: ClassVar = {"both": lambda speed, drift: speed * drift}

    around = _cpu.rules["sgd"][2][1:]
    rules = {
        "strange": _cpu.Rule(90, ("x", "y"), ("lr", "both", *around), ("c", "d"), True),
        "stranger": _cpu.Rule(91, (), ("lr", "speed", *around), ("c",), True),
    }
    calls = []

    def update(*given):
        calls.append(given)
        return (1.5, 2.5)

    monkeypatch.setattr(_cpu, "rules", rules)
    monkeypatch.setattr(_cpu, "update", update)
    return {o.name: functions.function(o, "somewhere") for o in functions.outlines([Strange])}, calls


def test_a_new_rule_needs_its_class_only(monkeypatch):
    made, calls = strange(monkeypatch)
    assert str(inspect.signature(made["strange"])).startswith(
        "(p: Any, g: Any, x: Any, y: Any, *, t: int, c: float, d: float, "
        "lr: float, speed: float = 2.0, drift: float = 0.5, **options"
    )
    assert str(inspect.signature(made["stranger"])).startswith(
        "(p: Any, g: Any, *, t: int, c: float, lr: float, speed: float = 2.0, **options"
    )
    assert made["strange"](1, 2, 3, 4, t=5, c=1, d=-1e9, lr=0.5, speed=4, drift=-0.25) == (1.5, 2.5)
    assert made["stranger"](1, 2, t=1, c=0, lr=0.5) == 1.5
    (number, arrays, packed, t, memory), other = calls
    assert (number, arrays, t, memory) == (90, (1, 2, 3, 4), 5, (1, -1e9))
    assert np.frombuffer(packed)[:2].tolist() == [0.5, -1.0]
    assert (other[0], other[1], *other[3:]) == (91, (1, 2), 1, (0,))
    for wrong, message in (
        ({"c": 3}, "^c is 3, expected 0 <= c < 2$"),
        ({"d": np.inf}, "^d is inf, expected -inf < d < inf$"),
        ({"drift": 1}, "^drift is 1, expected -1 <= drift < 1$"),
        ({"speed": np.nan}, "^speed is nan, expected -inf < speed < inf$"),
    ):
        with pytest.raises(ValueError, match=message):
            made["strange"](1, 2, 3, 4, **{"t": 5, "c": 1, "d": 0, "lr": 0.5} | wrong)
    assert "lr, speed : float\n    How fast.\ndrift : float\n    As for the class: drift." in made["strange"].__doc__
    assert made["stranger"].__doc__.startswith("Make one update of `Strange` with ``wild=True``, in place.\n\nStrange.")


@pytest.mark.skipif(not find_spec("torch"), reason="needs PyTorch")
def test_a_number_in_an_array_is_refused_because_it_may_change():
    import torch

    for options in ({"lr": torch.tensor(0.5)}, {"lr": 0.5, "l1": torch.tensor(0.5)}):
        p = np.ones(3)
        with pytest.raises(
            TypeError, match=r"^(lr|l1) is an array of dtype torch.float32 .*, as from float\((lr|l1)\)"
        ):
            functional.sgd(p, np.ones(3), **options)
        assert (p == 1).all()
