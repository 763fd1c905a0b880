"""Containers of parameters and gradients: what is in them, objects, and other names of gradients."""

from collections.abc import (
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
    ValuesView,
)
from copy import copy
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any

from fusedstep import _cpu

from .arrays import Array, as_array, span

__all__ = ["Bound", "arrays_by_key", "bind", "check_kept", "present", "refilled", "renamed", "tell_writes"]

_ARRAYS = ("__dlpack__", "__array_interface__", "__cuda_array_interface__")  # attributes of types of arrays


class Bound:
    """
    Objects whose attributes are parameters and gradients; made by `bind`.

    The attributes are read anew at every step, so arrays may be new each time. A gradient that is None, or an attribute
    that is not there, counts as no gradient.
    """

    def __init__(self, objects: dict[Hashable, Any], names: list[tuple[str, str]]) -> None:
        self._objects = objects
        self._names = [(param, attrgetter(param), attrgetter(grad)) for param, grad in names]

    @property
    def params(self) -> dict[Hashable, dict[str, Any]]:
        """The parameters: key of the object -> attribute -> array, of the attributes that are there and not None."""
        found = {key: {name: _read(one, param) for name, param, _ in self._names} for key, one in self._objects.items()}
        return {key: {name: p for name, p in some.items() if p is not None} for key, some in found.items()}

    @property
    def grads(self) -> dict[Hashable, dict[str, Any]]:
        """The gradients of `params`; None where there is none."""
        return {
            key: {name: _read(one, grad) for name, param, grad in self._names if _read(one, param) is not None}
            for key, one in self._objects.items()
        }


def _read(one: Any, attribute: Callable[[Any], Any]) -> Any:
    try:
        return attribute(one)
    except AttributeError:
        return None


def bind(objects: Any, param: str | Iterable[str], grad: str | Iterable[str]) -> Bound:
    """
    Bind attributes of objects, such as the layers of a network, so that `step` finds parameters and gradients there.

    Parameters
    ----------
    objects : sequence, mapping or object
        The objects. They are told apart by their key, which is the key in a mapping or the place in a sequence at the
        moment of this call; who comes or goes in the container later changes nothing. A single object has the key 0.
    param, grad : str or iterable of str
        Names of the attributes with parameters and with their gradients, in one order, such as ``"W b"`` and
        ``"dW db"``. A name may lead through attributes: ``"linear.weight"``. An object that lacks a parameter's
        attribute, or has None there, does not have this parameter.

    Returns
    -------
    Bound
        What `step` takes in place of parameters and gradients. The key of a parameter is the object's key and the
        attribute: ``"0/W"``.

    Raises
    ------
    TypeError
        If `objects` is of a type without items or attributes that fit.
    ValueError
        If `param` and `grad` have not as many names, if no object has one of the parameters, or if an attribute is a
        new array each time it is asked for.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> class Layer:
    ...     def __init__(self):
    ...         self.W, self.dW = np.ones((2, 2)), None
    >>> layers = [Layer(), Layer()]
    >>> model = fs.bind(layers, param="W", grad="dW")
    >>> layers[0].dW = np.ones((2, 2))  # as a backward pass does it; layers[1] has no gradient
    >>> opt = fs.SGD(lr=0.5)
    >>> result = opt.step(model)
    >>> layers[0].W.tolist(), layers[1].W.tolist(), dict(opt.t)
    ([[0.5, 0.5], [0.5, 0.5]], [[1.0, 1.0], [1.0, 1.0]], {'0/W': 1, '1/W': 0})
    """
    params, grads = (name.split() if isinstance(name, str) else list(name) for name in (param, grad))
    if not params or len(params) != len(grads):
        raise ValueError(f"param names {len(params)} attributes and grad {len(grads)}, expected as many, at least one")
    if isinstance(objects, Mapping):
        named = dict(objects)
    elif isinstance(objects, Sequence):
        named = dict(enumerate(objects))
    else:
        named = {0: objects}
    names = list(zip(params, grads, strict=True))
    for name in params:
        if not any(_read(one, attrgetter(name)) is not None for one in named.values()):
            raise ValueError(f"no object has a parameter {name!r}, expected the name of an attribute of one of them")
    bound = Bound(named, names)
    check_kept(bound)
    return bound


def arrays_by_key(params: Any) -> dict[Hashable, Array | None]:
    """Return the arrays in what `step` takes as parameters, or None, by the keys that they have there."""
    if params is None:
        return {}
    keys, arrays = _cpu.leaves(params.params if isinstance(params, Bound) else params)
    found = zip(keys, arrays, strict=True)
    return {key: None if array is None else as_array(array, f"params[{key!r}]") for key, array in found}


def present(params: Any) -> dict[Hashable, Array]:
    """Return the arrays in what `step` takes as parameters by the keys that they have there, without None."""
    return {key: array for key, array in arrays_by_key(params).items() if array is not None}


def refilled(params: Any, arrays: Iterable[Any]) -> Any:
    """
    Return containers of the kinds and with the keys of those that `step` takes as parameters, with other arrays.

    Parameters
    ----------
    params : array, or containers of arrays
        The containers, which stay as they are. For what `bind` returned, there are mappings of mappings.
    arrays : iterable
        What takes the place of each array or None, in the order of `arrays_by_key`.

    Returns
    -------
    array, or containers of arrays
        The containers. A collection that is neither mapping nor sequence, such as ``dict.values()``, becomes a list.
    """
    return _refilled(params.params if isinstance(params, Bound) else params, iter(arrays))


def _refilled(value: Any, arrays: Iterator[Any]) -> Any:
    if value is None or any(hasattr(type(value), name) for name in _ARRAYS):
        return next(arrays)
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(_refilled(item, arrays) for item in value)
    if is_dataclass(value):
        one = copy(value)
        for field in fields(value):
            object.__setattr__(one, field.name, _refilled(getattr(value, field.name), arrays))
        return one
    if isinstance(value, Mapping):
        items = {key: _refilled(item, arrays) for key, item in value.items()}
        if not isinstance(value, MutableMapping):
            return type(value)(items)  # type: ignore[call-arg]
        made = copy(value)
        made.update(items)
        return made
    found = [_refilled(item, arrays) for item in value]
    return type(value)(found) if isinstance(value, Sequence) else found  # type: ignore[call-arg]


def check_kept(params: Any) -> None:
    """Refuse a container that makes its arrays when it is asked for them: what is written to them would be lost."""
    arrays = present(params)
    for key, again in present(params).items():
        if span(again) != span(arrays[key]):
            kind = "dict" if isinstance(params, Mapping) else "list"
            way = "" if isinstance(params, Bound) else f": {kind}(params), say"
            raise ValueError(f"params[{key!r}] is a new array each time it is asked for, expected the same one{way}")


def tell_writes(params: Any) -> None:
    """Tell the libraries of arrays that these have been written to: PyTorch refuses what needs the numbers before."""
    if params is not None:
        _cpu.tell_writes(params.params if isinstance(params, Bound) else params)


def renamed(params: Any, grads: Any, grad_key: str | Callable[[Any], Any]) -> Any:
    """
    Return gradients under the names of their parameters.

    Parameters
    ----------
    params, grads : mapping or sequence
        Containers of one structure, but for the names of gradients in mappings.
    grad_key : str or callable
        The name of a gradient, made of the name of its parameter: a format such as ``"d{}"``, or a function.

    Raises
    ------
    TypeError
        If a mapping stands beside something else.
    ValueError
        If a gradient belongs to no parameter.
    """
    name_of = _naming(grad_key)
    if grads is None:
        return None
    named = _as_mapping(params)
    if named is not None:
        left = _as_mapping(grads)
        if left is None:
            raise TypeError(f"grads is of type {type(grads).__name__}, expected a mapping, as grad_key is given")
        left, found = dict(left), {}
        for key, param in named.items():
            if _is_container(param):
                if key in left:
                    found[key] = renamed(param, left.pop(key), grad_key)
            elif (name := name_of(key)) in left:
                found[key] = left.pop(name)
        if left:
            names = ", ".join(repr(name_of(key)) for key, param in list(named.items())[:5] if not _is_container(param))
            wanted = f"names such as {names}" if names else f"only {', '.join(map(repr, named))}"
            raise ValueError(f"grads[{next(iter(left))!r}] belongs to no parameter, expected {wanted}")
        return found
    if isinstance(params, Collection) and isinstance(grads, Collection) and len(params) == len(grads):
        return [renamed(p, g, grad_key) if _is_container(p) else g for p, g in zip(params, grads, strict=True)]
    return grads


def _naming(grad_key: str | Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the function that makes names of gradients."""
    if callable(grad_key):
        return grad_key
    try:
        if grad_key.format("a") != grad_key.format("b"):
            return grad_key.format
    except (AttributeError, LookupError, ValueError):
        pass
    raise ValueError(f"grad_key is {grad_key!r}, expected a function, or a format with a place for the name: 'd{{}}'")


def _as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """Return a mapping, named tuple or dataclass as a mapping, and of anything else None."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        fields: Mapping[Any, Any] = value._asdict()
        return fields
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return None


def _is_container(value: Any) -> bool:
    return _as_mapping(value) is not None or (isinstance(value, (list, tuple, ValuesView)))
