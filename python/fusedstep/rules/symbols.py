"""Symbols: what the function of a rule is called with, to find out what it computes."""

import math
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from .graph import Graph, Node, reachable

__all__ = ["Symbol", "sqrt"]

# NumPy's functions that a rule may call -> the operation of the engine, and whether its operands change places.
_UFUNCS: dict[Any, tuple[str, bool]] = {
    np.add: ("add", False),
    np.subtract: ("subtract", False),
    np.multiply: ("multiply", False),
    np.divide: ("divide", False),
    np.sqrt: ("sqrt", False),
    np.negative: ("negative", False),
    np.absolute: ("absolute", False),
    np.fabs: ("absolute", False),
    np.sign: ("sign", False),
    np.maximum: ("maximum", False),
    np.minimum: ("minimum", False),
    np.less: ("less", False),
    np.less_equal: ("less_equal", False),
    np.greater: ("less", True),
    np.greater_equal: ("less_equal", True),
    np.equal: ("equal", False),
    np.logical_and: ("logical_and", False),
    np.logical_or: ("logical_or", False),
    np.logical_not: ("logical_not", False),
    np.bitwise_and: ("logical_and", False),
    np.bitwise_or: ("logical_or", False),
    np.invert: ("logical_not", False),
}
_NAMES = sorted({each.__name__ for each in _UFUNCS} | {"where", "clip", "square", "reciprocal", "not_equal", "power"})
_REDUCTIONS = {"sum", "mean", "max", "min", "prod", "std", "var", "norm", "any", "all", "ptp", "average", "median"}
_REDUCTIONS |= {"argmax", "argmin", "sort", "cumsum", "cumprod", "nansum", "nanmean", "quantile", "percentile"}
_REDUCTIONS |= {"dot", "vdot", "inner", "outer", "matmul", "vecdot", "tensordot", "einsum"}
_NO_REDUCTION = (
    "a rule computes each element by itself, so it has no reductions over a tensor: measure outside, and give the "
    "number as a hyperparameter"
)


def sqrt(x: Any) -> Any:
    """
    Return the square root of what a rule computes with: elements, numbers, or arrays.

    Parameters
    ----------
    x : symbol, array or float
        The argument. The root of a negative number is NaN.

    Returns
    -------
    symbol, array or float
        The root, of the same kind; of a float a float, so that the dtype of arrays beside it stays what it is.
    """
    if type(x) in (int, float):
        return math.sqrt(x) if x >= 0 else math.nan
    return np.sqrt(x)


class Symbol(NDArrayOperatorsMixin):
    """A value in the function of a rule, which notes down what is done with it."""

    __slots__ = ("_graph", "_node")

    def __init__(self, graph: Graph, node: Node) -> None:
        self._graph = graph
        self._node = node

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        name = f"np.{ufunc.__name__}"
        if method != "__call__":
            self._refuse(f"{name}.{method}: {_NO_REDUCTION}")
        if options:
            self._refuse(f"{name} has {', '.join(options)}, expected a plain call whose result is returned")
        if ufunc is np.power:
            return self._power(*inputs)
        if ufunc is np.square:
            return self._do("multiply", inputs[0], inputs[0])
        if ufunc is np.reciprocal:
            return self._do("divide", 1.0, inputs[0])
        if ufunc is np.not_equal:
            return ~self._do("equal", *inputs)
        if ufunc is np.positive:
            return inputs[0]
        if ufunc not in _UFUNCS:
            self._refuse_function(ufunc.__name__)
        op, swapped = _UFUNCS[ufunc]
        return self._do(op, *(reversed(inputs) if swapped else inputs))

    def __array_function__(self, function: Any, types: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        name = function.__name__
        if function is np.where and len(args) == 3 and not options:
            return self._where(*args)
        if function is np.clip and len(args) == 3 and not options:
            return self._do("minimum", self._do("maximum", args[0], args[1]), args[2])
        if function in (np.where, np.clip):
            expected = "np.where(condition, x, y)" if function is np.where else "np.clip(x, low, high)"
            self._refuse(f"np.{name} has other arguments, expected {expected}")
        return self._refuse_function(name, "linalg" in function.__module__)

    def _refuse_function(self, name: str, reduces: bool = False) -> NoReturn:
        if reduces or name in _REDUCTIONS:
            self._refuse(f"np.{name}: {_NO_REDUCTION}")
        self._refuse(
            f"np.{name} is no operation of a rule, expected one of {', '.join(_NAMES)}; exp, log and the like differ "
            "between machines: a number that needs them can be a hyperparameter, which may be a function of the step"
        )

    def _where(self, condition: Any, x: Any, y: Any) -> "Symbol":
        node = self._lifted(condition)
        if not node.is_condition:
            self._refuse("the condition of np.where is none, expected a comparison")
        if any(self._lifted(some).is_condition for some in (x, y)):
            self._refuse("np.where selects between conditions, expected np.logical_and and np.logical_or")
        return self._do("where", condition, x, y)

    def _do(self, op: str, *operands: Any) -> "Symbol":
        nodes = [self._lifted(some) for some in operands]
        if op.startswith("logical") and not all(node.is_condition for node in nodes):
            self._refuse(f"an operand of {op} is no condition, expected a comparison, such as x > 0")
        if op == "equal" and any(node.is_condition for node in nodes):
            self._refuse("conditions are compared, expected numbers")
        return Symbol(self._graph, self._graph.result(op, *nodes))

    def _lifted(self, value: Any) -> Node:
        """Return the node of an operand, or refuse it."""
        if isinstance(value, Symbol):
            if value._graph is not self._graph:
                self._refuse("a value that another call has computed, expected one of this call")
            return value._node
        if type(value) in (int, float):
            try:
                return self._graph.constant(value)
            except OverflowError:
                self._refuse("an integer that is too large for a float, expected a number that it can be")
        if isinstance(value, np.generic):
            self._refuse(f"{value!r} is a number of NumPy, expected a Python number: float({value})")
        if isinstance(value, np.ndarray):
            self._refuse("an array that is no argument of the rule, expected a state, which the rule returns")
        if isinstance(value, bool):
            self._refuse(f"{value} stands for a number, expected 1.0 or 0.0")
        return self._refuse(
            f"an operand is of type {type(value).__name__}, expected a number or what the rule computes"
        )

    def _power(self, base: Any, exponent: Any) -> "Symbol":
        x, n = self._lifted(base), self._lifted(exponent)
        if n.op == "constant" and n.value == 0.5:
            return self._do("sqrt", base)
        if n.op == "constant" and n.value == -1:
            return self._do("divide", 1.0, base)
        if x.kind == "element":
            if n.op == "constant" and n.value == 2:
                return self._do("multiply", base, base)
            self._refuse("elements to a power other than 2, 0.5 or -1, expected products: x * x * x")
        if n.kind == "element":
            self._refuse("a power whose exponent differs from element to element")
        if n.op == "constant" and (n.value < 0 or not n.value.is_integer()):
            self._refuse(f"a power of {n.value:g}, expected 0.5, -1, or a whole number of at least 0")
        if not all(_is_whole(node) for node in reachable([n])):
            self._refuse(
                "a power whose exponent may be no whole number, expected a whole number, or what is made of t by + - *"
            )
        return self._do("power", base, exponent)

    # What a symbol is not.

    def _refuse(self, message: str) -> NoReturn:
        self._graph.refuse(message)

    def __bool__(self) -> bool:
        if self._node.kind == "number":
            self._refuse(
                "a branch on a number that may be scheduled, expected np.where(condition, x, y); only hyperparameters "
                "that are bools or text are known here"
            )
        self._refuse("a branch, but a rule is the same for all elements: expected np.where(condition, x, y)")

    def __hash__(self) -> int:
        self._refuse("a symbol is no key of a dict and no member of a set")

    def __float__(self) -> float:
        self._refuse("a symbol is no float, expected fs.sqrt or functions of NumPy in place of those of math")

    __int__ = __index__ = __complex__ = __float__

    def __setitem__(self, key: Any, value: Any) -> None:
        self._refuse("an assignment to elements, expected a new value, which the rule returns")

    def __array__(self, *_: Any, **__: Any) -> Any:
        self._refuse("a symbol is no array, expected it as it is")

    def __format__(self, _: str) -> str:
        self._refuse("a symbol has no value to show")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse(f".{name}: {_NO_REDUCTION}" if name in _REDUCTIONS else f".{name} is no part of a symbol")


def _is_whole(node: Node) -> bool:
    """Return whether a number is whole if its operands are."""
    if node.op == "constant":
        return node.value.is_integer()
    return node.name == "t" if node.op == "input" else node.op in ("add", "subtract", "multiply")


def _refused(message: str) -> Callable[..., Any]:
    def operator(self: Symbol, *_: Any) -> Any:
        self._refuse(message)

    return operator


for _name in ("add", "sub", "mul", "truediv", "pow", "and", "or"):  # v *= k is v = v * k
    setattr(Symbol, f"__i{_name}__", getattr(Symbol, f"__{_name}__"))
for _name in ("matmul", "rmatmul", "imatmul"):
    setattr(Symbol, f"__{_name}__", _refused(f"a matrix product: {_NO_REDUCTION}"))
for _name in ("getitem", "iter", "len", "contains"):
    setattr(Symbol, f"__{_name}__", _refused("a symbol has no elements to look at one by one"))
for _name in ("round", "floor", "ceil", "trunc"):
    setattr(Symbol, f"__{_name}__", _refused("rounding to whole numbers is no operation of a rule"))
