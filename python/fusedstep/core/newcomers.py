"""What hyperparameters of other libraries are called here, for messages to those who come from there."""

from collections.abc import Collection

__all__ = ["wanted"]

# A hyperparameter of another library -> its names here, for classes that have all of them.
_NAMES: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr",),
    "step_size": ("lr",),
    "stepsize": ("lr",),
    "eta": ("lr",),
    "betas": ("beta1", "beta2"),
    "beta_1": ("beta1",),
    "beta_2": ("beta2",),
    "b1": ("beta1",),
    "b2": ("beta2",),
    "alpha": ("rho",),
    "beta": ("momentum",),
    "mu": ("momentum",),
    "epsilon": ("eps",),
    "eps_root": ("eps_mode",),
    "initial_accumulator_value": ("initial_accumulator",),
    "momentum_decay": ("schedule_decay",),
    "clip": ("clip_value", "clip_norm", "clip_global_norm"),
    "clipvalue": ("clip_value",),
    "clipnorm": ("clip_norm",),
    "global_clipnorm": ("clip_global_norm",),
    "max_norm": ("clip_global_norm",),
    "max_grad_norm": ("clip_global_norm",),
    "l2": ("weight_decay",),
    "wd": ("weight_decay",),
    "decoupled_weight_decay": ("decoupled",),
    "use_ema": ("ema",),
    "ema_momentum": ("ema",),
    "loss_scale": ("grad_scale",),
    "loss_scale_factor": ("grad_scale",),
}
# An option of another library -> what does the same here.
_WAYS = {
    "nesterov": "another class: NAG, or Nadam for Adam with Nesterov momentum",
    "momentum": "another class: Momentum, or NAG for Nesterov momentum",
    "amsgrad": "fusedstep.Adam or AdamW",
    "params": "hyperparameters only: parameters go to step(params, grads)",
    "parameters": "hyperparameters only: parameters go to step(params, grads)",
    "var_list": "hyperparameters only: parameters go to step(params, grads)",
    "grads": "hyperparameters only: gradients go to step(params, grads)",
    "decoupled": "nothing in its place: weight decay is always decoupled here",
    "lr_decay": "a schedule as lr, such as fusedstep.schedules.inverse_time",
    "decay": "a schedule as lr, such as fusedstep.schedules.inverse_time, or weight_decay",
    "schedule": "a schedule as lr: see fusedstep.schedules",
    "foreach": "nothing in its place: a step over all parameters is always one call",
    "fused": "nothing in its place: every step is fused",
    "capturable": "nothing in its place: every step can be captured once it has been made",
}


def wanted(name: str, known: Collection[str]) -> str:
    """
    Return what a class wants in place of an option that it does not have.

    Parameters
    ----------
    name : str
        The option.
    known : collection of str
        The hyperparameters of the class.
    """
    here = _NAMES.get(name, ())
    if here and set(here) <= set(known):
        return ", ".join(here)
    return _WAYS.get(name) or f"one of {', '.join(known)}"
