"""
Train a small network on handwritten digits with every optimizer: `python -m fusedstep demo`.

Each optimizer trains twice from the same weights on the same batches, once with the kernels and once with the class of
the same name in `fusedstep.reference`: accuracy, time, and whether both end with the same bits.
"""

import argparse
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import optimizers, reference
from .minibatches import minibatches
from .verify import classes

__all__ = ["Digits", "Run", "gradients", "load", "main", "quadratic", "same_bits", "train"]

Array = npt.NDArray[Any]
Params = dict[str, Array]

BATCH = 32
RATES = {
    "SGD": 0.1,
    "Momentum": 0.02,
    "NAG": 0.02,
    "Adagrad": 0.03,
    "RMSprop": 0.001,
    "Adadelta": 1.0,
    "Adam": 0.002,
    "AdamW": 0.002,
    "Adamax": 0.005,
    "Nadam": 0.002,
}
OTHER_RATE = 0.001


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
    seconds: float  # in the optimizer's steps alone


def load() -> Digits:
    """Return scikit-learn's 1797 handwritten digits, a fifth of them for the test."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x.astype(np.float32) / 16, y, test_size=0.2, stratify=y, random_state=0)
    return Digits(x, y, x_test, y_test)


def _initial_params() -> Params:
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


def _loss(params: Params, x: Array, y: Array) -> float:
    return float(-_forward(params, x)[1][np.arange(len(y)), y].mean())


def _accuracy(params: Params, x: Array, y: Array) -> float:
    return float((_forward(params, x)[1].argmax(axis=1) == y).mean())


def gradients(params: Params, x: Array, y: Array) -> Params:
    """Return the gradients of the mean cross-entropy of a batch."""
    h, log_p = _forward(params, x)
    dz = np.exp(log_p)
    dz[np.arange(len(y)), y] -= 1
    dz /= len(y)  # not BATCH: the last batch of an epoch is shorter
    da = (dz @ params["w2"].T) * (1 - h * h)
    return {"w1": x.T @ da, "b1": da.sum(axis=0), "w2": h.T @ dz, "b2": dz.sum(axis=0)}


def train(
    optimizer: optimizers.Optimizer | reference.Optimizer,
    digits: Digits,
    epochs: int,
    after_epoch: Callable[[], object] = lambda: None,
) -> Run:
    """
    Train the network, always from the same weights and with the same batches.

    Parameters
    ----------
    optimizer : Optimizer
        A new one, of `fusedstep` or of `fusedstep.reference`.
    digits : Digits
        What `load` returns.
    epochs : int
        How often to go through the training images.
    after_epoch : callable
        Called without arguments after each epoch.

    Returns
    -------
    Run
        Weights, losses, accuracies, and the seconds spent in the optimizer.
    """
    params = _initial_params()
    losses = [_loss(params, digits.x, digits.y)]
    seconds = 0.0
    batches = minibatches(len(digits.y), BATCH, seed=1)
    for _ in range(epochs):
        for rows in batches:
            grads = gradients(params, digits.x[rows], digits.y[rows])
            begin = perf_counter()
            optimizer.step(params, grads)
            seconds += perf_counter() - begin
        losses.append(_loss(params, digits.x, digits.y))
        after_epoch()
    return Run(
        params,
        losses,
        _accuracy(params, digits.x, digits.y),
        _accuracy(params, digits.x_test, digits.y_test),
        seconds,
    )


def same_bits(a: Params, b: Params) -> bool:
    """Return whether two sets of weights are equal bit for bit."""
    return a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)


def _train_all(epochs: int) -> dict[str, tuple[Run, Run]]:
    """Return the two runs of each optimizer, with the kernels and with the reference, under a progress bar."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    digits = load()
    names = [cls.__name__ for cls in classes()]
    runs = {}
    columns = (TextColumn("{task.description:9}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), transient=True) as progress:
        task = progress.add_task("", total=2 * epochs * len(names))
        for name in names:
            progress.update(task, description=name)
            fused, plain = (
                train(getattr(package, name)(lr=_rate(name)), digits, epochs, lambda: progress.advance(task))
                for package in (optimizers, reference)
            )
            runs[name] = fused, plain
    return runs


def _rate(name: str) -> float:
    return RATES.get(name, OTHER_RATE)


def _print_table(runs: dict[str, tuple[Run, Run]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        caption="Times of all steps, without the network. NumPy:\n"
        "fusedstep.reference, which is written to be read, not to be fast.",
        caption_justify="left",
    )
    table.add_column("optimizer", no_wrap=True)
    for title in ("train", "test", "loss", "fusedstep", "NumPy", "ratio", "same bits"):
        table.add_column(title, justify="right")
    for name, (fused, plain) in runs.items():
        same = same_bits(fused.params, plain.params)
        table.add_row(
            name,
            f"{fused.train_accuracy:.1%}",
            f"{fused.test_accuracy:.1%}",
            f"{fused.losses[-1]:.2g}",
            f"{fused.seconds * 1e3:.1f} ms",
            f"{plain.seconds * 1e3:.0f} ms",
            f"{plain.seconds / fused.seconds:.0f}x",
            "[green]yes[/]" if same else "[bold red]NO[/]",
        )
    Console().print(table)


def _plot(runs: dict[str, tuple[Run, Run]], path: Path) -> None:
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    by_end = sorted(runs, key=lambda name: -runs[name][0].losses[-1])  # the legend in the order of the curves
    for i, name in enumerate(by_end):
        style = ("-", "--", "-.", ":")[i % 4]
        axes.semilogy(runs[name][0].losses, style, color=f"C{i}", linewidth=1.8, label=f"{name}, lr {_rate(name):g}")
    axes.set(title="Handwritten digits, 64-64-10 network", xlabel="epoch", ylabel="mean loss on the training images")
    axes.margins(x=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handlelength=3)
    figure.savefig(path, dpi=150)


def _descend(optimizer: optimizers.Optimizer) -> list[float]:
    """Return x before and after each of ten updates on f(x) = x**2."""
    x = np.array([10.0])
    path = [x.item()]
    for _ in range(10):
        optimizer.step(x, 2 * x)
        path.append(x.item())
    return path


def _quadratic_paths() -> dict[str, list[float]]:
    classics = (
        optimizers.SGD(lr=0.1),
        optimizers.Momentum(lr=0.1, velocity="step"),
        optimizers.Adagrad(lr=1.0, eps=1e-8),
        optimizers.RMSprop(lr=0.1, rho=0.9),
        optimizers.Adam(lr=0.1),
    )
    return {type(optimizer).__name__: _descend(optimizer) for optimizer in classics}


def quadratic() -> dict[str, float]:
    """Return where each of the five classic optimizers is after ten updates on f(x) = x**2 from x = 10, in float64."""
    return {name: path[-1] for name, path in _quadratic_paths().items()}


def _print_quadratic() -> None:
    paths = _quadratic_paths()
    print("f(x) = x^2, g = 2x, from x = 10\n")
    print(" t", *(f"{name:>12}" for name in paths))
    for t, row in enumerate(zip(*paths.values(), strict=True)):
        print(f"{t:2}", *(f"{x:12.6f}" for x in row))
    print()
    for name, path in paths.items():
        print(f"{name:9}{path[-1]!r}")


def main(argv: list[str]) -> int:
    """
    Run the demo.

    Parameters
    ----------
    argv : list of str
        The arguments of ``python -m fusedstep demo``.

    Returns
    -------
    int
        0, or 1 if an optimizer and its reference end with different bits, or 2 if a package is missing.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fusedstep demo",
        description="Train a small network on handwritten digits with every optimizer, with the kernels and in NumPy.",
    )
    parser.add_argument("--epochs", type=int, default=60, help="times through the training images (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("fusedstep-demo.png"), help="PNG of the loss curves (%(default)s)"
    )
    parser.add_argument("--quadratic", action="store_true", help="only show ten updates on f(x) = x^2, from x = 10")
    options = parser.parse_args(argv)
    if options.quadratic:
        _print_quadratic()
        return 0
    if options.epochs < 1:
        parser.error(f"--epochs is {options.epochs}, expected at least 1")
    if options.output.suffix != ".png" or not options.output.parent.is_dir():
        parser.error(f"--output is {options.output}, expected a .png file in a folder that exists")

    needed = {"sklearn": "scikit-learn", "rich": "rich", "matplotlib": "matplotlib"}
    if missing := [package for module, package in needed.items() if find_spec(module) is None]:
        print(f'demo needs {", ".join(missing)}: python -m pip install "fusedstep[demo]"', file=sys.stderr)
        return 2

    runs = _train_all(options.epochs)
    _print_table(runs)
    _plot(runs, options.output)
    print(f"Loss curves: {options.output}")
    return 0 if all(same_bits(fused.params, plain.params) for fused, plain in runs.values()) else 1
