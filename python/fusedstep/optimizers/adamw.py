from dataclasses import dataclass, field

from fusedstep.core.hyperparameters import Scheduled

from .adam import Adam

__all__ = ["AdamW"]


@dataclass(eq=False)
class AdamW(Adam):
    r"""
    Adam with decoupled weight decay :math:`\lambda`: ``p`` also loses :math:`lr \, \lambda \, p` in each update.

    Parameters
    ----------
    lr, beta1, beta2, eps, eps_mode, amsgrad
        As for `Adam`.
    weight_decay : float or callable
        :math:`\lambda`, at least 0.
    **options
        Those of `Optimizer`, where it is also said what a callable is. `decoupled` is always True.

    References
    ----------
    Loshchilov & Hutter 2019, "Decoupled weight decay regularization", Algorithm 2.
    """

    weight_decay: Scheduled = field(default=0.01, kw_only=True)
    decoupled: bool = field(default=True, init=False)
    always_decoupled = True
