"""The reference: its classes, what they count, and whose hyperparameters hold."""

import inspect
from fractions import Fraction

import numpy as np
import pytest

import fusedstep
from fusedstep import reference

NAMES = [name for name in fusedstep.optimizers.__all__ if name != "Optimizer"]


@pytest.mark.parametrize("name", fusedstep.optimizers.__all__)
def test_reference_has_the_same_constructor(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (fusedstep, reference))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


def test_reference_lists_the_same_classes():
    assert set(reference.__all__) == {*fusedstep.optimizers.__all__, "Result", "float_mode"}


both = pytest.mark.parametrize("classes", [reference, fusedstep], ids=["reference", "fusedstep"])


def test_parabola_by_hand():
    x, opt = np.array([10.0]), reference.SGD(lr=0.1)
    for _ in range(10):
        opt.step(x, 2 * x)
    assert x.item() == pytest.approx(float(10 * Fraction(4, 5) ** 10), rel=1e-15)


X, Y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 4.0, 6.0, 8.0])


@both
@pytest.mark.parametrize(
    ("lr", "factor", "batch", "divisor", "expected"),
    [
        (0.01, 1, 1, None, (1.7578969177457466, 0.5705361821072628)),
        (0.005, 2, 1, None, (1.7578969177457466, 0.5705361821072628)),
        (0.01, 2, 4, None, (1.5104079603466942, 0.4936292566053902)),
        (0.01, 2, 3, 3, (1.6320154980066925, 0.5364164651714491)),
        (0.01, 2, 3, None, (1.8437512550873738, 0.5200181679989576)),
    ],
    ids=["each sample", "each sample, half the rate", "all samples", "last batch divided by 3", "last batch by itself"],
)
def test_linear_regression(classes, lr, factor, batch, divisor, expected):
    inputs = np.stack([X, np.ones(4)], axis=1)
    opt, theta = classes.SGD(lr=lr), np.zeros(2)
    batches = fusedstep.minibatches(4, batch, seed=0, shuffle=False)
    for _ in range(10):
        for rows in batches:
            x, y = inputs[rows], Y[rows]
            opt.step(theta, factor / (divisor or len(x)) * (x.T @ (x @ theta - y)))
    np.testing.assert_allclose(theta, expected, rtol=1e-12)


@both
def test_schedules_count_from_0(classes):
    asked = []
    opt, p = classes.SGD(lr=lambda done: asked.append(done) or 2.0**-done), np.array([4.0])
    path = []
    for _ in range(4):
        opt.step(p, np.ones(1))
        path.append(p.item())
    assert asked == [0, 1, 2, 3]
    assert path == [3.0, 2.5, 2.25, 2.125]


def test_every_parameter_counts_its_own_updates():
    opt, alone = reference.Adam(lr=0.25, eps=0.0), np.array([1.0])
    p = {"early": np.array([1.0]), "late": np.array([1.0])}
    opt.step(p, {"early": np.array([5.0]), "late": None})
    opt.step(p, {"early": np.array([5.0])})
    assert p["late"].item() == 1.0
    opt.step(p, {"early": np.array([5.0]), "late": np.array([7.0])})
    reference.Adam(lr=0.25, eps=0.0).step(alone, np.array([7.0]))
    assert opt.t == {"early": 3, "late": 1}
    assert p["late"] == alone


def test_overrides_patterns_first_then_the_key():
    overrides = {"b*": {"lr": 8.0}, "bias": {"lr": 16.0}, "*": {"lr": 2.0}, "*.late": {"lr": 4.0}, 7: {"lr": 32.0}}
    opt = reference.SGD(lr=1.0, overrides=overrides)
    p = {key: np.zeros(1) for key in ("bias", "b", "w", "w.late", 7, 8)}
    opt.step(p, {key: -np.ones(1) for key in p})
    assert {key: x.item() for key, x in p.items()} == {"bias": 16.0, "b": 2.0, "w": 2.0, "w.late": 4.0, 7: 32.0, 8: 1.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_not_finite_concerns_its_element_alone(name, bad):
    p, clean = np.ones(3), np.ones(3)
    opt, other = getattr(reference, name)(), getattr(reference, name)()
    for first in (bad, 0.5):
        opt.step(p, np.array([0.5, first, -2.0]))
        other.step(clean, np.array([0.5, 0.5, -2.0]))
    assert p[::2].tolist() == clean[::2].tolist()
    assert np.isnan(p[1]) or np.isinf(bad)
