"""
Optimizers of thinc, the library of spaCy, which clip the norm of each gradient to 1 unless told.

Its ``L2`` is `weight_decay` if ``L2_is_weight_decay=False``, which it is not by default. Decoupled decay is not
reproduced, since thinc decays what an update has made, and not what it began with; nor are its averages, which begin
at 0.
"""

from typing import TYPE_CHECKING, Any

from fusedstep import optimizers
from fusedstep.core.hyperparameters import Scheduled

from .preset import absent, presets_of

__all__ = ["SGD", "Adam"]

_preset = presets_of("thinc 9.1.1")


def _check(clip_norm: Scheduled | None, weight_decay: Scheduled) -> None:
    if clip_norm is not None and (callable(weight_decay) or weight_decay != 0):
        raise ValueError(
            f"weight_decay is {weight_decay!r}, expected 0 or clip_norm=None: thinc adds it to the gradient before "
            f"clipping to {clip_norm!r}, fusedstep after"
        )


@_preset("thinc.api.SGD")
def SGD(
    lr: Scheduled, clip_norm: Scheduled | None = 1.0, weight_decay: Scheduled = 0.0, **options: Any
) -> optimizers.SGD:
    """Make a gradient descent that clips."""
    _check(clip_norm, weight_decay)
    return optimizers.SGD(lr, clip_norm=clip_norm, weight_decay=weight_decay, decoupled=False, **options)


@_preset("thinc.api.Adam")
def Adam(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    clip_norm: Scheduled | None = 1.0,
    weight_decay: Scheduled = 0.0,
    **options: Any,
) -> optimizers.Adam:
    """Make an Adam that clips, and whose eps is beside the root of the raw v."""
    _check(clip_norm, weight_decay)
    options |= {"clip_norm": clip_norm, "weight_decay": weight_decay}
    return optimizers.Adam(lr, beta1, beta2, eps, "hat", False, decoupled=False, **options)


if not TYPE_CHECKING:
    __getattr__ = absent(__name__, {"RAdam": "thinc counts its updates from 2 in its corrections"})
