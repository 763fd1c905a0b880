"""Which rows each gradient is averaged over: any batch of any epoch follows from the seed, without a replay."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedstep.core.hyperparameters import integer

__all__ = ["minibatches"]

Rows = npt.NDArray[np.int64]


@dataclass
class minibatches:
    """
    Deal the rows of a data set into batches, each row once per epoch.

    Gradient descent on all rows (`batch_size` n), on mini-batches and on single rows (1) differs in `batch_size` alone.
    A ``for`` loop gets the batches up to the end of an epoch. The next loop gets those of the next epoch, in another
    order; or, where a loop was left early, the rest of its epoch.

    Parameters
    ----------
    n : int
        Number of rows, at least 1.
    batch_size : int
        Rows per batch, at least 1. Where n is no multiple of `batch_size`, the last batch of an epoch is shorter: a
        mean over a batch divides by ``len(rows)``, not by `batch_size`.
    seed : int
        At least 0. The same seed gives the same batches with every version of NumPy, on every platform.
    shuffle : bool
        Whether each epoch has a random order of its own, or all have 0 to n - 1.
    drop_last : bool
        Whether to leave out a last batch that is shorter.

    Attributes
    ----------
    done : int
        Batches given so far, over all epochs, each counted before it is handed out. Nothing else changes: an instance
        whose `done` is set to the number that was saved after a step goes on with the next batch.

    Raises
    ------
    TypeError
        If an argument is no integer, or no bool.
    ValueError
        If an argument is out of range, or if `drop_last` leaves no batch.

    Notes
    -----
    ``len(batches)`` is the number of batches in an epoch, ``divmod(batches.done, len(batches))`` the epoch and place in
    it. ``batches[i]`` is batch i, counted from 0 over all epochs, and leaves `done` alone. Each batch is a new int64
    array, the caller's own. Instances can be copied and pickled.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> x, y = np.array([[1.0, 1], [2, 1], [3, 1], [4, 1], [5, 1]]), np.array([3.0, 5, 7, 9, 11])
    >>> w, opt, batches = np.zeros(2), fs.SGD(lr=0.05), fs.minibatches(len(y), 2, seed=0)
    >>> for epoch in range(400):
    ...     for rows in batches:
    ...         error = x[rows] @ w - y[rows]
    ...         result = opt.step(w, x[rows].T @ error / len(rows))
    >>> len(batches), batches.done, w.round(3).tolist()
    (3, 1200, [2.0, 1.0])
    """

    n: int
    batch_size: int
    seed: int
    shuffle: bool = True
    drop_last: bool = False
    done: int = field(init=False)

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("batch_size", 1), ("seed", 0)):
            setattr(self, name, integer(name, getattr(self, name), least))
        for name in ("shuffle", "drop_last"):
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(f"{name} is {value!r}, expected True or False")
        if self.drop_last and self.batch_size > self.n:
            raise ValueError(f"batch_size is {self.batch_size}, expected at most n = {self.n} with drop_last")
        self._cache: tuple[int, Rows] | None = None  # the last epoch that was asked for, and its order of rows
        self.done = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "done":
            value = integer(name, value, 0)
        elif "done" in vars(self):  # set last by __post_init__, so the arguments are final
            raise AttributeError(f"{name} cannot be set, expected done, or a new minibatches")
        object.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_cache": None}

    __contains__ = None  # `in` would otherwise deal batches

    def __len__(self) -> int:
        return self.n // self.batch_size if self.drop_last else -(-self.n // self.batch_size)

    def __getitem__(self, i: int) -> Rows:
        epoch, position = divmod(integer("i", i, 0), len(self))
        start = position * self.batch_size
        return self._order(epoch)[start : start + self.batch_size].copy()

    def __iter__(self) -> Iterator[Rows]:
        while True:
            rows = self[self.done]
            self.done += 1
            yield rows
            if self.done % len(self) == 0:
                return

    def _order(self, epoch: int) -> Rows:
        cache = self._cache
        if cache is None or cache[0] != epoch:
            cache = epoch, np.arange(self.n, dtype=np.int64)
            if self.shuffle:
                # NumPy has frozen the streams of RandomState, not those of Generator (NEP 19). As a spawn key, the
                # epoch cannot be mistaken for a part of a long seed.
                bits = np.random.MT19937(np.random.SeedSequence(self.seed, spawn_key=(epoch,)))
                np.random.RandomState(bits).shuffle(cache[1])
            object.__setattr__(self, "_cache", cache)
        return cache[1]
