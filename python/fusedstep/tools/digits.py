"""
The example that every optimizer is tried on: handwritten digits, a small network, and its training.

The network is written in NumPy: 64 pixels, 64 hidden units with tanh, 10 digits, softmax and cross-entropy. The demo
and the picture of loss curves train it.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusedstep import optimizers, reference
from fusedstep.core.arrays import is_on_gpu, to_host
from fusedstep.minibatches import minibatches

__all__ = [
    "BATCH",
    "EPOCHS",
    "Array",
    "Digits",
    "Params",
    "Run",
    "accuracy",
    "gradients",
    "initial_params",
    "load",
    "loss",
    "rate",
    "same_bits",
    "train",
]

Array = npt.NDArray[Any]
Params = dict[str, Array]

BATCH = 32
# Epochs by dtype of the parameters: fewer in half precision, where each optimizer trains in six ways.
EPOCHS = {"float32": 60, "bfloat16": 20, "float16": 20}

# Learning rates that suit this example. An optimizer without an entry trains with OTHER_RATE.
RATES = {
    "SGD": 0.1,
    "Momentum": 0.02,
    "NAG": 0.02,
    "Adagrad": 0.03,
    "Adadelta": 1.0,
    "Adam": 0.002,
    "AdamW": 0.002,
    "Adamax": 0.005,
    "Nadam": 0.002,
}
OTHER_RATE = 0.001


def rate(name: str) -> float:
    """Return the learning rate with which an optimizer trains the network."""
    return RATES.get(name, OTHER_RATE)


class Digits(NamedTuple):
    """Images as rows of 64 float32 from 0 to 1, and the digits they show."""

    x: Array
    y: Array
    x_test: Array
    y_test: Array


class Run(NamedTuple):
    """What a training ends with: weights, mean loss before and after each epoch, shares of right answers, time."""

    params: Params
    losses: list[float]
    train_accuracy: float
    test_accuracy: float
    seconds: float  # in the steps of the optimizer alone, without the network


def load() -> Digits:
    """Return scikit-learn's 1797 handwritten digits, a fifth of them for the test."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x.astype(np.float32) / 16, y, test_size=0.2, stratify=y, random_state=0)
    return Digits(x, y, x_test, y_test)


# The network.


def initial_params() -> Params:
    """Return the weights that every training starts from, in float32."""
    rng = np.random.default_rng(0)
    return {
        "w1": rng.standard_normal((64, 64), np.float32) / 8,
        "b1": np.zeros(64, np.float32),
        "w2": rng.standard_normal((64, 10), np.float32) / 8,
        "b2": np.zeros(10, np.float32),
    }


def _forward(params: Params, x: Array) -> tuple[Array, Array]:
    """Return the hidden layer and the logarithms of the ten probabilities."""
    h = np.tanh(x @ params["w1"] + params["b1"])
    z = h @ params["w2"] + params["b2"]
    z -= z.max(axis=1, keepdims=True)
    return h, z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def loss(params: Params, x: Array, y: Array) -> float:
    """Return the mean cross-entropy."""
    return float(-_forward(params, x)[1][np.arange(len(y)), y].mean())


def accuracy(params: Params, x: Array, y: Array) -> float:
    """Return the share of right answers."""
    return float((_forward(params, x)[1].argmax(axis=1) == y).mean())


def gradients(params: Params, x: Array, y: Array) -> Params:
    """Return the gradients of the mean cross-entropy of a batch."""
    h, log_p = _forward(params, x)
    dz = np.exp(log_p)
    dz[np.arange(len(y)), y] -= 1
    dz /= len(y)  # not BATCH: the last batch of an epoch is shorter
    da = (dz @ params["w2"].T) * (1 - h * h)
    return {"w1": x.T @ da, "b1": da.sum(axis=0), "w2": h.T @ dz, "b2": dz.sum(axis=0)}


# The training.


def train(
    optimizer: optimizers.Optimizer | reference.Optimizer,
    digits: Digits,
    epochs: int,
    after_epoch: Callable[[], object] = lambda: None,
    dtype: npt.DTypeLike = np.float32,
    place: Callable[[Array], Array] = np.asarray,
) -> Run:
    """
    Train the network, always from the same weights and with the same batches.

    Parameters
    ----------
    optimizer : Optimizer
        A new optimizer, of `fusedstep` or of `fusedstep.reference`. If it diverges, its loss is infinite or NaN.
    digits : Digits
        What `load` returns.
    epochs : int
        How often to go through the training images.
    after_epoch : callable
        Called without arguments after each epoch.
    dtype : dtype
        The dtype of the parameters and of their gradients. The network computes in float32 in any case.
    place : callable
        Puts an array of NumPy where the steps are to be made, as `cupy.asarray` does. The network computes in NumPy.

    Returns
    -------
    Run
        Weights, losses, accuracies, and the seconds spent in the optimizer.
    """
    params = _placed(_as(dtype, initial_params()), place)
    seconds = 0.0
    batches = minibatches(len(digits.y), BATCH, seed=1)
    with np.errstate(over="ignore", invalid="ignore"):
        losses = [loss(_widened(params), digits.x, digits.y)]
        for _ in range(epochs):
            for rows in batches:
                grads = _as(dtype, gradients(_widened(params), digits.x[rows], digits.y[rows]))
                grads = _placed(grads, place)
                _wait_for(params)
                begin = perf_counter()
                optimizer.step(params, grads)
                _wait_for(params)
                seconds += perf_counter() - begin
            losses.append(loss(_widened(params), digits.x, digits.y))
            after_epoch()
        return Run(
            _placed(params, to_host),
            losses,
            accuracy(_widened(params), digits.x, digits.y),
            accuracy(_widened(params), digits.x_test, digits.y_test),
            seconds,
        )


def _as(dtype: npt.DTypeLike, arrays: Params) -> Params:
    return {key: array.astype(dtype, copy=False) for key, array in arrays.items()}


def _widened(params: Params) -> Params:
    """Return parameters as the network computes with them: float32, in host memory."""
    return _as(np.float32, _placed(params, to_host))


def _placed(arrays: Params, place: Callable[[Array], Array]) -> Params:
    return {key: place(array) for key, array in arrays.items()}


def _wait_for(params: Params) -> None:
    """Wait until the GPU has made its steps, if the parameters are on one."""
    array: Any = params["w1"]
    if is_on_gpu(array):
        array.device.synchronize()


def same_bits(a: Params, b: Params) -> bool:
    """Return whether two sets of weights are equal bit for bit."""
    return a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)
