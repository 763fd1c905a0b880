"""Who may know what: the rooms of the house, and how long a file may be."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fusedstep import _cpu, optimizers, reference
from fusedstep.core import hyperparameters, optimizer

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
SOURCES = sorted(path for path in CSRC.rglob("*") if path.is_file())
HEADERS = sorted(
    path for path in (CSRC / "rules").glob("*.h") if path.name not in ("rule.h", "all.h", "info.h", "rows.h")
)

# What the files of a room may include, beside those of the room itself: other rooms or single files of csrc/, headers
# of C, and "system" for any header of C++ or of the operating system.
ROOMS = {
    "rules": ["<math.h>", "<stdint.h>"],
    "element": ["rules", "step.h", "<stdint.h>", "<immintrin.h>"],
    "storage": ["rules", "<stddef.h>", "<stdint.h>"],
    "step.h": ["storage/types.h"],
    "programs": ["rules", "element", "step.h", "system"],
    "engine.h": ["rules/info.h", "step.h", "system"],
    "engines/cpu": ["rules", "element", "storage", "programs", "step.h", "engine.h", "system"],
    "engines/cuda": ["rules", "element", "storage", "programs", "step.h", "engine.h", "system", "<cuda_runtime.h>"],
    "binding/arrays": ["storage/types.h", "step.h", "engine.h", "system", "<pybind11>"],
    "binding": ["binding/arrays", "rules/info.h", "element", "step.h", "engine.h", "system", "<pybind11>"],
}
# Files that may include more than the other files of their room.
DOORS = {
    "rules/info.h": ["step.h", "system"],
    "rules/info.cpp": ["element/scalars.h"],
    "rules/rows.h": ["element/around.h", "system"],
    "engines/cuda/module.cpp": ["<pybind11>", "binding/arrays/dlpack.h"],
    "binding/module.cpp": ["engines/cpu/dispatch.h", "engines/cpu/routines.h", "programs/made.h"],
    "binding/programs.cpp": ["engines/cpu/routines.h", "programs/made.h"],
}
LINES = {"csrc": 450, "python": 450, "tests": 600}


def name(path):
    return path.relative_to(CSRC).as_posix()


def room(file):
    """Return the room of a file of csrc/: its folder, or itself where it has none."""
    return file.rpartition("/")[0] or file


def code_of(path):
    """Return a C++ file without its comments."""
    return re.sub(r"//.*", "", path.read_text())


def rules():
    """Return the names of all rules, in C++ and in Python."""
    return set(re.findall(r"X\((\w+)\)", code_of(CSRC / "rules" / "all.h"))) | set(_cpu.rules)


def includes(path):
    """Yield what a file includes, as the tables name it: files of csrc/, or headers in angle brackets."""
    for bracket, target in re.findall(r'#include ([<"])([^>"]+)[>"]', path.read_text()):
        yield target if bracket == '"' else f"<{target}>".replace("<pybind11/", "<pybind11>/").partition("/")[0]


# The walls of C++.


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_file_includes_what_its_room_may_know(path):
    file = name(path)
    allowed = {room(file), *ROOMS[room(file)], *DOORS.get(file, ())}
    for target in includes(path):
        plain = target[0] == "<" and target not in ("<pybind11>", "<Python.h>", "<cuda_runtime.h>")
        known = {target, room(target)} | ({"system"} if plain else set())
        assert known & allowed, f"{file} includes {target}, expected one of {', '.join(sorted(allowed))}"


@pytest.mark.parametrize("path", [path for path in SOURCES if room(name(path)) != "rules"], ids=name)
def test_no_rule_is_known_by_name(path):
    assert not rules() & set(re.findall(r"\w+", code_of(path)))


@pytest.mark.parametrize("path", [path for path in SOURCES if not name(path).startswith("binding/")], ids=name)
def test_python_is_known_where_it_is_bound(path):
    assert "<pybind11>" in DOORS.get(name(path), ()) or not re.search(r"pybind11|\bpy::|\bPy[A-Z]", code_of(path))


@pytest.mark.parametrize("path", HEADERS, ids=name)
def test_a_rule_knows_numbers_only(path):
    words = set(re.findall(r"\w+", code_of(path)))
    assert not words & {"float", "float32", "float64", "size_t", "std", "pow", "fma", "thread", "cuda"}
    body = code_of(path).partition("INLINE_HOST_DEVICE static T update")[2]
    assert not re.search(r"\bif\b|\bfor\b|\bwhile\b", body), "the code of an element branches"


def test_the_tables_name_what_is_there():
    assert {room(name(path)) for path in SOURCES} <= ROOMS.keys()
    assert DOORS.keys() <= {name(path) for path in SOURCES}


# The walls of Python.


def imports(path):
    tree = ast.parse(Path(path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def test_the_reference_shares_nothing_with_the_package():
    for path in Path(reference.__file__).parent.glob("*.py"):
        foreign = ("..", "fusedstep", "scipy", "torch")
        assert not [name for name in imports(path) if name.startswith(foreign)], path.name


def test_the_reference_is_loaded_when_it_is_asked_for():
    code = """
import sys, fusedstep
assert "reference" in dir(fusedstep)
assert not {"fusedstep.reference", "fusedstep.core.archive", "ml_dtypes", "safetensors"} & sys.modules.keys()
assert fusedstep.reference.SGD().lr == 0.01
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_optimizer_classes_know_no_pointer():
    for module in (optimizer, optimizers, hyperparameters):
        assert not {"ctypes", "struct", "cupy"} & set(imports(module.__file__))


# Every file can be read in one sitting.


def test_no_file_is_too_long():
    long = {}
    for folder, limit in LINES.items():
        for path in (ROOT / folder).rglob("*"):
            file = path.relative_to(ROOT).as_posix()
            if path.suffix in (".h", ".cpp", ".cu", ".py", ".pyi"):
                lines = path.read_text().count("\n")
                if lines > limit:
                    long[file] = lines
    assert not long, f"expected at most as many lines as {LINES}"
