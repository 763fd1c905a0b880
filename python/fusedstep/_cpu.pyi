from typing import Any, NamedTuple

from numpy import dtype
from numpy.typing import NDArray

class Rule(NamedTuple):
    id: int
    states: tuple[str, ...]
    hypers: tuple[str, ...]
    memory: tuple[str, ...]
    counts: bool

version: str
rules: dict[str, Rule]
isas: tuple[str, ...]
built_isas: list[str]
compiler: str
flags: str
commit: str
narrow: tuple[str, ...]
tickets: int
max_memory: int
max_states: int
max_hypers: int
max_operations: int
max_constants: int
max_scalars: int
operations: tuple[str, ...]

def leaves(params: object) -> tuple[list[Any], list[Any]]: ...
def tell_writes(params: object) -> None: ...
def use_code(wanted: bool) -> None: ...
def uses_code() -> bool: ...
def address_of(array: object) -> int: ...
def are_kept(places: list[tuple[dict[str, Any], tuple[Any, ...]]], addresses: NDArray[Any]) -> bool: ...
def why_no_code() -> str: ...
def code_of(rule: int, isa: str, dtype: str, ending: str) -> bytes: ...
def isa() -> str: ...
def use_isa(name: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def sums_of_blocks(array: object, param: object = None, unit: float = 1.0) -> NDArray[Any]: ...
def sum_of_sums(sums: NDArray[Any]) -> float: ...
def sum_parts(arrays: list[Any], out: object) -> None: ...
def update(
    rule: int, arrays: tuple[Any, ...], hypers: bytes, t: object, memory: tuple[float, ...]
) -> tuple[float, ...]: ...
def define(
    name: str,
    states: tuple[str, ...],
    hypers: tuple[str, ...],
    memory: tuple[str, ...],
    memory_start: list[float],
    constants: list[float],
    numbers: list[tuple[int, int, int, int]],
    memory_after: list[int],
    scalars: list[int],
    elements: list[tuple[int, int, int, int]],
    update: int,
    states_after: list[int],
) -> Rule: ...

class PendingFinding:
    @property
    def is_captured(self) -> bool: ...
    def read(self) -> tuple[float | None, int | None, float | None]: ...

class Plan:
    def __init__(self, rule: int, params: object, of_torch: bool = False) -> None: ...
    @property
    def keys(self) -> list[Any]: ...
    @property
    def was_captured(self) -> bool: ...
    def check(
        self, params: object, grads: object, averaged: list[bool]
    ) -> list[tuple[tuple[int, ...], dtype[Any], int | None, tuple[int, ...], bool] | None]: ...
    def bind(
        self,
        kept: list[tuple[Any, ...] | None],
        clocks: NDArray[Any],
        clock_of: NDArray[Any],
        noise_ids: NDArray[Any],
        origins: list[int] | None = None,
    ) -> None: ...
    def set_hypers(
        self, rows: list[list[Any]], row_of: NDArray[Any], skip_nonfinite: bool, measures_updates: bool
    ) -> None: ...
    def run(
        self,
        params: object,
        grads: object,
        grad_scale: object,
        stream: object,
        loss_scale: object = 1.0,
        skip: object = 0.0,
        sums: object = None,
        others: object = None,
    ) -> bool | tuple[float | None, int | None, float | None] | PendingFinding: ...
    def run_and_set(
        self,
        params: object,
        grads: object,
        grad_scale: object,
        stream: object,
        owner: object,
        name: str,
        value: object,
        sums: object = None,
        others: object = None,
    ) -> bool | tuple[float | None, int | None, float | None] | PendingFinding: ...
    def squares_of_updates(self) -> list[NDArray[Any] | None]: ...
    def wait(self) -> None: ...
    def refresh(self) -> None: ...
    def leave(self) -> None: ...
