"""What does a gradient cost that is transposed, of another type, or a new array in each step?"""

from collections.abc import Callable
from itertools import cycle
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep.tools.bench.harness import Entry

RULES: dict[str, Callable[[], Any]] = {
    "SGD": fs.SGD,
    "Adam": fs.Adam,
    "Adam, global norm": lambda: fs.Adam(clip_global_norm=1.0),
}
# The bytes of a float32 parameter and its states, read and written, and how often its gradient is read.
BYTES = {"SGD": (8, 1), "Adam": (24, 1), "Adam, global norm": (24, 2)}
KINDS = ("list", "dict")


def random(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def stepping(rule: Callable[[], Any], param: Any, grad_of: Callable[[], Any]) -> Entry:
    """Return an entry that steps a copy of a parameter, by an optimizer of its own."""
    optimizer, own = rule(), param.copy()
    return Entry(lambda: optimizer.step([own], [grad_of()]))


def against_copies(timed, tell, rule: str, param: Any, grad: Any, plain: Any, copied: Callable[[], Any], goal: str):
    """Race a gradient with one that lies like its parameter, and with a copy of it that is made first."""
    times = timed(
        {
            "ours": stepping(RULES[rule], param, lambda: grad),
            "plain gradient": stepping(RULES[rule], param, lambda: plain),
            "copy first": stepping(RULES[rule], param, copied),
        }
    )
    written, passes = BYTES[rule]
    tell(
        times["ours"],
        faster_than={"copy first": times["copy first"]},
        relative_to={"plain gradient": times["plain gradient"]},
        goals={"plain gradient": goal, "copy first": ">= 1"},
        moved=(written + passes * grad.itemsize) * param.size,
    )


@pytest.mark.parametrize("n", [64, 256, 1024, 4096])
@pytest.mark.parametrize("rule", RULES)
def test_transposed(timed, tell, rule, n):
    grad, goal = random(n, n).T, "<= 1.5" if n == 4096 else ""
    against_copies(timed, tell, rule, random(n, n), grad, random(n, n), lambda: np.ascontiguousarray(grad), goal)


LAYOUTS: dict[str, Callable[[], Any]] = {
    "of a convolution": lambda: random(3, 3, 256, 512).transpose(3, 2, 0, 1),
    "reversed": lambda: random(1024, 1024)[..., ::-1],
    "every second": lambda: random(1024, 2048)[:, ::2],
    "broadcast": lambda: np.broadcast_to(random(1024), (1024, 1024)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(timed, tell, layout):
    grad = LAYOUTS[layout]()
    against_copies(timed, tell, "Adam", random(*grad.shape), grad, grad.copy(), lambda: np.ascontiguousarray(grad), "")


@pytest.mark.parametrize("size", [10**5, 10**7])
@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_converted(timed, tell, dtype, size):
    plain = random(size)
    grad = plain.astype(dtype)
    against_copies(timed, tell, "Adam", random(size), grad, plain, lambda: grad.astype(np.float32), "")


def contained(kind: str, arrays: list[Any], depth: int = 1) -> Any:
    """Return arrays in a list or dict; of depth 2, in layers of four arrays."""
    if depth > 1:
        return contained(kind, [contained(kind, arrays[i : i + 4]) for i in range(0, len(arrays), 4)])
    return {f"key{i}": array for i, array in enumerate(arrays)} if kind == "dict" else arrays


@pytest.mark.parametrize("count", [1000, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_new_arrays(timed, tell, kind, count):
    """Eight sets of gradients take turns, so that each array is new to the step; the next ones have other addresses."""
    params = [random(16) for _ in range(count)]
    sets = [contained(kind, [random(16) for _ in range(count)]) for _ in range(8)]
    ours, same = fs.Adam(), fs.Adam()
    mine, others, turns = contained(kind, params), contained(kind, [p.copy() for p in params]), cycle(sets)
    times = timed(
        {
            "ours": Entry(lambda: ours.step(mine, next(turns))),
            "the same arrays": Entry(lambda: same.step(others, sets[0])),
        }
    )
    tell(times.pop("ours"), relative_to=times, goals={"the same arrays": "<= 1.6"})


@pytest.mark.parametrize("kind", KINDS)
def test_nested(timed, tell, kind):
    times = {}
    for name, depth in (("ours", 2), ("flat", 1)):
        params, grads = (contained(kind, [random(16) for _ in range(1000)], depth) for _ in range(2))
        optimizer = fs.Adam()
        times[name] = Entry(lambda step=optimizer.step, params=params, grads=grads: step(params, grads))
    timings = timed(times)
    tell(timings.pop("ours"), relative_to=timings, goals={"flat": "<= 1.3"})


def test_tensors_of_torch(timed, tell):
    """148 small tensors get new gradients at each step, as from a backward pass."""
    torch = pytest.importorskip("torch")
    params, theirs = ([torch.from_numpy(random(64)) for _ in range(148)] for _ in range(2))
    arrays = [random(64) for _ in range(148)]
    sets = [[torch.from_numpy(random(64)) for _ in range(148)] for _ in range(8)]
    turns, their_turns, array_turns = cycle(sets), cycle(sets), cycle([[g.numpy() for g in some] for some in sets])
    ours, on_arrays = fs.Adam(), fs.Adam()
    torchs = torch.optim.Adam([p.requires_grad_() for p in theirs], fused=True)

    def step_torch() -> None:
        for p, g in zip(theirs, next(their_turns), strict=True):
            p.grad = g
        torchs.step()

    times = timed(
        {
            "ours": Entry(lambda: ours.step(params, next(turns))),
            "torch fused": Entry(step_torch),
            "arrays of NumPy": Entry(lambda: on_arrays.step(arrays, next(array_turns))),
        },
        rest=0.02,  # as in the races of the command: threads of torch go on spinning after their work
    )
    tell(
        times["ours"],
        faster_than={"torch fused": times["torch fused"]},
        relative_to={"arrays of NumPy": times["arrays of NumPy"]},
        goals={"ours": "<= 200 us"},
    )
