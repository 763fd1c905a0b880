"""What the function of a rule computes, as a graph of operations, and errors that show the user's own line."""

import dis
import linecache
import sys
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any, Literal, NoReturn

__all__ = ["Graph", "Kind", "Node", "definition", "reachable"]

Kind = Literal["number", "element"]
_CONDITIONS = {"less", "less_equal", "equal", "logical_and", "logical_or", "logical_not"}
_ARITHMETIC = {"add", "subtract", "multiply", "divide", "sqrt"}
_MOVING = {"negative", "absolute", "maximum", "minimum", "where"}  # results are operands, but for the sign


class Node:
    """A value of a rule: an input, a constant, or the result of an operation. Nodes are equal if they are the same."""

    __slots__ = ("is_moved", "kind", "name", "number", "op", "operands", "value")

    def __init__(
        self, number: int, kind: Kind, op: str, operands: tuple["Node", ...] = (), name: str = "", value: float = 0.0
    ) -> None:
        self.number = number  # in the order in which nodes were made
        self.kind = kind
        self.op = op  # "input", "constant", or an operation of the engine
        self.operands = operands
        self.name = name  # of an input
        self.value = value  # of a constant
        # Whether the value may be an input that nothing was computed of: its subnormal numbers are still there.
        self.is_moved = kind == "element" and op == "input"
        if op in _MOVING:
            self.is_moved = any(some.is_moved for some in operands[op == "where" :])

    @property
    def is_condition(self) -> bool:
        """Whether the value is a condition: true or false."""
        return self.op in _CONDITIONS


class Graph:
    """The nodes of a rule. Equal operations on the same operands are one node."""

    def __init__(self, code: CodeType, title: str) -> None:
        self._code = code
        self._title = title
        self._nodes: dict[Any, Node] = {}

    def input(self, kind: Kind, name: str) -> Node:
        """Return an input of the rule."""
        return self._known(("input", name), lambda n: Node(n, kind, "input", name=name))

    def constant(self, value: float) -> Node:
        """Return a constant; constants are told apart by their bits, so that -0.0 is not 0.0."""
        value = float(value)
        return self._known(("constant", value.hex()), lambda n: Node(n, "number", "constant", value=value))

    def result(self, op: str, *operands: Node) -> Node:
        """Return the result of an operation, in whose arithmetic a condition counts as 1 or 0."""
        if op not in ("where", "equal") and not op.startswith("logical"):
            if sum(some.is_condition for some in operands) > 1:
                self.refuse("both operands are conditions, expected np.logical_and or np.logical_or, or np.where")
            operands = tuple(self.as_number(some) if some.is_condition else some for some in operands)
        kind: Kind = "element" if any(some.kind == "element" for some in operands) else "number"
        key = (op, *(some.number for some in operands))
        return self._known(key, lambda n: Node(n, kind, op, operands))

    def as_number(self, condition: Node) -> Node:
        """Return 1 where a condition holds, and 0 elsewhere."""
        return self.result("where", condition, self.constant(1.0), self.constant(0.0))

    def _known(self, key: Any, make: Callable[[int], Node]) -> Node:
        if key not in self._nodes:
            self._nodes[key] = make(len(self._nodes))
        return self._nodes[key]

    def refuse(self, message: str, error: type[Exception] = TypeError) -> NoReturn:
        """Raise an error that shows the line of the user's function which is being run, if there is one."""
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != self._code.co_filename:
            frame = frame.f_back
        where = _place(self._code, self._title, frame.f_lineno) if frame is not None else self._title
        raise error(f"{where}: {message}")

    def refuse_results(self, message: str, error: type[Exception] = TypeError) -> NoReturn:
        """Raise an error that shows where the user's function returns, or where it begins, if it returns in several."""
        steps = dis.get_instructions(self._code)
        lines = {step.positions.lineno for step in steps if step.positions and "RETURN" in step.opname}
        only = lines.pop() if len(lines) == 1 else None
        raise error(
            f"{_place(self._code, self._title, only) if only else definition(self._code, self._title)}: {message}"
        )


def _place(code: CodeType, title: str, line: int) -> str:
    """Return a text that shows a line of a function."""
    text = linecache.getline(code.co_filename, line).strip()
    return f"{title}, line {line} of {code.co_filename}" + (f": `{text}`" if text else "")


def definition(code: CodeType, title: str) -> str:
    """Return a text that shows the first line of a function, behind its decorators."""
    line = first = code.co_firstlineno
    while (text := linecache.getline(code.co_filename, line)) and not text.lstrip().startswith(f"def {code.co_name}("):
        line += 1
    return _place(code, title, line if text else first)


def reachable(results: Iterable[Node]) -> list[Node]:
    """Return all nodes that results are made of, operands first, in the order in which they were made."""
    found: dict[int, Node] = {}
    waiting = list(results)
    while waiting:
        node = waiting.pop()
        if node.number not in found:
            found[node.number] = node
            waiting += node.operands
    return [found[number] for number in sorted(found)]
