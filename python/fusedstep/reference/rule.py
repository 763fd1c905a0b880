"""
Rules that users write, in plain NumPy: the user's own function, called with arrays.

The function mixes numbers, which are computed in float64, with elements, which are computed in the dtype of the
arithmetic. So it is called with thin wrappers, which compute at once what the engine computes, each in its mode.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, make_dataclass
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from .optimizer import Memory, Optimizer, Scalars, float_mode, larger, power, smaller, with_sign_of

__all__ = ["RESERVED", "made"]

# Names that hyperparameters cannot have: those that the base class looks up in an instance.
RESERVED = {name for name in dir(Optimizer) if not isinstance(vars(Optimizer).get(name), staticmethod)}
RESERVED |= {"elem", "ema_decay", "memory", "names", "param", "params"}

# What NumPy computes otherwise than the engine: its maximum flushes subnormal numbers that it selects, for example.
_COMPUTED: dict[Any, Callable[..., Any]] = {
    np.maximum: larger,
    np.minimum: smaller,
    np.sign: lambda x: with_sign_of(x, x.dtype.type(1)),
    np.square: lambda x: x * x,
    np.reciprocal: lambda x: x.dtype.type(1) / x,
}
_LOGICAL = (np.logical_and, np.logical_or, np.logical_not, np.bitwise_and, np.bitwise_or, np.invert)
_MOVING = (np.negative, np.absolute, np.fabs, np.maximum, np.minimum)


class Value(NDArrayOperatorsMixin):
    """
    Elements of a rule, or a number, with the operators of NumPy.

    Elements are an array of one dimension, numbers are scalars of NumPy. A number is rounded to the dtype T of the
    elements that it meets, where a subnormal float32 becomes zero. Elements are `moved` if nothing has been computed of
    them yet.
    """

    def __init__(self, x: Any, T: Any, *, moved: bool = False) -> None:
        self.x = x
        self.T = T
        self.moved = moved

    @property
    def is_number(self) -> bool:
        """Whether the value is a number, and no elements."""
        return isinstance(self.x, np.generic)

    def _value(self, some: Any) -> "Value":
        return some if isinstance(some, Value) else Value(np.float64(some), self.T)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if ufunc is np.power:
            return self._power(*inputs)
        if ufunc is np.positive:
            return inputs[0]  # also what is moved
        values = [self._value(some) for some in inputs]
        T = np.float64 if all(some.is_number for some in values) else self.T
        with float_mode(T):
            arrays = [some.x if ufunc in _LOGICAL else T(some.x) for some in values]
            computed = _COMPUTED.get(ufunc, ufunc)(*arrays)
        return self._made(computed, values, moved=ufunc in _MOVING and any(some.moved for some in values))

    def __array_function__(self, function: Any, types: Any, args: tuple[Any, ...], options: Any) -> Any:
        if function is np.clip:
            return np.minimum(np.maximum(args[0], args[1]), args[2])
        values = condition, x, y = [self._value(some) for some in args]  # of np.where
        T = np.float64 if all(some.is_number for some in values) else self.T
        with float_mode(T):
            selected = np.where(condition.x, T(x.x), T(y.x))
        return self._made(selected, values, moved=x.moved or y.moved)

    def _made(self, computed: Any, values: Sequence["Value"], moved: bool) -> "Value":
        is_number = all(some.is_number for some in values)
        return Value(np.asarray(computed)[()] if is_number else computed, self.T, moved=moved)

    def _power(self, base: Any, exponent: Any) -> Any:
        if type(exponent) in (int, float) and exponent == 0.5:
            return np.sqrt(base)
        if type(exponent) in (int, float) and exponent == -1:
            return 1.0 / base
        if not self._value(base).is_number:
            return base * base  # elements have no other power
        x, n = float(self._value(base).x), float(self._value(exponent).x)
        with float_mode(np.float64):
            is_whole = 0 <= n < 2.0**53 and n == int(n)
            return Value(np.float64(power(np.float64(x), int(n)) if is_whole else np.nan), self.T)


for _name in ("add", "sub", "mul", "truediv", "pow", "and", "or"):  # v *= k is v = v * k
    setattr(Value, f"__i{_name}__", getattr(Value, f"__{_name}__"))


def made(
    name: str,
    function: Callable[..., Any],
    arrays: Sequence[str],
    starts: Mapping[str, float],
    memory_starts: Mapping[str, float],
    counts: bool,
    hyperparameters: Mapping[str, Any],
    options: Mapping[str, Any],
) -> type[Optimizer]:
    """
    Return the class of an optimizer whose rule is a function.

    Parameters
    ----------
    name : str
        The name of the class.
    function : callable
        Takes `arrays` by position, and by name t (if it `counts`), the memory and the hyperparameters. Returns the
        update, the new states and the new memory.
    arrays : sequence of str
        "g", "p" where the parameter is wanted, and the states, in the order of the arguments.
    starts, memory_starts : mapping
        What each state starts at, and each number that is kept between updates.
    counts : bool
        Whether the function takes the number of the update.
    hyperparameters, options : mapping
        Name -> default. A hyperparameter with the default MISSING has to be given.
    """

    def states(_: Any) -> tuple[str, ...]:
        return tuple(starts)

    def initial(_: Any, name: str) -> float:
        return starts[name]

    def host(self: Any, _: float, t: int, memory: Memory) -> Scalars:
        if t == 1:
            memory.update(memory_starts)
        self.now = t, memory
        return {}

    def elem(self: Any, _: Any, g: Any, /, **wide: Any) -> Any:
        T, (t, memory) = g.dtype.type, self.now
        elements = {"g": g, "p": self.param} | wide
        numbers = ({"t": t} if counts else {}) | memory
        chosen = {each: getattr(self, each) for each in hyperparameters}
        numbers |= {each: value for each, value in chosen.items() if isinstance(value, float)}
        with float_mode(np.float64):  # for what the function computes of Python's own numbers
            returned = function(
                *(Value(elements[each].reshape(-1), T, moved=True) for each in arrays),
                **{each: Value(np.float64(value), T) for each, value in numbers.items()},
                **{each: value for each, value in chosen.items() if each not in numbers},
            )
        results = list(returned) if isinstance(returned, (tuple, list)) else [returned]
        for each, number in zip(memory_starts, results[1 + len(starts) :], strict=True):
            memory[each] = float(number.x if isinstance(number, Value) else number)
        with float_mode(T):
            u, *new = (some.x * T(1) if some.moved else some.x for some in results[: 1 + len(starts)])
        for each, array in zip(starts, new, strict=True):
            wide[each][...] = array.reshape(g.shape)
        return u.reshape(g.shape)

    own = sorted(hyperparameters, key=lambda each: hyperparameters[each] is not MISSING)
    fields = [(each, Any, field(default=hyperparameters[each])) for each in own]
    fields += [(each, Any, field(default=value, kw_only=True)) for each, value in options.items()]
    methods: dict[str, Any] = {"states": states, "initial": initial, "host": host, "elem": elem}
    methods |= {} if "lr" in hyperparameters else {"lr": 1.0}
    return make_dataclass(name, fields, bases=(Optimizer,), namespace=methods, eq=False)
