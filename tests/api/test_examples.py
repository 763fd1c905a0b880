"""The examples of docstrings run as they stand."""

import doctest
import sys

import pytest

import fusedstep

MODULES = [module for name, module in sys.modules.items() if name.startswith("fusedstep") and module.__doc__]
EXAMPLES = [test for module in MODULES for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_docstrings(test, tmp_path):
    test.globs = {"path": tmp_path / "checkpoint.npz"}
    assert doctest.DocTestRunner().run(test).failed == 0


def test_docstrings_are_found():
    assert {test.name for test in EXAMPLES} >= {fusedstep.__name__, "fusedstep.minibatches.minibatches"}
