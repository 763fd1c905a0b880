"""The arguments of a step whose arrays are parts of larger tensors, as where several processes share the states."""

from collections.abc import Hashable, Mapping
from math import prod
from typing import Any, NamedTuple

from fusedstep import _cpu

from .arrays import is_on_gpu
from .hyperparameters import integer
from .overrides import Settings, has_functions
from .progress import Progress, listed

__all__ = ["Parts", "measures", "parts", "squares_of_updates"]

BLOCK = 1024  # elements of a block of the norm; tensors may be cut between blocks


class Parts(NamedTuple):
    """The tensors that the arrays of a step are parts of."""

    origins: dict[Hashable, int]  # the number of the first element of each part in its tensor, by key
    wholes: Any  # the tensors, or what has their keys and shapes; None where nobody asks for them
    sums: Any  # sums of squares of the gradients of the tensors, by tensor, or None
    others: Mapping[Hashable, list[Any]] | None  # further arrays whose sum is a gradient, by key

    def check(self, keys: list[Hashable], arrays: list[Any], settings: Settings) -> None:
        """Refuse parts, with the keys of a step and its arrays, that are none of tensors in the step's order."""
        if missing := [key for key in keys if key not in self.origins]:
            raise ValueError(f"origins lacks {listed(missing)}, expected the first element of each of params")
        if strange := self.origins.keys() - set(keys):
            raise ValueError(f"origins has {listed(strange)}, expected keys of params: {listed(keys)}")
        if self.wholes is None:
            if has_functions(settings.overrides):
                raise ValueError(
                    "wholes is None, expected whole tensors, of which the functions of overrides are asked"
                )
            return
        found, wholes = _cpu.leaves(self.wholes)
        if found != keys:
            raise ValueError(
                f"wholes has the keys {listed(found)}, expected those of params in their order: {listed(keys)}"
            )
        for key, part, whole in zip(keys, arrays, wholes, strict=True):
            if part is None or whole is None:
                continue
            size, own = numbers_in(whole), numbers_in(part)
            end = self.origins[key] + own
            if end > size or (end < size and end % BLOCK and own):
                raise ValueError(
                    f"params[{key!r}] ends at element {end} of {size}, expected an end of the tensor or a multiple of "
                    f"{BLOCK} elements"
                )

    def given(self, keys: list[Hashable]) -> dict[str, Any]:
        """Return what a plan with these keys is given."""
        others = None if self.others is None else [self.others.get(key) for key in keys]
        return {"sums": self.sums, "others": others}

    def origins_of(self, keys: list[Hashable]) -> list[int]:
        """Return the number of the first element of each part, in the order of the keys."""
        return [self.origins[key] for key in keys]


def numbers_in(array: Any) -> int:
    """Return how many real numbers are in an array; its parts may be arrays of real numbers where it is complex."""
    size: int = prod(array.shape)
    return 2 * size if "complex" in str(array.dtype) else size  # of any library


def parts(
    params: Any,
    settings: Settings,
    origins: Mapping[Hashable, int],
    wholes: Any,
    sums: Any,
    others: Mapping[Hashable, list[Any]] | None,
    known: dict[Hashable, int] | None,
) -> Parts:
    """
    Return the parts of a step, as far as their arrays need not be known; `known` are the origins of the last step.

    Raises TypeError and ValueError.
    """
    if known is None or known != origins:
        known = {key: integer(f"origins[{key!r}]", origin, 0) for key, origin in origins.items()}
        for key, origin in known.items():
            if origin % BLOCK:
                raise ValueError(f"origins[{key!r}] is {origin}, expected a multiple of {BLOCK} elements")
    if sums is None and measures(settings):
        raise ValueError(
            "sums is None, expected the sums of squares of the gradients of whole tensors: clip_norm, clip_global_norm "
            "and skip_nonfinite measure them"
        )
    if settings.values["measure"] == "update" and any(map(is_on_gpu, _cpu.leaves(params)[1])):
        raise TypeError("params are on a GPU, expected host memory for parts of tensors with measure='update'")
    return Parts(known, wholes, sums, others)


def measures(settings: Settings) -> bool:
    """Return whether a step with these hyperparameters measures gradients, or may do so for some parameters."""
    clips = ("clip_norm", "clip_global_norm")
    some = [settings.values, *settings.overrides.values()]
    return settings.values["skip_nonfinite"] or any(values.get(clip) is not None for values in some for clip in clips)


def squares_of_updates(progress: Progress) -> dict[Hashable, Any]:
    """
    Return what the last step, one with `measure` that was not skipped, has subtracted: key -> sums of squares.

    The sums are those of the blocks of each part with a gradient. The norm of the updates of whole tensors is the root
    of ``sum_of_sums`` of the tensors' sums, each ``sum_of_sums`` of the blocks of all of its parts.
    """
    now = progress.plans.now
    found = [] if now is None else zip(now.plan.keys, now.plan.squares_of_updates(), strict=True)
    return {key: sums for key, sums in found if sums is not None}
