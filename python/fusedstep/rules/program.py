"""The program of a rule: traced from its function, and numbered as the engine wants it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import blake2b
from threading import Lock
from typing import Any

from fusedstep import _cpu

from .form import Form
from .graph import Graph, Node, reachable
from .symbols import Symbol

__all__ = ["Program", "traced"]

_OPS = {name: i for i, name in enumerate(_cpu.operations)}
_FIRST_RESULT = 2 + _cpu.max_states  # of operands of elements, behind p, g and the states
_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "less": "<", "less_equal": "<=", "equal": "=="}

_defining = Lock()

Operation = tuple[int, int, int, int]


@dataclass(frozen=True)
class Program:
    """A program as the engine takes it: names, and operations that name their operands by numbers."""

    states: tuple[str, ...]
    hypers: tuple[str, ...]
    memory: tuple[str, ...]
    memory_start: list[float]
    constants: list[float]
    numbers: list[Operation]  # derived once per step
    memory_after: list[int]
    scalars: list[int]  # the numbers that elements are computed from
    elements: list[Operation]  # computed of each element
    update: int
    states_after: list[int]

    @cached_property
    def digest(self) -> str:
        """Sixteen letters that tell the program from all others."""
        parts = [getattr(self, part.name) for part in fields(self)]
        exact = [[x.hex() if isinstance(x, float) else x for x in part] for part in parts if isinstance(part, list)]
        names = [part for part in parts if not isinstance(part, list)]
        return blake2b(repr((names, exact)).encode(), digest_size=8).hexdigest()

    def define(self, name: str) -> str:
        """Enter the program in the engine, unless it is there already, and return the name of the rule."""
        name = f"{name}:{self.digest}"
        with _defining:
            if name not in _cpu.rules:
                _cpu.define(name, **{part.name: getattr(self, part.name) for part in fields(self)})
        return name

    def show(self) -> str:
        """
        Return the program as text: the numbers of a step, then what is computed of each element.

        Returns
        -------
        str
            A line for each operation. The last line tells how many divisions and roots an element takes, which are
            slow: each takes as long as several other operations.
        """
        known = [*self.hypers, "t", *self.memory, *map(repr, self.constants)]
        known += [f"n{i}" for i in range(len(self.numbers))]
        first = len(known) - len(self.numbers)
        lines = [f"{known[first + i]} = {_text(op, known)}" for i, op in enumerate(self.numbers)]
        lines += [f"{name} = {known[n]}" for name, n in zip(self.memory, self.memory_after, strict=True)]
        values = {-1 - k: known[n] for k, n in enumerate(self.scalars)} | {0: "p", 1: "g"}
        values |= {2 + j: name for j, name in enumerate(self.states)}
        values |= {_FIRST_RESULT + i: f"x{i}" for i in range(len(self.elements))}
        lines += [""] if lines else []
        lines += [*(f"x{i} = {_text(op, values)}" for i, op in enumerate(self.elements))]
        lines += [f"{name} = {values[n]}" for name, n in zip(self.states, self.states_after, strict=True)]
        lines += [f"p = p - {values[self.update]}", ""]
        slow = sum(op[0] in (_OPS["divide"], _OPS["sqrt"]) for op in self.elements)
        lines += [f"{len(self.elements)} operations on each element, {slow} of them divisions or roots"]
        return "\n".join(lines)

    __str__ = show


def _text(operation: Operation, values: Any) -> str:
    op = _cpu.operations[operation[0]]
    arity = 3 if op == "where" else 1 if op in ("sqrt", "negative", "absolute", "sign", "logical_not") else 2
    names = [values[n] for n in operation[1 : 1 + arity]]
    return f"{names[0]} {_SIGNS[op]} {names[1]}" if op in _SIGNS else f"{op}({', '.join(names)})"


def traced(form: Form, chosen: Mapping[str, Any]) -> Program:
    """Call the function of a rule with symbols and its chosen options, and return what it does as a program."""
    graph = Graph(form.function.__code__, form.function.__name__)
    arrays = {name: graph.input("element", name) for name in ("p", "g", *form.states)}
    names = [*form.numbers, "t", *form.memory]
    numbers = {name: graph.input("number", name) for name in names}
    given = {name: Symbol(graph, node) for name, node in numbers.items() if name != "t" or form.counts}
    returned = form.function(*(Symbol(graph, arrays[name]) for name in form.arrays), **given, **chosen)
    results = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    wanted = ["the update", *(f"state {name}" for name in form.states), *(f"memory {name}" for name in form.memory)]
    if len(results) != len(wanted):
        graph.refuse_results(f"returns {len(results)} results, expected {len(wanted)}: {', '.join(wanted)}", ValueError)
    nodes = [_result(graph, value, label) for value, label in zip(results, wanted, strict=True)]
    return _numbered(form, graph, names, nodes)


def _result(graph: Graph, value: Any, label: str) -> Node:
    """Return the node of a result; subnormal numbers of inputs that are only moved count as zero."""
    is_memory = label.startswith("memory")
    if is_memory and type(value) in (int, float):
        return graph.constant(value)
    if not isinstance(value, Symbol):
        graph.refuse_results(f"{label} is {value!r}, expected {'a number' if is_memory else 'elements'}")
    if value._graph is not graph:
        graph.refuse_results(f"{label} is a value of an earlier call of the function, expected one of this call")
    node = value._node
    if node.is_condition or (node.kind == "number") != is_memory:
        found = "a condition" if node.is_condition else "a number" if node.kind == "number" else "an element"
        graph.refuse_results(f"{label} is {found}, expected {'a number' if is_memory else 'elements'}")
    return graph.result("multiply", node, graph.constant(1.0)) if node.is_moved else node


def _numbered(form: Form, graph: Graph, names: list[str], results: list[Node]) -> Program:
    count = 1 + len(form.states)
    live = reachable(results)
    inputs = {node.name: node for node in live if node.op == "input"}
    used = [node for node in live if node.kind == "element" and node.operands]
    scalars = list(dict.fromkeys(some for node in used for some in node.operands if some.kind == "number"))
    constants = [node for node in live if node.op == "constant"]
    derived = [node for node in live if node.kind == "number" and node.operands]
    for what, found, most in (
        ("operations on elements", used, _cpu.max_operations),
        ("operations on numbers", derived, _cpu.max_operations),
        ("constants", constants, _cpu.max_constants),
        ("numbers that elements are computed from", scalars, _cpu.max_scalars),
    ):
        if len(found) > most:
            graph.refuse_results(f"has {len(found)} {what}, expected at most {most}", ValueError)
    number_of = {inputs[name]: i for i, name in enumerate(names) if name in inputs}
    number_of |= {node: len(names) + i for i, node in enumerate((*constants, *derived))}
    operand_of = {node: -1 - k for k, node in enumerate(scalars)}
    places = {"p": 0, "g": 1} | {name: 2 + j for j, name in enumerate(form.states)}
    operand_of |= {node: places[name] for name, node in inputs.items() if node.kind == "element"}
    operand_of |= {node: _FIRST_RESULT + i for i, node in enumerate(used)}
    return Program(
        tuple(form.states),
        tuple(form.numbers),
        tuple(form.memory),
        list(form.memory.values()),
        [node.value for node in constants],
        [_operation(node, number_of) for node in derived],
        [number_of[node] for node in results[count:]],
        [number_of[node] for node in scalars],
        [_operation(node, operand_of) for node in used],
        operand_of[results[0]],
        [operand_of[node] for node in results[1:count]],
    )


def _operation(node: Node, place_of: Mapping[Node, int]) -> Operation:
    a, b, c = ([place_of[some] for some in node.operands] + [0, 0])[:3]
    return _OPS[node.op], a, b, c
