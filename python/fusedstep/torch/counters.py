"""What PyTorch counts in tensors of no dimension, and the engine in clocks: the tensors follow the clocks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["Counters"]

Tensor = Any  # a torch.Tensor, which type checkers do not know where PyTorch is not installed


class Counters:
    """
    The counters of the parameters of a bucket, beside their parameters.

    Those of one name and device are elements of one tensor, which a step writes on its way. PyTorch counts the writes
    of others, so that clocks can follow them; those of a step it does not count.
    """

    def __init__(self, params: Sequence[Tensor], starts: Mapping[str, float], clocks: np.ndarray[Any, Any]) -> None:
        clock_of = {"step": clocks["t"], "mu_product": clocks["memory"][:, 0]}
        self.starts, self.devices = starts, [p.device for p in params]
        self.clock_of = {name: clock_of[name] for name in starts}
        one_of = dict(zip(self.devices, params, strict=True))
        self.only_device = self.devices[0] if len(one_of) == 1 else None
        number = torch.get_default_dtype()
        with torch.inference_mode(False):  # tensors that are made for inference do not count writes
            self.bases = {
                name: {device: p.new_zeros(len(params), dtype=number) for device, p in one_of.items()}
                for name in starts
            }
        self.elements = {
            name: {device: base.unbind() for device, base in bases.items()} for name, bases in self.bases.items()
        }
        self.values = {name: np.zeros(len(params), torch.zeros(()).numpy().dtype) for name in starts}
        self.versions = self.current_versions()

    def adopt(self, i: int, own: dict[str, Any]) -> list[Tensor]:
        """Put elements into the state of a parameter in place of its counters, and return them, one for each name."""
        found = []
        for name, start in self.starts.items():
            values, clock = self.values[name], self.clock_of[name]
            values[i] = float(own.get(name, start))
            if values.dtype.type(clock[i]) != values[i]:  # else the clock has more digits of the same number
                clock[i] = values[i]
            own[name] = self.elements[name][self.devices[i]][i]
            found.append(own[name])
        return found

    def give(self) -> None:
        """Let the elements have the values that were adopted."""
        for name, bases in self.bases.items():
            for base in bases.values():
                base.copy_(torch.from_numpy(self.values[name]))
        self.versions = self.current_versions()

    def take(self, plan: Any) -> None:
        """Let the clocks of a plan have what somebody has written to elements since the last step."""
        versions = self.current_versions()
        if versions == self.versions:
            return
        plan.leave()
        for name, bases in self.bases.items():
            values, clock = self.values[name], self.clock_of[name]
            for device, base in bases.items():
                here = [i for i, d in enumerate(self.devices) if d == device]
                values[here] = base.cpu().numpy()[here]
            changed = clock.astype(values.dtype) != values
            clock[changed] = values[changed]
        self.versions = versions

    def current_versions(self) -> list[int]:
        """Return how often each tensor was written to."""
        return [base._version for bases in self.bases.values() for base in bases.values()]
