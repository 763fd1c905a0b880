"""The classes: how a group of PyTorch's is called in our words."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from fusedstep import optimizers

from .bucket import state_dtype
from .fused import Fused, plain

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"]

COMMON = {"lr": "lr", "weight_decay": "weight_decay", "maximize": "maximize"}
WITH_EPS = COMMON | {"eps": "eps"}
DECOUPLED = {"decoupled_weight_decay": "decoupled"}


class SGD(Fused, torch.optim.SGD):
    """`torch.optim.SGD`, plain, with momentum, or with that of Nesterov; without states where the momentum is 0."""

    _ours = optimizers.Momentum
    _names = COMMON | {"momentum": "momentum", "dampening": "dampening"}
    _counters: ClassVar = {}

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "sgd" if plain(group["momentum"]) == 0 else "nag" if group["nesterov"] else "momentum"


class Adam(Fused, torch.optim.Adam):
    """`torch.optim.Adam`, also with `amsgrad`."""

    _ours = optimizers.Adam
    _names = WITH_EPS | DECOUPLED

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "amsgrad" if group["amsgrad"] else "adam"


class AdamW(Adam, torch.optim.AdamW):
    """`torch.optim.AdamW`."""


class RMSprop(Fused, torch.optim.RMSprop):
    """`torch.optim.RMSprop`, also centered, with momentum, or both."""

    _ours = optimizers.RMSprop
    _names = WITH_EPS | {"alpha": "rho", "momentum": "momentum"}

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "rmsprop" + "_centered" * bool(group["centered"]) + "_momentum" * (plain(group["momentum"]) > 0)


class Adagrad(Fused, torch.optim.Adagrad):
    """`torch.optim.Adagrad`; with `lr_decay`, parameters with different numbers of updates have rates of their own."""

    _ours = optimizers.Adagrad
    _names = WITH_EPS | {"lr_decay": "lr_decay"}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for group in self.param_groups:  # PyTorch has made the sums, in the type of their parameters
            for p in group["params"]:
                self.state[p]["sum"] = self.state[p]["sum"].to(state_dtype(p, group.get("options", {})))

    def _start(self, group: Mapping[str, Any], p: Any) -> complex:
        value: float = group["initial_accumulator_value"]
        return complex(value, value) if p.is_complex() else value

    def _values(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        found = super()._values(group, t)
        found["lr"] = found["lr"] / (1 + t * found.pop("lr_decay"))
        return found

    def _is_scheduled(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        return any(group["lr_decay"] for group in groups)


class Adadelta(Fused, torch.optim.Adadelta):
    """`torch.optim.Adadelta`."""

    _ours = optimizers.Adadelta
    _names = WITH_EPS | {"rho": "rho"}


class Adamax(Fused, torch.optim.Adamax):
    """`torch.optim.Adamax`."""

    _ours = optimizers.Adamax
    _names = WITH_EPS


class NAdam(Fused, torch.optim.NAdam):
    """`torch.optim.NAdam`; the product of its momenta is kept in float64, and shown in the state in float32."""

    _ours = optimizers.Nadam
    _names = WITH_EPS | DECOUPLED | {"momentum_decay": "schedule_decay"}
    _counters: ClassVar = {"step": 0.0, "mu_product": 1.0}


class RAdam(Fused, torch.optim.RAdam):
    """`torch.optim.RAdam`."""

    _ours = optimizers.RAdam
    _names = WITH_EPS | DECOUPLED
