"""The norm of what a step subtracts: its bits, what it is of, and that measuring it changes no other bit."""

import itertools

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import reference
from fusedstep.tools import verify
from tests.bits.test_gradients import FLOATS, in_order, numbers, real

SIZES = (0, 1, 31, 33, 1023, 1024, 1025, 3000)
OPTIONS = [
    {},
    {"weight_decay": 0.1, "maximize": True, "grad_scale": 0.3},
    {"weight_decay": 0.1, "decoupled": True, "bounds": (-0.5, 0.25)},
    {"clip_global_norm": 1.0, "ema": 0.9},
    {"clip_value": 0.5, "l1": 0.01, "zero_grad": True},
    {"rounding": "stochastic", "seed": 3, "state_dtype": "same", "ema": 0.5},
    {"master_weights": True, "ema": 0.5},
]


def run(cls, options, params, grads, steps=2):
    """Make steps, and return everything that they change, and what they have found out."""
    params, grads = [p.copy(order="K") for p in params], [g.copy(order="K") for g in grads]
    optimizer, norms = cls(**options), []
    for _ in range(steps):
        result = optimizer.step(params, grads)
        norms.append(np.array([result.update_norm or 0.0, result.grad_norm or 0.0]))
    states = [array for i in range(len(params)) for _, array in sorted(optimizer.state.get(i, {}).items())]
    states += [optimizer.ema[i] for i in range(len(params)) if i in optimizer.ema]
    return [real(array) for array in params + grads + states], norms


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("cls", ["SGD", "Adam", "Lion", "RMSprop"])
def test_the_bits_are_those_of_the_reference(isa, cls, dtype, options):
    if cls == "Lion" and "decoupled" in options:
        options = {name: value for name, value in options.items() if name != "decoupled"}
    rng = np.random.default_rng(1)
    params, grads = ([numbers(rng, (n,), dtype, special) for n in SIZES] for special in (0.0, 0.0))
    measured = {"measure": "update"} | options
    found, norms = run(getattr(fs, cls), measured, params, grads)
    wanted, wanted_norms = run(getattr(reference, cls), measured, params, grads)
    plain, _ = run(getattr(fs, cls), options, params, grads)
    assert verify.difference(norms, wanted_norms) == 0
    assert norms[0][0] > 0
    assert verify.difference(found, wanted) == 0
    assert verify.difference(found, plain) == 0


@pytest.mark.parametrize(("param", "grad"), [*itertools.product(FLOATS, FLOATS)])
def test_gradients_of_any_layout(param, grad):
    rng = np.random.default_rng(2)
    options = {"measure": "update", "zero_grad": True, "clip_norm": 3.0}
    p = [in_order(numbers(rng, (70, 90), param, 0.0), axes) for axes in ((0, 1), (1, 0))]
    g = [in_order(numbers(rng, (70, 90), grad, 0.0), (1, 0)) for _ in p]
    found, wanted = (run(module.Momentum, options, p, g) for module in (fs, reference))
    assert verify.difference(found[1] + found[0], wanted[1] + wanted[0]) == 0


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_threads_change_no_bit(dtype, threads):
    """Threads meet on boundaries of blocks, wherever the arrays begin."""
    rng = np.random.default_rng(3)
    p, g = ([numbers(rng, (n + 5,), dtype, 0.0)[5:] for n in (200_003, 70_001, 1)] for _ in "pg")
    fs.set_num_threads(threads)
    found, wanted = (run(module.SGD, {"measure": "update", "lr": 0.1}, p, g, 1) for module in (fs, reference))
    assert verify.difference(found[1] + found[0], wanted[1] + wanted[0]) == 0


@pytest.mark.parametrize("module", [fs, reference])
def test_what_it_is_the_norm_of(module):
    def norm(p, g, **options):
        return module.SGD(lr=0.5, measure="update", **options).step(p, g).update_norm

    p = np.array([2.0, -2.0])
    assert norm([p], [np.array([6.0, 8.0])]) == 5
    assert p.tolist() == [-1, -6]
    assert norm([p], [np.array([6.0, 8.0])], bounds=(-6.5, 9.0)) == 5  # before the bounds
    assert norm([np.array([6.0, -4.0])], [np.array([0.0, 12.0])], weight_decay=1.0, decoupled=True) == 5
    assert norm([p, p.copy()], [np.array([6.0, 0.0]), np.array([8.0, 0.0])]) == 5  # of all tensors
    assert norm([np.ones(2, np.float16)], [np.full(2, 3.0, np.float16)]) == np.sqrt(4.5)
    assert np.isnan(norm([np.ones(2)], [np.array([1.0, np.nan])]))
    assert norm([np.ones(2), np.ones(2)], [np.full(2, 2e-45, np.float32), None]) > 0
    assert norm([np.ones(2, np.float32)], [np.full(2, 1e-45)]) == 0  # subnormal float32


@pytest.mark.parametrize("module", [fs, reference])
def test_steps_that_update_nothing(module):
    p = np.ones(3)
    optimizer = module.SGD(measure="update", skip_nonfinite=True, ema=0.9)
    assert optimizer.step([p], [np.array([1.0, np.inf, 0.0])]).update_norm == 0
    assert optimizer.step([p], [None]).update_norm == 0
    assert optimizer.step([], []).update_norm == 0
    assert optimizer.step({"empty": np.ones(0)}, {"empty": np.ones(0)}).update_norm == 0
    assert module.SGD(ema=0.9).step([p], [p.copy()]).update_norm is None
    assert module.SGD(skip_nonfinite=True).step([p], [p.copy()]).update_norm is None
    result = module.SGD(measure="update").step([p], [p.copy()])
    assert result.grad_norm is None
    assert not result.skipped


def test_the_option():
    optimizer = fs.SGD(lr=1.0)
    p, g = np.ones(3), np.full(3, 2.0)
    for _ in range(2):
        assert optimizer.step([p], [g]).update_norm is None
        optimizer.measure = "update"
        assert optimizer.step([p], [g]).update_norm == np.sqrt(12.0)
        optimizer.measure = "needed"
    with pytest.raises(ValueError, match=r"^measure is 'all', expected one of 'needed', 'update'"):
        fs.SGD(measure="all")
    with pytest.raises(TypeError, match=r"^overrides\[0\]\['measure'\] is no hyperparameter of SGD"):
        fs.SGD(overrides={0: {"measure": "update"}})
