"""Rules that are made of functions, on a GPU, where one kernel interprets the programs of all of them."""

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.tools.verify import HALVES, cases, difference, outcome, values
from tests.gpu.arrays import pairs, same
from tests.programs.built_in import RULES
from tests.programs.test_built_in import asked_for
from tests.programs.test_random import random_rule

SIZES = (1, 5, 16, 33, 129, 515)
TILES = (1023, 1025, 0, 3000)  # around the elements that a warp takes at a time
EXAMPLES = {made.__name__: (cls, made) for cls, made, _ in RULES}

rules = pytest.mark.parametrize(
    ("cls", "made", "options_of"), RULES, ids=[f"{cls.__name__}-{made.__name__}" for cls, made, _ in RULES]
)


@pytest.mark.sampled(5)
@rules
def test_same_bits_as_the_built_in_rule(cupy, cls, made, options_of):
    for options, mine in asked_for(cls, options_of):
        for dtype in (np.float32, np.float64):
            expected = outcome(cls(**options), dtype, SIZES)
            found = outcome(made(**mine), dtype, SIZES, place=cupy.asarray)
            assert difference(found, expected) == 0, (options, dtype)


@pytest.mark.skipif(len(HALVES) < 2, reason="ml_dtypes is not installed")
@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop_centered_momentum"])
def test_same_bits_of_halves(cupy, name):
    made = EXAMPLES[name][1]
    for options, dtype, grad_dtype in cases(made)["halves"]:
        expected = outcome(made(**options), dtype, SIZES, grad_dtype)
        found = outcome(made(**options), dtype, SIZES, grad_dtype, cupy.asarray)
        assert difference(found, expected) == 0, (options, dtype, grad_dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, *HALVES])
@pytest.mark.parametrize("options", [{}, {"clip_global_norm": 20.0, "ema": 0.9, "measure": "update"}], ids=str)
def test_tiles_change_no_bit(cupy, options, dtype):
    made = EXAMPLES["adam"][1]
    expected = outcome(made.reference(**options), dtype, TILES)
    assert difference(outcome(made(**options), dtype, TILES, place=cupy.asarray), expected) == 0


def check(cupy, seeds):
    defined = 0
    for seed in seeds:
        try:
            cls = random_rule(seed)
        except ValueError:  # a few programs are too large
            continue
        defined += 1
        for dtype in (np.float32, np.float64):
            rng = np.random.default_rng(seed)
            n = int(rng.integers(1, 200))
            start, grads = values(rng, n, dtype), [values(rng, n, dtype) for _ in range(2)]
            host, gpu, p, q = cls(), cls(), start.copy(), cupy.asarray(start)
            for g in grads:
                host.step([p], [g])
                gpu.step([q], [cupy.asarray(g)])
            assert same(q, p), (seed, dtype, cls.program.show())
            for name, state in gpu.state[0].items():
                assert same(state, host.state[0][name]), (seed, dtype, name, cls.program.show())
    assert defined > 0.9 * len(seeds)


def test_random_programs(cupy):
    check(cupy, range(5000, 5100))


@pytest.mark.exhaustive
def test_many_random_programs(cupy):
    check(cupy, range(5100, 6500))


def test_a_program_that_needs_all_registers(cupy):
    @fs.rule(states="a b c d")
    def wide(g, a, b, c, d, *, lr=0.5):
        some = [g * (k + 1.5) + a for k in range(12)]  # all are alive until the last one is known
        u = lr * (some[0] / some[-1])
        for x, y in zip(some, reversed(some), strict=True):
            u = u + x * y
        return u, some[3], some[5] * b, c + some[7], d - some[11]

    expected = outcome(wide.reference(), np.float32, SIZES)
    assert difference(outcome(wide(), np.float32, SIZES, place=cupy.asarray), expected) == 0


def test_functional(cupy):
    adam = EXAMPLES["adam"][1]
    (p, g), (q, h) = pairs(cupy, 3000, 3000)
    states, there = [np.zeros_like(p) for _ in "mv"], [cupy.asarray(np.zeros_like(p)) for _ in "mv"]
    for t in (1, 2):
        adam.functional(p, g, *states, t=t, lr=0.1, weight_decay=0.1)
        adam.functional(q, h, *there, t=t, lr=0.1, weight_decay=0.1)
    assert same(q, p)
    assert all(map(same, there, states))


def test_a_graph_replays_the_program_with_other_numbers(cupy, recorder):
    """A replayed step counts, keeps the memory of the rule, and reads the learning rate from the GPU."""
    nadam = EXAMPLES["nadam"][1]
    host, gpu, lr = nadam(ema=0.9), nadam(ema=0.9), cupy.asarray(np.zeros(()))
    gpu.lr = lr
    (p, g), (q, h) = pairs(cupy, 3000, 3000)
    graph = None
    for i in range(5):
        host.lr = 0.1 / (i + 1)
        with recorder:
            lr.fill(host.lr)
            if i == 2:
                graph, _ = recorder.capture(lambda: gpu.step(q, h))
            if graph:
                recorder.replay(graph)
            else:
                gpu.step(q, h)
        host.step(p, g)
    assert same(q, p)
    assert gpu.t == host.t == {0: 5}
    assert same(gpu.ema[0], host.ema[0])
    assert gpu.state_dict()["memory"] == host.state_dict()["memory"]


def test_a_rule_runs_on_several_devices(cupy, devices):
    made = EXAMPLES["adabelief"][1]
    host, gpu = made(clip_global_norm=1.0), made(clip_global_norm=1.0)
    p, q = pairs(cupy, 3000, 5)
    g = [x + 1 for x in p]
    with devices[1]:
        q[1] = cupy.asarray(p[1])
    h = []
    for x, device in zip(g, devices, strict=True):
        with device:
            h.append(cupy.asarray(x))
    for _ in range(2):
        assert gpu.step(q, h).grad_norm == host.step(p, g).grad_norm
    assert all(map(same, q, p))
