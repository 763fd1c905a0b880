"""
PyTorch's optimizers with the steps of fusedstep, for parameters in host memory.

A program changes one import, ``from fusedstep.torch import AdamW``; everything else stays. Each class is a subclass of
the one of its name in `torch.optim`: constructor, groups, hooks, schedulers, state dicts and pickles are PyTorch's.
"""

try:
    import torch as _torch  # noqa: F401 (for the message)
except ImportError as error:
    raise ImportError(f'fusedstep.torch needs PyTorch: python -m pip install "fusedstep[torch]" ({error})') from error

from .optimizers import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"]
