"""The rooms of the package: which module may import which, and that no modules import each other in a circle."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fusedstep

PACKAGE = Path(fusedstep.__file__).parent
PATHS = {}
for path in PACKAGE.rglob("*.py"):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    PATHS[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path


def is_in(module, *rooms):
    return any(f"{module}.".startswith(f"{room}.") for room in rooms)


def imports(module):
    """Return the modules of the package that a module imports, also in its functions and for type checkers alone."""
    path = PATHS[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            members = {f"{origin}.{alias.name}" for alias in node.names}
            modules = {name for name in members if name in PATHS or name in ("fusedstep._cpu", "fusedstep._cuda")}
            found |= modules | ({origin} if modules < members else set())
    return {name for name in found if is_in(name, "fusedstep")}


GRAPH = {module: imports(module) for module in PATHS}


def test_the_graph_is_that_of_the_package():
    assert {"fusedstep._cpu", "fusedstep.core.overrides"} <= GRAPH["fusedstep.core.optimizer"]
    assert "fusedstep.schedules.description" in GRAPH["fusedstep.core.stateful"]
    assert "fusedstep.core.archive" in GRAPH["fusedstep.checkpoint"]  # found though only functions import it
    assert {"fusedstep.functional", "fusedstep.reference"} <= GRAPH["fusedstep"]
    assert GRAPH["fusedstep.schedules"] == {
        f"fusedstep.schedules.{name}" for name in ("combined", "decays", "plateau", "schedule")
    }


def test_no_modules_import_each_other_in_a_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' <- '.join(error.args[1])}")


WALLS = {  # room -> the modules and packages of fusedstep that it may import
    "core": ("_cpu", "_cuda", "core", "schedules"),
    "schedules": ("schedules", "core.hyperparameters"),
    "reference": ("reference",),
    "optimizers": ("_cpu", "core", "optimizers"),
    "functional": ("core", "optimizers"),
    "presets": ("core", "optimizers", "presets", "schedules"),
    "torch": ("_cpu", "core", "optimizers", "torch"),
    "checkpoint": ("core",),
    "minibatches": ("core",),
    "loss_scale": ("core", "schedules"),
    "distributed": ("_cpu", "checkpoint", "core", "distributed"),
}
USERS = ("distributed",)  # rooms that use the package as a program does: import fusedstep as fs


@pytest.mark.parametrize("room", WALLS)
def test_walls(room):
    may = [f"fusedstep.{name}" for name in WALLS[room]]
    for module in GRAPH:
        if is_in(module, f"fusedstep.{room}"):
            foreign = {name for name in GRAPH[module] if not is_in(name, *may)}
            assert not foreign - ({"fusedstep"} if room in USERS else set()), module


def test_the_product_imports_no_tool():
    for module in GRAPH:
        if not is_in(module, "fusedstep.tools"):
            assert not {name for name in GRAPH[module] if is_in(name, "fusedstep.tools")}, module


def test_one_process_knows_nothing_of_many():
    for module in GRAPH:
        if not is_in(module, "fusedstep.distributed", "fusedstep.tools", "fusedstep.__main__"):
            assert not {name for name in GRAPH[module] if is_in(name, "fusedstep.distributed")}, module


def test_an_engine_is_imported_when_it_is_asked_for():
    code = """
import pkgutil, sys
from fusedstep import distributed
distributed.world()
for module in pkgutil.iter_modules(distributed.__path__, "fusedstep.distributed."):
    __import__(module.name)
assert not {"mpi4py", "ray", "torch", "cupy"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
