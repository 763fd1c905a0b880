"""The examples of README and docstrings run as they stand."""

import doctest
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import fusedstep

README = Path(__file__).parents[2] / "README.md"


def test_the_example_of_the_readme_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example, _ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(example, names)
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.01 * losses[0]
    assert names["opt"].t == names["again"].t == {"w": 640, "b": 640}
    assert names["batches"].done == 640
    assert (names["params"]["w"] == names["opt"].ema["w"]).all()
    assert names["again"].weight_decay == 0.01


def test_the_example_of_the_readme_on_a_gpu(cupy):
    _, example = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    params = {"w": np.ones((3, 4), np.float32), "b": np.ones(4, np.float32)}
    names = {"fs": fusedstep, "params": params, "grads": {key: cupy.asarray(p) for key, p in params.items()}}
    exec(example, names)
    assert names["result"].grad_norm == 4.0
    assert names["opt"].t == {"w": 1, "b": 1}


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md", "benchmarks/scale.md", "CONTRIBUTING.md"])
def test_what_pages_point_to_is_there(page):
    path = README.parent / page
    targets = [t for t in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()) if "://" not in t]
    targets += [f"/{t}" for t in re.findall(r"benchmarks/(?:results|pictures)/[\w.-]+\.\w+", path.read_text())]
    for target in targets:
        assert (README.parent / target[1:] if target.startswith("/") else path.parent / target).is_file(), target


MODULES = [module for name, module in sys.modules.items() if name.startswith("fusedstep") and module.__doc__]
EXAMPLES = [test for module in MODULES for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_docstrings(test, tmp_path):
    test.globs = {"path": tmp_path / "checkpoint.npz"}
    assert doctest.DocTestRunner().run(test).failed == 0


def test_docstrings_are_found():
    assert {test.name for test in EXAMPLES} >= {fusedstep.__name__, "fusedstep.minibatches.minibatches"}
