"""Made by `python -m fusedstep.tools.stub`."""

from typing import Any, Literal, Unpack

from fusedstep.core.functions import DecoupledOptions as DecoupledOptions
from fusedstep.core.functions import Options as Options

__all__: list[str]

def sgd(
    p: Any,
    g: Any,
    *,
    lr: float,
    **options: Unpack[Options],
) -> None: ...
def momentum(
    p: Any,
    g: Any,
    b: Any,
    *,
    t: int,
    lr: float,
    momentum: float = 0.9,
    dampening: float = 0.0,
    dampen_first: bool = False,
    velocity: Literal["grad", "step"] = "grad",
    **options: Unpack[Options],
) -> None: ...
def nag(
    p: Any,
    g: Any,
    b: Any,
    *,
    lr: float,
    momentum: float = 0.9,
    velocity: Literal["grad", "step"] = "grad",
    **options: Unpack[Options],
) -> None: ...
def adagrad(
    p: Any,
    g: Any,
    a: Any,
    *,
    lr: float,
    eps: float = 1e-10,
    eps_mode: Literal["outside", "inside"] = "outside",
    **options: Unpack[Options],
) -> None: ...
def rmsprop(
    p: Any,
    g: Any,
    v: Any,
    *,
    lr: float,
    rho: float = 0.99,
    eps: float = 1e-08,
    eps_mode: Literal["outside", "inside"] = "outside",
    **options: Unpack[Options],
) -> None: ...
def rmsprop_centered(
    p: Any,
    g: Any,
    v: Any,
    m: Any,
    *,
    lr: float,
    rho: float = 0.99,
    eps: float = 1e-08,
    eps_mode: Literal["outside", "inside"] = "outside",
    **options: Unpack[Options],
) -> None: ...
def rmsprop_momentum(
    p: Any,
    g: Any,
    v: Any,
    b: Any,
    *,
    lr: float,
    rho: float = 0.99,
    eps: float = 1e-08,
    eps_mode: Literal["outside", "inside"] = "outside",
    momentum: float = 0.9,
    velocity: Literal["grad", "step"] = "grad",
    **options: Unpack[Options],
) -> None: ...
def rmsprop_centered_momentum(
    p: Any,
    g: Any,
    v: Any,
    m: Any,
    b: Any,
    *,
    lr: float,
    rho: float = 0.99,
    eps: float = 1e-08,
    eps_mode: Literal["outside", "inside"] = "outside",
    momentum: float = 0.9,
    velocity: Literal["grad", "step"] = "grad",
    **options: Unpack[Options],
) -> None: ...
def adadelta(
    p: Any,
    g: Any,
    v: Any,
    x: Any,
    *,
    lr: float,
    rho: float = 0.9,
    eps: float = 1e-06,
    **options: Unpack[Options],
) -> None: ...
def adam(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    t: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-08,
    eps_mode: Literal["outside", "hat", "inside"] = "outside",
    **options: Unpack[Options],
) -> None: ...
def amsgrad(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    w: Any,
    *,
    t: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-08,
    eps_mode: Literal["outside", "hat", "inside"] = "outside",
    **options: Unpack[Options],
) -> None: ...
def adamax(
    p: Any,
    g: Any,
    m: Any,
    w: Any,
    *,
    t: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-08,
    eps_mode: Literal["max", "outside"] = "max",
    **options: Unpack[Options],
) -> None: ...
def nadam(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    t: int,
    product: float,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-08,
    schedule_decay: float = 0.004,
    **options: Unpack[Options],
) -> float: ...
def radam(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    t: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-08,
    **options: Unpack[Options],
) -> None: ...
def adabelief(
    p: Any,
    g: Any,
    m: Any,
    s: Any,
    *,
    t: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-16,
    **options: Unpack[Options],
) -> None: ...
def lion(
    p: Any,
    g: Any,
    m: Any,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    **options: Unpack[DecoupledOptions],
) -> None: ...
def __getattr__(name: str) -> Any: ...  # a rule that is not written out above
