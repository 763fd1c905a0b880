"""The examples of docstrings run as they stand."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import fusedstep

FOUND = [info.name for info in pkgutil.walk_packages(fusedstep.__path__, "fusedstep.")]
NAMES = [name for name in FOUND if ".tools" not in name and ".torch" not in name]
MODULES = [fusedstep, *(import_module(name) for name in NAMES if not name.endswith(("__main__", "_cpu", "_cuda")))]
PUBLIC = [getattr(fusedstep, name) for name in fusedstep.__all__]  # loads what is loaded when it is asked for
EXAMPLES = [test for module in MODULES for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_docstrings(test, tmp_path):
    test.globs = {"path": tmp_path / "checkpoint.npz"}
    assert doctest.DocTestRunner().run(test).failed == 0


def test_docstrings_are_found():
    assert {test.name for test in EXAMPLES} >= {
        "fusedstep",
        "fusedstep.where",
        "fusedstep.functional",
        "fusedstep.loss_scale.LossScale",
        "fusedstep.minibatches.minibatches",
    }
