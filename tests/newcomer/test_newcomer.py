"""An optimizer is added by a rule header, a reference class, a dataclass, a test file, and its name in three lists."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TREE = ("csrc", "python", "tests", "benchmarks", "docs", "CMakeLists.txt", "pyproject.toml", "LICENSE")
TREE += ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")

# Tests that look at the whole package.
GENERAL = [
    "tests/api/test_functions.py",
    "tests/api/test_walls.py",
    "tests/docs/test_pages.py",
    "tests/formulas/test_reference.py",
]

# Code that removes the import finder of an editable installation, which would come before PYTHONPATH.
SITE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
"""

pytestmark = pytest.mark.exhaustive


def listed(path, before, name):
    """Write a name into a list in a file, behind the text `before`."""
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, before + name))


def add_drift(tree):
    shutil.copy(HERE / "drift.h", tree / "csrc/rules/drift.h")
    shutil.copy(HERE / "rules.py", tree / "tests/rules/drift.py")
    shutil.copy(HERE / "optimizer.py", tree / "python/fusedstep/optimizers/drift.py")
    optimizers = tree / "python/fusedstep/optimizers/__init__.py"
    listed(optimizers, "    from .adamw import AdamW\n", "    from .drift import Drift\n")
    listed(optimizers, '    "Adamax",\n', '    "Drift",\n')
    reference = tree / "python/fusedstep/reference/optimizers.py"
    reference.write_text(reference.read_text() + (HERE / "reference.py").read_text().partition('"""\n')[2])
    listed(reference, '    "Adamax",\n', '    "Drift",\n')
    listed(tree / "csrc/rules/all.h", '#include "rules/amsgrad.h"\n', '#include "rules/drift.h"\n')
    listed(tree / "csrc/rules/all.h", "X(SGD)", " X(Drift)")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The folder of a source tree with one more optimizer, and the variables of a process that finds its build."""
    tree, target = tmp_path_factory.mktemp("newcomer") / "tree", tmp_path_factory.mktemp("built")
    tree.mkdir()
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in TREE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name, **({"ignore": ignored} if copy is shutil.copytree else {}))
    add_drift(tree)
    isolation = ["--no-build-isolation"] if find_spec("scikit_build_core") else []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *isolation, "--target", target, tree]
    variables = os.environ | {"PYTHONPATH": str(target), "FUSEDSTEP_CUDA": "OFF"}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    (target / "sitecustomize.py").write_text(SITE)
    return tree, variables


@pytest.fixture
def run(environment):
    """Return a function that runs Python with one more optimizer and returns what it printed."""
    tree, variables = environment

    def run(*arguments):
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tree, env=variables, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_all_tests_find_the_newcomer(run):
    """Tests of equal bits, tools and GPUs, whose kernels run as C++ on an emulator, find the new optimizer."""
    run("-m", "pytest", "-p", "no:cacheprovider", "tests/rules", *GENERAL)
    printed = run("-m", "pytest", "-p", "no:cacheprovider", "-rA", "-k", "drift", "tests")
    assert set(re.findall(r"^PASSED (tests/\w+/\w+)\.py::", printed, re.MULTILINE)) >= {
        "tests/api/test_state_dict",
        "tests/api/test_optimizers",
        "tests/bits/test_bits",
        "tests/gpu/test_bits",
        "tests/formulas/test_hyperparameters",
        "tests/rules/drift",
        "tests/rules/test_rules",
        "tests/tools/test_demo",
        "tests/tools/test_plot",
    }


def test_verify_finds_equal_bits(run):
    code = """
import fusedstep
from fusedstep.tools import verify
verify.classes = lambda: [fusedstep.Drift]
raise SystemExit(verify.main([]))
"""
    assert "all bits are equal" in run("-c", code)


def test_bench_measures_it(run, tmp_path):
    assert "drift" in run("-c", "from fusedstep.tools.bench import cases; print(*cases.rules())").split()
    record = tmp_path / "record.json"
    run("-m", "fusedstep", "bench", "--rule", "drift", "--size", "100", "--rounds", "1", "--json", record)
    assert "drift" in json.dumps(json.loads(record.read_text()))
