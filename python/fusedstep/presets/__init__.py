"""
The optimizers of other libraries: their defaults, and their forms of the formulas, as optimizers of ours.

There is a module for each library, with functions that are called like our classes: `presets.keras3.Adam` makes an
`fusedstep.Adam` whose updates are those of ``keras.optimizers.Adam``, to some units in the last place. Arguments have
our names and their defaults. What a library has and we cannot reproduce is not there; asking for it says why. What was
compared with what is on the page `docs/guide/dialects.md`.

========================================  ====================================================
module                                    library
========================================  ====================================================
`chainer`                                 Chainer
`keras2`                                  Keras 2, before it became a part of TensorFlow
`keras3`                                  Keras 3, also tf.keras since 2.11
`lua`                                     torch/optim, of Torch 7
`mlx`                                     MLX
`optax`                                   optax
`sklearn`                                 scikit-learn's neural networks
`tf1`                                     TensorFlow 1
`tf_keras`                                tf.keras up to 2.10
`thinc`                                   thinc, the library of spaCy
`torch`                                   PyTorch
========================================  ====================================================

Examples
--------
>>> from fusedstep import presets
>>> presets.keras3.Adam(lr=0.01)
Adam(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-07, eps_mode='hat', amsgrad=False, decoupled=True)
>>> presets.chainer.NesterovAG
Traceback (most recent call last):
AttributeError: fusedstep.presets.chainer has no NesterovAG: the momentum is squared on its new velocity
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import chainer, keras2, keras3, lua, mlx, optax, sklearn, tf1, tf_keras, thinc, torch

__all__ = ["chainer", "keras2", "keras3", "lua", "mlx", "optax", "sklearn", "tf1", "tf_keras", "thinc", "torch"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name[:2] == "__")})
