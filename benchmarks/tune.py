"""
Search learning rate and weight decay of AdamW on the digits, in four ways: python benchmarks/tune.py FILE.json.

docs/guide/tuning.md explains the searches, `python -m fusedstep plot tuning FILE.json` draws what they found.
"""

import argparse
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

import fusedstep as fs
from fusedstep.tools import digits
from fusedstep.tools.bench import machine

__all__ = ["RANGES", "SEARCHES", "grid", "objective", "record", "search", "split", "tested", "training", "write"]

PACKAGES = ("numpy", "optuna", "scikit-learn")
RANGES = {"lr": (1e-3, 1.0), "weight_decay": (1e-3, 1.0)}
NEVER, MEDIAN = optuna.pruners.NopPruner(), optuna.pruners.MedianPruner(n_startup_trials=8, n_warmup_steps=2)
SEARCHES = {
    "grid": (lambda seed, side: optuna.samplers.GridSampler(grid(side), seed=seed), NEVER),  # in random order
    "random": (lambda seed, _: optuna.samplers.RandomSampler(seed=seed), NEVER),
    "TPE": (lambda seed, _: optuna.samplers.TPESampler(seed=seed), NEVER),
    "TPE, pruned": (lambda seed, _: optuna.samplers.TPESampler(seed=seed), MEDIAN),
}


def grid(side: int) -> dict[str, list[float]]:
    """Return `side` values of each hyperparameter, from one end of its range to the other."""
    return {name: np.geomspace(*ends, side).tolist() for name, ends in RANGES.items()}


def split() -> digits.Digits:
    """Return the images that are not for the test; a quarter of them, for validation, as `x_test` and `y_test`."""
    x, y, _, _ = digits.load()
    x, x_valid, y, y_valid = train_test_split(x, y, test_size=0.25, stratify=y, random_state=1)
    return digits.Digits(x, y, x_valid, y_valid)


def optimizer(images: int, epochs: int, lr: float, weight_decay: float) -> fs.AdamW:
    """Return AdamW with a learning rate that falls from `lr` to zero along a cosine."""
    steps = epochs * len(fs.minibatches(images, digits.BATCH, seed=1))
    return fs.AdamW(lr=fs.schedules.cosine(lr, steps), weight_decay=weight_decay)


def training(data: digits.Digits, epochs: int, lr: float, weight_decay: float) -> Iterator[float]:
    """Train the network, and give the loss on the images for validation after each epoch."""
    params, opt = digits.initial_params(), optimizer(len(data.y), epochs, lr, weight_decay)
    batches = fs.minibatches(len(data.y), digits.BATCH, seed=1)
    for _ in range(epochs):
        for rows in batches:
            opt.step(params, digits.gradients(params, data.x[rows], data.y[rows]))
        yield digits.loss(params, data.x_test, data.y_test)


def objective(trial: optuna.Trial, data: digits.Digits, epochs: int) -> float:
    """Return the last loss of a training, unless the pruner ends it."""
    point = {name: trial.suggest_float(name, *ends, log=True) for name, ends in RANGES.items()}
    loss = np.nan
    for epoch, loss in enumerate(training(data, epochs, **point)):
        trial.report(loss, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


def search(name: str, seed: int, data: digits.Digits, epochs: int, side: int) -> list[list[float]]:
    """Return the trials of a search, as many as the grid has points: both rates, last loss, epochs."""
    sampler, pruner = SEARCHES[name]
    study = optuna.create_study(sampler=sampler(seed, side), pruner=pruner)
    study.optimize(lambda trial: objective(trial, data, epochs), n_trials=side**2)
    return [[*(t.params[key] for key in RANGES), t.value, len(t.intermediate_values)] for t in study.trials]


def tested(lr: float, weight_decay: float, epochs: int) -> dict[str, float]:
    """Return loss and share of right answers on the images for the test, after a training on all others."""
    data = digits.load()
    run = digits.train(optimizer(len(data.y), epochs, lr, weight_decay), data, epochs)
    return {"loss": digits.loss(run.params, data.x_test, data.y_test), "accuracy": run.test_accuracy}


def record(epochs: int, side: int, seeds: int) -> dict[str, Any]:
    """
    Return what all searches have found, with every seed, and how the best point of the first seed does in the test.

    The first row is no search: it has the defaults of AdamW.
    """
    data, usual = split(), fs.AdamW()
    *_, loss = training(data, epochs, usual.lr, usual.weight_decay)
    searches = [{"name": "defaults", "seed": 0, "trials": [[usual.lr, usual.weight_decay, loss, epochs]]}]
    for name in SEARCHES:
        for seed in range(seeds):
            searches.append({"name": name, "seed": seed, "trials": search(name, seed, data, epochs, side)})
    for each in searches:
        if each["seed"] == 0:
            best = min((trial for trial in each["trials"] if trial[3] == epochs), key=lambda trial: trial[2])
            each["test"] = tested(*best[:2], epochs)
    about = machine.about(["cpu"]) | {"packages": {name: version(name) for name in PACKAGES}}
    settings = {"epochs": epochs, "side": side, "seeds": seeds, "ranges": RANGES}
    return {"machine": about, "settings": settings, "searches": searches}


def write(found: dict[str, Any], path: Path) -> None:
    """Write a record as JSON, with a line for each search."""
    head = json.dumps({key: value for key, value in found.items() if key != "searches"}, indent=1)
    rows = ",\n  ".join(map(json.dumps, found["searches"]))
    path.write_text(f'{head[:-2]},\n "searches": [\n  {rows}\n ]\n}}\n')


def main() -> None:
    """Make all searches and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path, help="the JSON file to write")
    parser.add_argument("--epochs", type=int, default=10, help="of a training (%(default)s)")
    parser.add_argument("--side", type=int, default=8, help="points of the grid along a side (%(default)s)")
    parser.add_argument("--seeds", type=int, default=10, help="of each search (%(default)s)")
    options = parser.parse_args()
    if min(options.epochs, options.side - 1, options.seeds) < 1:
        parser.error("--epochs and --seeds are at least 1, --side at least 2")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with threadpool_limits(1):  # the products of matrices are too small to be shared
        write(record(options.epochs, options.side, options.seeds), options.record)


if __name__ == "__main__":
    main()
