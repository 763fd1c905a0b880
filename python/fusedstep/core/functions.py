"""
The functions of `fusedstep.functional`: written out for each rule from what its class and the engine say of it.

Each function is the text of a signature and of one call, which is compiled at import, as the standard library makes
dataclasses and named tuples: calling it costs no more than calling a function in a file.
"""

import inspect
import json
import linecache
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, get_args

import numpy as np

from fusedstep import _cpu

from .hyperparameters import Bounds, check, check_clips, declared, plain, range_of, recipes, shown
from .optimizer import Optimizer

__all__ = ["DecoupledOptions", "Options", "Outline", "function", "outlines", "signature"]


class DecoupledOptions(TypedDict, total=False):
    """
    What surrounds a rule whose weight decay is always decoupled.

    All options mean what they mean for `Optimizer`. A norm is that of the gradients of one call.
    """

    grad_scale: float
    clip_value: float | None
    clip_norm: float | None
    clip_global_norm: float | None
    maximize: bool
    l1: float
    weight_decay: float
    bounds: Bounds | None
    zero_grad: bool
    rounding: Literal["nearest", "stochastic"]
    seed: int


class Options(DecoupledOptions, total=False):
    """
    What surrounds a rule that leaves the choice of how to decay.

    All options mean what they mean for `Optimizer`. A norm is that of the gradients of one call.
    """

    decoupled: bool


class Outline(NamedTuple):
    """What a function of `functional` is made of."""

    name: str  # the name of the rule
    rule: _cpu.Rule
    cls: type[Optimizer]
    chosen: Mapping[str, Any]  # the hyperparameters that make the class ask for the rule
    defaults: dict[str, Any]  # the defaults of all hyperparameters of the class
    own: tuple[str, ...]  # the hyperparameters that the rule uses and that not every class has


def outlines(classes: Iterable[type[Optimizer]]) -> list[Outline]:
    """Return an outline for each rule of the classes, in the order of the engine; a rule belongs to its first class."""
    owners: dict[str, tuple[type[Optimizer], Mapping[str, Any]]] = {}
    for cls in classes:
        for name, chosen in {cls.rule: {}, **cls.other_rules}.items():
            owners.setdefault(name, (cls, chosen))
    found = []
    for name, rule in _cpu.rules.items():
        if name in owners:
            cls, chosen = owners[name]
            values = {f.name: f.default for f in fields(cls) if f.name in declared(cls)} | dict(chosen)
            used = {field for recipe in recipes(rule.hypers, values, cls.derived) for field in recipe.fields}
            own = [field for field in declared(cls) if field in used and field not in declared(Optimizer)]
            found.append(Outline(name, rule, cls, chosen, values, tuple(own)))
    return found


# The text of a function.


def signature(outline: Outline) -> str:
    """Return the signature of a function as ruff formats it, up to the colon."""
    hints, cls = declared(outline.cls), outline.cls
    arrays = ["p", "g", *outline.rule.states]
    lines = [f"{name}: Any" for name in arrays]
    lines.append("*")
    lines += ["t: int"] if outline.rule.counts else []
    lines += [f"{name}: float" for name in outline.rule.memory]
    for name in outline.own:
        default = outline.defaults[name]
        optional = "" if name == "lr" or default is MISSING else f" = {_literal(default)}"
        lines.append(f"{name}: {_type(hints[name])}{optional}")
    lines.append(f"**options: Unpack[{_options(cls).__name__}]")
    returned = {0: "None", 1: "float"}.get(len(outline.rule.memory), "tuple[float, ...]")
    return f"def {outline.name}(\n    " + ",\n    ".join(lines) + f",\n) -> {returned}:"


def _options(cls: type[Optimizer]) -> Any:
    return DecoupledOptions if cls.always_decoupled else Options


def _type(hint: Any) -> str:
    choices = get_args(hint)
    return f"Literal[{', '.join(map(_literal, choices))}]" if choices else hint.__name__


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value)
    return f'float("{value}")' if isinstance(value, float) and not math.isfinite(value) else repr(value)


def function(outline: Outline, module: str) -> Callable[..., Any]:
    """Return the function of a rule as a member of the module called `module`."""
    name, rule = outline.name, outline.rule
    arrays = ", ".join(["p", "g", *rule.states])
    count = "t" if rule.counts else "1"
    memory = "".join(f"{_checked(word, outline.cls)}, " for word in rule.memory)
    call = f"_update({rule.id}, ({arrays}), _packed({', '.join([*outline.own, '**options'])}), {count}, "
    call += f"({memory.rstrip()}))" if memory else "())"
    call = {0: call, 1: f"return {call}[0]"}.get(len(rule.memory), f"return {call}")
    source = f"{signature(outline)}\n    {call}\n"
    namespace: dict[str, Any] = {
        "Any": Any,
        "DecoupledOptions": DecoupledOptions,
        "Literal": Literal,
        "Options": Options,
        "Unpack": Unpack,
        "__name__": module,
        "_check": check,
        "_packed": _packing(outline),
        "_ranges": outline.cls.ranges,
        "inf": math.inf,
        "_update": _cpu.update,
    }
    place = f"<{module}.{name}>"
    exec(compile(source, place, "exec"), namespace)  # noqa: S102 (of names that the package itself has chosen)
    linecache.cache[place] = len(source), None, source.splitlines(True), place  # tracebacks show the source
    made: Callable[..., Any] = namespace[name]
    made.__doc__ = _docstring(outline)
    return made


def _checked(name: str, cls: type[Optimizer]) -> str:
    """Return the expression of a memory that has been checked, at no cost for a float in its range."""
    is_fine = f"type({name}) is float and {range_of(name, cls.ranges).text(name)}"
    return f'{name} if {is_fine} else _check("{name}", {name}, float, "", _ranges)'


def _packing(outline: Outline) -> Callable[..., bytes]:
    """Return the function that checks hyperparameters and packs them for the engine; it remembers the packed bytes."""
    name, rule, cls, _, defaults, own = outline
    hints, known = declared(cls), declared(_options(cls))
    numbers = recipes(rule.hypers, defaults, cls.derived)

    @lru_cache(maxsize=1024, typed=True)
    def packed(*given: Any, **options: Any) -> bytes:
        for field, value in (*zip(own, given, strict=True), *options.items()):
            if plain(value) is not value:  # an array, whose number may change while the bytes are remembered
                raise TypeError(f"{field} is {shown(value)}, expected a number, as from float({field})")
        values = defaults | {
            field: check(field, value, hints[field], "", cls.ranges) for field, value in zip(own, given, strict=True)
        }
        for option, value in options.items():
            if option not in known:
                raise TypeError(f"{option} is no option of {name}, expected one of {', '.join(known)}")
            values[option] = check(option, value, known[option])
        check_clips(values)
        scale, values["grad_scale"] = values["grad_scale"], 1.0
        return np.array([*(recipe.value(values) for recipe in numbers), scale]).tobytes()

    return packed


# The docstring of a function.

_DOCSTRING = """\
Make one update of {title}, in place.

{text}

Parameters
----------
p : array or list of arrays
    Parameter: float32, float64, float16 or bfloat16 (of `ml_dtypes`), of any shape, C-contiguous, writable. Updated in
    place.
g : like `p`
    Gradient, of the shape and dtype of its parameter; or float32 for a half-precision parameter, or half precision for
    a float32 one. Only read, unless `zero_grad`.
{parameters}
**options
    Those of `{options}`, which surround the rule as in the class.

{returns}Raises
------
TypeError
    If something is no array, or no list of arrays where `p` is one; if an array has a dtype or byte order that is not
    wanted; if some arrays are in host memory and others on a GPU; or if a hyperparameter has a wrong type or name.
ValueError
    If an array is read-only, of another shape, not contiguous, unaligned, or overlaps another one; if lists differ in
    length; or if a number is out of range.
BufferError
    If an array of another library does not export its memory.
RuntimeError
    If an array is on a GPU that cannot be used.

Notes
-----
Everything is checked before the first write: a refused call changes nothing.

References
----------
{references}
"""


def _docstring(outline: Outline) -> str:
    _, rule, cls, chosen, _, own = outline
    sections = _sections(inspect.cleandoc(cls.__doc__ or ""))
    title = f"`{cls.__name__}`"
    if chosen:
        title += f" with ``{', '.join(f'{field}={_literal(value)}' for field, value in chosen.items())}``"
    parameters = []
    if rule.states:
        start = f"; `{cls.accumulator}` may start at another number" if cls.accumulator in rule.states else ""
        words = (
            f"State{'s' * (len(rule.states) > 1)}, of the shape of the parameter, of its dtype or, for a half-precision"
        )
        words += f" one, float32; zeros before the first update{start}. Updated in place."
        parameters.append(_entry(", ".join(rule.states), "like `p`", words))
    if rule.counts:
        parameters.append("t : int\n    Number of this update, 1 for the first.")
    for name in rule.memory:
        words = "What the last update returned. The first update does not read it: any number in its range will do."
        parameters.append(_entry(name, "float", words))
    parameters += _entries(sections.get("Parameters", ""), own, declared(cls))
    returns = ""
    if rule.memory:
        kinds = [f"{name} : float\n    To be given to the next update." for name in rule.memory]
        returns = "\n".join(["Returns", "-------", *kinds, "", ""])
    return _DOCSTRING.format(
        title=title,
        text=sections[""],
        parameters="\n".join(parameters),
        options=_options(cls).__name__,
        returns=returns,
        references=sections.get("References", ""),
    )


def _sections(text: str) -> dict[str, str]:
    """Return the sections of a numpydoc docstring by their titles; what comes before them has no title."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", text, flags=re.MULTILINE)
    return {"": parts[0].strip(), **dict(zip(parts[1::2], map(str.rstrip, parts[2::2]), strict=True))}


def _entries(section: str, names: Iterable[str], hints: Mapping[str, Any]) -> list[str]:
    """Return entries for the hyperparameters `names`. Unlike those of a class, they are never callables."""
    described: dict[str, tuple[str, str]] = {}
    for head, body in re.findall(r"^(\S.*)\n((?:[ \n].*\n?)*)", section, re.MULTILINE):
        words, _, kind = head.partition(" : ")
        described |= {name.strip(): (kind.replace(" or callable", ""), body.rstrip()) for name in words.split(",")}
    together: dict[tuple[str, str], list[str]] = {}
    for name in names:
        kind, body = described.get(name, ("", ""))
        together.setdefault((kind or _type(hints[name]), body or f"    As for the class: {name}."), []).append(name)
    return [f"{', '.join(some)} : {kind}\n{body}" for (kind, body), some in together.items()]


def _entry(name: str, kind: str, words: str) -> str:
    return f"{name} : {kind}\n" + textwrap.fill(words, 120, initial_indent="    ", subsequent_indent="    ")
