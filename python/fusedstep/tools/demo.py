"""
Train a small network on handwritten digits with every optimizer: `python -m fusedstep demo`.

Each optimizer trains twice from the same weights on the same batches, once with the kernels and once with the class of
the same name in `fusedstep.reference`. A table shows accuracy, time, and whether both end with the same bits. With
`--dtype bfloat16` or `--dtype float16` every way to keep parameters in 16 bits is tried, beside float32. With
`--device cuda` the parameters are arrays of CuPy, and the kernels make their steps on the GPU.
"""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusedstep import optimizers, reference
from fusedstep.core.settings import info
from fusedstep.optimizers import classes

from .digits import EPOCHS, Array, Digits, Run, load, rate, same_bits, train
from .extras import is_missing
from .plot.losses import draw_losses

__all__ = ["Storage", "main", "quadratic", "storages"]

# The table and the picture of a half-precision dtype.
WIDTH = 100  # columns; in a narrower terminal, loss and right answers stand below each other
HEAD = "params\nrounding\nstates\nbytes\noptimizer"
CAPTION = """\
After the last epoch: mean loss on the training images, % of right answers on the test images.
The network computes in float32; its gradients are rounded to {half}.
bytes: of one element in Adam, parameter and states.
nearest loses updates below half a unit in the last place; stochastic counts them on average.
master: the parameter is the rounded float32 master, here master_weights={master!r}.
{note}
Lion's steps do not get smaller: its last losses are noise."""
NOTES = {
    "bfloat16": "bfloat16 states, nearest: Adam multiplies v by 0.999, which changes nothing: v never sinks.",
    "float16": "float16 states: 0.001 g^2, as Adam adds it to v, is 0 or noise below |g| = 0.005: long steps.",
}
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "0.78", "linewidth": 6},
    {"color": "C3", "linewidth": 1.4, "linestyle": (0, (5, 1.5))},
    {"color": "C3", "linewidth": 1.4, "linestyle": (0, (1, 1))},
    {"color": "C0", "linewidth": 1.4, "marker": "o", "markersize": 4, "markevery": (0.0, 0.2), "linestyle": ""},
    {"color": "C0", "linewidth": 1.4, "marker": "x", "markersize": 5, "markevery": (0.1, 0.2), "linestyle": ""},
    {"color": "black", "linewidth": 1},
)
# By the name of the optimizer, for each storage: the run with the kernels, and the one with the reference.
Runs = dict[str, list[tuple[Run, Run]]]


class Storage(NamedTuple):
    """How numbers are kept between the steps: parameters and gradients in `dtype`, states as the options say."""

    name: str
    dtype: np.dtype[Any]
    options: dict[str, Any]

    @property
    def states(self) -> str:
        """The dtype of the states."""
        return self.dtype.name if self.options.get("state_dtype") == "same" else "float32"

    @property
    def bytes(self) -> int:
        """The bytes that Adam keeps for one element: the parameter, its master and its states."""
        p = np.zeros(1, self.dtype)
        adam = optimizers.Adam(**self.options)
        adam.step(p, p.copy())
        return p.nbytes + sum(state.nbytes for state in adam.state[0].values())


def storages(dtype: str) -> list[Storage]:
    """Return the storages that are compared: float32, and every way to keep parameters in a `dtype` of 16 bits."""
    single = Storage("float32", np.dtype(np.float32), {})
    if dtype == "float32":
        return [single]
    half = np.dtype(import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)
    without_master = [
        Storage(rounding, half, {"rounding": rounding, "state_dtype": state_dtype})
        for rounding in ("nearest", "stochastic")
        for state_dtype in ("float32", "same")
    ]
    return [single, *without_master, Storage("master", half, {"master_weights": _master(dtype)})]


def _master(dtype: str) -> str | bool:
    return "split" if dtype == "bfloat16" else True


def _both(
    name: str,
    storage: Storage,
    digits: Digits,
    epochs: int,
    after_epoch: Callable[[], object],
    place: Callable[[Array], Array] = np.asarray,
) -> tuple[Run, Run]:
    """Train with an optimizer twice, and return the run with the kernels and the one with the reference."""
    fused, plain = (
        train(getattr(package, name)(lr=rate(name), **storage.options), digits, epochs, after_epoch, storage.dtype, at)
        for package, at in ((optimizers, place), (reference, np.asarray))
    )
    return fused, plain


def _all_same(pairs: list[tuple[Run, Run]]) -> bool:
    return all(same_bits(fused.params, plain.params) for fused, plain in pairs)


def _train_all(epochs: int, kept: list[Storage], place: Callable[[Array], Array] = np.asarray) -> Runs:
    """Train with every optimizer and its reference, for each storage, under a progress bar."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    digits = load()
    runs: Runs = {cls.__name__: [] for cls in classes()}
    columns = (TextColumn("{task.description:9}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), transient=True) as progress:
        task = progress.add_task("", total=2 * epochs * len(runs) * len(kept))
        for name, pairs in runs.items():
            progress.update(task, description=name)
            for storage in kept:
                pairs.append(_both(name, storage, digits, epochs, lambda: progress.advance(task), place))
    return runs


def _table(titles: list[str], caption: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, caption=caption, caption_justify="left")
    table.add_column(titles[0], no_wrap=True)
    for title in titles[1:]:
        table.add_column(title, justify="right")
    return table


def _answer(yes: bool) -> str:
    return "[green]yes[/]" if yes else "[bold red]NO[/]"


def _table_of_times(runs: Runs) -> Any:
    """Return the table of a demo in float32: a row for each optimizer, with times."""
    table = _table(
        ["optimizer", "train", "test", "loss", "fusedstep", "NumPy", "ratio", "same bits"],
        "Times of all steps, without the network. NumPy:\n"
        "fusedstep.reference, which is written to be read, not to be fast.",
    )
    for name, [(fused, plain)] in runs.items():
        table.add_row(
            name,
            f"{fused.train_accuracy:.1%}",
            f"{fused.test_accuracy:.1%}",
            f"{fused.losses[-1]:.2g}",
            f"{fused.seconds * 1e3:.1f} ms",
            f"{plain.seconds * 1e3:.0f} ms",
            f"{plain.seconds / fused.seconds:.0f}x",
            _answer(same_bits(fused.params, plain.params)),
        )
    return table


def _table_of_storages(runs: Runs, kept: list[Storage], width: int) -> Any:
    """Return the table of a demo in half precision: a row for each optimizer, a column for each storage."""
    gap, end = (" ", "") if width >= WIDTH else ("\n", "\n")
    half = kept[-1].dtype.name
    titles = [
        f"{storage.dtype}\n{storage.name if storage.options else ''}\n{storage.states}\n{storage.bytes}\nloss{gap}test"
        for storage in kept
    ]
    caption = CAPTION.format(half=half, master=_master(half), note=NOTES[half])
    table = _table([HEAD + end, *titles, "\n\n\nsame\nbits" + end], caption)
    for name, pairs in runs.items():
        ends = [f"{_short(fused.losses[-1])}{gap}{100 * fused.test_accuracy:4.1f}" for fused, _ in pairs]
        table.add_row(name, *ends, _answer(_all_same(pairs)))
    return table


def _short(loss: float) -> str:
    return f"{loss:.4f}" if loss >= 0.001 else f"{loss:.0e}"


def _plot_storages(runs: Runs, kept: list[Storage], path: Path) -> None:
    """Draw the loss curves of a demo in half precision: a panel for each optimizer, a line for each storage."""
    from matplotlib.figure import Figure

    rows = len(runs) // 3 + 1  # one panel more than optimizers, for the legend
    figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, 3, sharex=True, squeeze=False).reshape(-1)
    for axes, (name, pairs) in zip(panels, runs.items(), strict=False):
        for (fused, _), storage, style in zip(pairs, kept, STYLES, strict=True):
            label = storage.name if storage is kept[0] else f"{storage.name}, {storage.states} states"
            axes.semilogy(fused.losses, label=label, **style)
        axes.set_title(f"{name}, lr {rate(name):g}", fontsize=10)
        axes.margins(x=0)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8, labelbottom=True)
    for axes in panels[len(runs) :]:
        axes.axis("off")
    panels[len(runs)].legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False, handlelength=4)
    figure.suptitle(f"Handwritten digits, 64-64-10 network, parameters in {kept[-1].dtype}")
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("mean loss on the training images", fontsize=10)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fusedstep demo",
        description="Train a small network on handwritten digits with every optimizer, with the kernels and in NumPy.",
    )
    parser.add_argument(
        "--dtype",
        choices=EPOCHS,
        default="float32",
        help="of the parameters (%(default)s); the others are compared with float32, in every way to keep them",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where steps are made (%(default)s)")
    defaults = ", ".join(f"{epochs} for {dtype}" for dtype, epochs in EPOCHS.items())
    parser.add_argument("--epochs", type=int, help=f"times through the training images ({defaults})")
    parser.add_argument(
        "--output", type=Path, default=Path("fusedstep-demo.png"), help="PNG of the loss curves (%(default)s)"
    )
    parser.add_argument("--quadratic", action="store_true", help="only show ten updates on f(x) = x^2, from x = 10")
    parser.add_argument("--ranks", type=int, help="only train with AdamW on 1, 2, ... up to so many ranks (1 to 64)")
    parser.add_argument(
        "--asynchronous",
        type=int,
        metavar="WORKERS",
        help="only train with AdamW on so many workers that do not wait for each other (1 to 64), and repeat the run",
    )
    parser.add_argument(
        "--staleness",
        type=int,
        help="of --asynchronous: how many updates a worker may be ahead of the slowest one (no bound)",
    )
    return parser


def _run_of_many(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Run the demo of several ranks, or that of asynchronous workers, and return its exit code."""
    name = "ranks" if options.asynchronous is None else "asynchronous"
    number = getattr(options, name)
    if options.ranks is not None and options.asynchronous is not None:
        parser.error("--ranks and --asynchronous are both given, expected one of them")
    if not 1 <= number <= 64:
        parser.error(f"--{name} is {number}, expected 1 to 64")
    if options.staleness is not None and options.staleness < 0:
        parser.error(f"--staleness is {options.staleness}, expected at least 0")
    if is_missing("demo", {"sklearn": ("scikit-learn", "demo")}):
        return 2
    epochs = options.epochs or 5
    if name == "ranks":
        from .ranks import print_runs

        return print_runs(number, epochs)
    from .asynchronous import print_run

    return print_run(number, options.staleness, epochs)


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
        0, or 1 if an optimizer and its reference, runs on ranks, or a run and its replay end with different bits, or 2
        if a package or a GPU is missing, or ranks are too few or too many.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.quadratic:
        _print_quadratic()
        return 0
    epochs = EPOCHS[options.dtype] if options.epochs is None else options.epochs
    if epochs < 1:
        parser.error(f"--epochs is {epochs}, expected at least 1")
    if options.output.suffix != ".png" or not options.output.parent.is_dir():
        parser.error(f"--output is {options.output}, expected a .png file in a folder that exists")

    if options.staleness is not None and options.asynchronous is None:
        parser.error("--staleness is given without --asynchronous, expected both")
    if options.ranks is not None or options.asynchronous is not None:
        return _run_of_many(parser, options)

    needed = {"sklearn": ("scikit-learn", "demo"), "rich": ("rich", "demo"), "matplotlib": ("matplotlib", "demo")}
    if options.dtype == "bfloat16":
        needed["ml_dtypes"] = ("ml_dtypes", "bf16")
    if options.device == "cuda":
        needed["cupy"] = ("cupy-cuda13x or cupy-cuda12x", "cuda13")
    if is_missing("demo", needed):
        return 2

    place: Callable[[Array], Array] = np.asarray
    if options.device == "cuda":
        if not (cuda := info()["cuda"])["devices"]:
            print(f"demo --device cuda: {cuda['why_none']}", file=sys.stderr)
            return 2
        place = import_module("cupy").asarray

    from rich.console import Console

    kept = storages(options.dtype)
    runs = _train_all(epochs, kept, place)
    if len(kept) == 1:
        Console().print(_table_of_times(runs))
        draw_losses(options.output, curves={name: fused.losses for name, [(fused, _)] in runs.items()})
    else:
        console = Console(width=None if sys.stdout.isatty() else WIDTH)
        console.print(_table_of_storages(runs, kept, console.width))
        _plot_storages(runs, kept, options.output)
    print(f"Loss curves: {options.output}")
    return 0 if all(map(_all_same, runs.values())) else 1
