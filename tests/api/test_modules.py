"""The compiled modules: what their stubs list, what their arguments are called, and what they tell of their build."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fusedstep as fs
from fusedstep import _cpu

ROOT = Path(__file__).parents[2]


def test_the_stub_lists_what_the_module_has():
    tree = ast.parse((ROOT / "python" / "fusedstep" / "_cpu.pyi").read_text())
    listed = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            listed[node.name] = node
        elif isinstance(node, ast.AnnAssign):
            listed[node.target.id] = node
    assert listed.keys() == {name for name in vars(_cpu) if not name.startswith("__")}
    for name, node in listed.items():
        if isinstance(node, ast.ClassDef):
            methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            methods |= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
            present = {m for m in vars(getattr(_cpu, name)) if not m.startswith("_")}
            assert methods - {"__init__"} == present, name


@pytest.mark.skipif(not fs.info()["cuda"]["built"], reason="needs the engine for GPUs")
def test_the_stub_of_the_gpu_module_lists_what_it_has():
    from fusedstep import _cuda

    stub = (ROOT / "python" / "fusedstep" / "_cuda.pyi").read_text()
    listed = set(re.findall(r"^(?:def |class )?(\w+)[:(]", stub, re.MULTILINE))
    assert listed == {name for name in vars(_cuda) if not name.startswith("__")}


def functions():
    """Return all functions and methods of the module by name."""
    found = {name: value for name, value in vars(_cpu).items() if callable(value) and not isinstance(value, type)}
    for name, cls in vars(_cpu).items():
        if isinstance(cls, type):
            methods = {method: value for method, value in vars(cls).items() if type(value).__name__ == "instancemethod"}
            found |= {f"{name}.{method}": value for method, value in methods.items()}
    return found


def test_every_argument_has_a_name():
    unnamed = {name for name, function in functions().items() if re.search(r"\barg\d", function.__doc__ or "")}
    assert not unnamed


def test_info_is_complete():
    """Info is asked for in a new process: another test may have put the emulated engine for GPUs into this one."""
    code = "import json, fusedstep; print(json.dumps(fusedstep.info()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    info = json.loads(done.stdout)
    expected = "version isa isa_from isas isas_built threads threads_from rules rules_from cuda compiler flags commit"
    assert list(info) == expected.split()
    assert info["isa"] in info["isas"]
    assert set(info["isas"]) <= set(info["isas_built"])
    assert info["version"] == fs.__version__
    assert info["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    cuda = info["cuda"]
    assert list(cuda)[:3] == ["built", "devices", "why_none"]
    assert (cuda["why_none"] is None) == bool(cuda["devices"])
    assert not cuda["built"] or "-fmad=false -ftz=true -prec-div=true -prec-sqrt=true" in cuda["flags"]


# Import.


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_what_few_programs_need_is_loaded_when_it_is_needed():
    code = "import numpy, sys; before = set(sys.modules); import fusedstep; print(*sorted(set(sys.modules) - before))"
    loaded = set(run(code).split())
    assert {name for name in loaded if name.partition(".")[0] == "fusedstep"} == {
        "fusedstep",
        "fusedstep._cpu",
        "fusedstep.core",
        "fusedstep.core.arrays",
        "fusedstep.core.hyperparameters",
        "fusedstep.core.interpreter",
        "fusedstep.core.settings",
        "fusedstep.minibatches",
        "fusedstep.optimizers",
    }
    assert not loaded & {"cupy", "decimal", "hashlib", "json", "tempfile", "threading", "torch", "zipfile"}
    step = "import numpy as np, fusedstep as fs, sys; fs.Adam().step(np.ones(3), np.ones(3)); print(*sys.modules)"
    late = {"functional", "schedules", "checkpoint", "reference", "tools", "optimizers.sgd"}
    assert not {f"fusedstep.{name}" for name in late} & set(run(step).split())


def test_every_public_name_is_there_and_no_other_is_listed():
    listed = set(run("import fusedstep as fs; print(*dir(fs))").split())
    assert {name for name in listed if name[:2] != "__"} == {*fs.__all__, "optimizers"}
    assert run("from fusedstep import *; print(Adam.__name__, callable(save), schedules.__name__)") == (
        "Adam True fusedstep.schedules"
    )
    for name in fs.__all__:
        assert getattr(fs, name) is not None
    for module in (fs, fs.optimizers):
        with pytest.raises(AttributeError, match=f"module {module.__name__!r} has no attribute 'Adan'"):
            module.Adan  # noqa: B018


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python itself refuses it")
def test_a_sub_interpreter_is_refused():
    code = "import warnings; warnings.simplefilter('ignore'); import fusedstep"
    done = subprocess.run(
        [sys.executable, "-c", f"import _xxsubinterpreters as s; s.run_string(s.create(), {code!r})"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "ImportError'>: fusedstep is imported in a sub-interpreter, expected the main one" in done.stderr


def test_the_command_line_tells_the_version():
    done = subprocess.run([sys.executable, "-m", "fusedstep", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fusedstep {fs.__version__}\n"
