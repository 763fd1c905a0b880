"""What surrounds the update, and what it costs: python benchmarks/options.py [--quick] [--json FILE]."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import peers
from harness import Entry, race
from peers import Fusedstep, Job, entry
from report import Report, ask

from fusedstep import schedules

SIZES = {"1e5": 100_000, "1e6": 1_000_000, "3e7": 30_000_000}
OFF: dict[str, Any] = {
    "lr": 1e-3,
    "clip_value": None,
    "clip_norm": None,
    "clip_global_norm": None,
    "maximize": False,
    "l1": 0.0,
    "weight_decay": 0.0,
    "decoupled": False,
    "ema": None,
    "zero_grad": False,
    "skip_nonfinite": False,
}
# Option: what it sets, and the further bytes per element that it must move (28 without).
OPTIONS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 0),
    "grad_scale": ({}, 0),  # an argument of the step
    "maximize": ({"maximize": True}, 0),
    "clip_value": ({"clip_value": 0.5}, 0),
    "clip_norm": ({"clip_norm": 1.0}, 4),
    "clip_global_norm": ({"clip_global_norm": 1.0}, 4),
    "skip_nonfinite": ({"skip_nonfinite": True}, 4),
    "l1": ({"l1": 1e-4}, 0),
    "weight_decay": ({"weight_decay": 1e-2}, 0),
    "decoupled decay": ({"weight_decay": 1e-2, "decoupled": True}, 0),
    "ema": ({"ema": 0.999}, 8),
    "zero_grad": ({"zero_grad": True}, 4),
    "cosine schedule": ({"lr": schedules.cosine(1e-3, 10**9)}, 0),
    "clip, decay, ema, zero": (
        {"clip_global_norm": 1.0, "weight_decay": 1e-2, "decoupled": True, "ema": 0.999, "zero_grad": True},
        16,
    ),
}


def each_option(report: Report, quick: bool) -> None:
    """Time Adam with each option, over the same buffers, beside plain Adam."""
    for size, elements in SIZES.items():
        job = Job("adam", elements)
        ours = Fusedstep(job)
        original = job.grads[0].copy()
        entries = [
            Entry(name, _step(ours, name), prepare=partial(_choose, ours, original, options))
            for name, (options, _) in OPTIONS.items()
        ]
        times = race(entries, 3 if quick else 15 if size == "3e7" else 31, 0.005 if quick else 0.02)
        for name, (_, bytes_more) in OPTIONS.items():
            goal = f"<= {1.05 * (28 + bytes_more) / 28:.3f}" if (size, name) == ("3e7", "clip_global_norm") else ""
            question = f"adam f32 {size}: {name}, by bytes {(28 + bytes_more) / 28:.2f}"
            moved = elements * (28 + bytes_more)
            report.add(question, times[name], times["plain"], "plain", inverse=True, goal=goal, moved=moved)
    Job.forget()


def _choose(ours: Fusedstep, original: np.ndarray, options: dict[str, Any]) -> None:
    for name, value in (*OFF.items(), *options.items()):  # one clipping goes before another one comes
        setattr(ours.optimizer, name, value)
    ours.args[1][...] = original


def _step(ours: Fusedstep, name: str) -> Callable[[], object]:
    return partial(ours.step, grad_scale=0.5) if name == "grad_scale" else ours.step


def clipped(report: Report, quick: bool) -> None:
    """Race Adam that clips by the global norm against torch's clip_grad_norm_ and its fused Adam."""
    for size, elements in SIZES.items():
        job = Job("adam", elements)
        present, absent = peers.contestants(job, Fusedstep, peers.Torch)
        if absent:
            report.note(f"torch: absent, {absent['Torch']}")
            return
        ours, torch = present
        original = job.grads[0].copy()

        def refill(job: Job = job, original: np.ndarray = original) -> None:
            job.grads[0][...] = original

        def step(torch: peers.Torch = torch) -> None:
            torch.clip(1.0)
            torch.step()

        ours.optimizer.clip_global_norm = 1.0
        entries = [entry(ours, prepare=refill), Entry("torch clip, fused", step, prepare=refill)]
        mine, other = race(entries, 3 if quick else 15, rest=0.02).values()
        report.add(f"adam f32 {size}: clip_global_norm", mine, other, entries[1].name, moved=32 * elements)
    Job.forget()


def many(report: Report, quick: bool) -> None:
    """Time the options over a thousand small tensors in one step."""
    job = Job("adam", 16, count=1000)
    found = {}
    for name, (options, _) in OPTIONS.items():
        ours = Fusedstep(job)
        for option, value in options.items():
            setattr(ours.optimizer, option, value)
        found[name] = Entry(name, _step(ours, name))
    times = race(list(found.values()), 7 if quick else 31)
    for name, mine in times.items():
        report.add(f"adam f32 1000 x 16: {name}", mine, times["plain"], "plain", inverse=True)


if __name__ == "__main__":
    ask(__doc__, {question.__name__: question for question in (each_option, clipped, many)})
