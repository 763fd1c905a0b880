"""How a caller sees what an optimizer remembers: mappings that follow the optimizer from step to step."""

from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

from .arrays import Array
from .hyperparameters import Scheduled, integer

__all__ = ["Averages", "Counts", "States"]


def _viewed(array: Array) -> Array:
    """Return a view, so that nobody can change shape, strides or flags of the array that the engine writes."""
    return array.view(array.dtype)


class States(Mapping[Hashable, Mapping[str, Array]]):
    """The states of the parameters: key -> name -> array. The arrays may be written to, not replaced."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def __getitem__(self, key: Hashable) -> Mapping[str, Array]:
        return MappingProxyType({n: _viewed(array) for n, array in self._optimizer._progress.state[key].items()})

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._optimizer._progress.state)

    def __len__(self) -> int:
        return len(self._optimizer._progress.state)

    def __repr__(self) -> str:
        return repr({key: dict(states) for key, states in self.items()})


class Averages(Mapping[Hashable, Array]):
    """The averages of the parameters: key -> array. The arrays may be written to, not replaced."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    @property
    def of_a_run(self) -> bool:
        """Whether the optimizer has begun."""
        return bool(self._optimizer._progress.clock_of)

    @property
    def decay(self) -> Scheduled | None:
        """The decay that was set; None where no average is made."""
        decay: Scheduled | None = self._optimizer._ema
        return decay

    def __getitem__(self, key: Hashable) -> Array:
        return _viewed(self._optimizer._progress.ema[key])

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._optimizer._progress.ema)

    def __len__(self) -> int:
        return len(self._optimizer._progress.ema)

    def __repr__(self) -> str:
        return repr(self.decay)


class Counts(MutableMapping[Hashable, int]):
    """The number of finished updates of each parameter: key -> int. A number may be set, not removed."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def __getitem__(self, key: Hashable) -> int:
        progress = self._optimizer._progress
        return int(progress.clocks["t"][progress.clock_of[key]])

    def __setitem__(self, key: Hashable, t: int) -> None:
        count = integer(f"t[{key!r}]", t, 0)
        if count >= 2**62:
            raise ValueError(f"t[{key!r}] is {t!r}, expected a number of updates below 2**62")
        with self._optimizer._alone():
            states = self._optimizer._present_rule().states
            if count and states and key in self and not self._optimizer._progress.state.get(key):
                raise ValueError(
                    f"t[{key!r}] is {t!r}, expected 0: the parameter has no states yet, which its first step makes"
                )
            self._optimizer._progress.set_t(key, count)

    def __delitem__(self, key: Hashable) -> None:
        raise TypeError(f"t[{key!r}] cannot be removed: opt.forget({key!r}) forgets the parameter")

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._optimizer._progress.clock_of)

    def __len__(self) -> int:
        return len(self._optimizer._progress.clock_of)

    def __repr__(self) -> str:
        return repr(self._optimizer._progress.t)
