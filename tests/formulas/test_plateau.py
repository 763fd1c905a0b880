"""The schedule that lowers its value where a metric no longer gets better."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedstep import schedules as s
from tests.formulas.schedules import INF


class ReduceOnPlateau:
    """PyTorch's ReduceLROnPlateau, copied by hand, for one group of parameters."""

    def __init__(self, lr, factor, patience, threshold, threshold_mode, mode, cooldown, min_lr):
        self.lr, self.factor, self.patience, self.cooldown, self.min_lr = lr, factor, patience, cooldown, min_lr
        self.threshold, self.kind = threshold, mode + threshold_mode
        self.best = {"min": INF, "max": -INF}[mode]
        self.num_bad_epochs = self.cooldown_counter = 0

    def is_better(self, a):
        if self.kind == "minrel":
            return a < self.best * (1.0 - self.threshold)
        if self.kind == "minabs":
            return a < self.best - self.threshold
        if self.kind == "maxrel":
            return a > self.best * (self.threshold + 1.0)
        return a > self.best + self.threshold

    def step(self, current):
        if self.is_better(current):
            self.best = current
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            new_lr = max(self.lr * self.factor, self.min_lr)
            if self.lr - new_lr > 1e-8:
                self.lr = new_lr
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0


PLATEAUS = {
    "lr": [0.1, 1e-6, 3e-8],
    "factor": [0.1, 0.5, 0.0],
    "patience": [0, 1, 2, 3],
    "threshold": [0.0, 1e-4, 0.3],
    "threshold_mode": ["rel", "abs"],
    "mode": ["min", "max"],
    "cooldown": [0, 1, 2, 3],
    "min_lr": [0.0, 0.02, 1.0],
}
METRICS = [1.0, 0.99999, 0.9, 0.6, 0.5, 1.2, 2.0, 0.0, -1.0, math.nan, INF, -INF]


@given(
    st.fixed_dictionaries({name: st.sampled_from(choices) for name, choices in PLATEAUS.items()}),
    st.lists(st.sampled_from(METRICS), max_size=25),
)
@settings(max_examples=150, deadline=None)
def test_plateau_is_pytorchs(arguments, metrics):
    ours, theirs = s.plateau(**arguments), ReduceOnPlateau(**arguments)
    for x in metrics:
        ours.observe(x)
        theirs.step(x)
        memory = (theirs.lr, theirs.best, theirs.num_bad_epochs, theirs.cooldown_counter)
        assert (ours.rate, ours.best, ours.bad, ours.cooldown_left) == memory
        assert ours(0) == ours(10) == theirs.lr


def test_plateau_by_hand():
    p = s.plateau(1.0, factor=0.5, patience=1, cooldown=2, min_lr=0.2)
    rates = []
    for x in [3, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]:
        p.observe(x)
        rates.append(p(0))
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2]


@pytest.mark.parametrize(("lr", "fallen"), [(1e-8, 1e-8), (1.1e-8, 0)])
def test_plateau_leaves_out_tiny_falls(lr, fallen):
    p = s.plateau(lr, factor=0, patience=0)
    for x in [1, 1]:
        p.observe(x)
    assert p(0) == fallen


@pytest.mark.parametrize("wait", [1, 2, 4])
@pytest.mark.parametrize("rest", [0, 1, 3])
def test_plateau_of_keras(wait, rest):
    """Its ReduceLROnPlateau with min_delta, as in Keras 3: it waits, and leaves the cooldown in the same epoch."""
    p = s.plateau(1.0, 0.5, wait - 1, 0.01, "abs", cooldown=max(rest - 1, 0))
    lr, best, waited, left = 1.0, INF, 0, 0
    for x in [5, 4, 3.995, 4, 4, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 1.991, 1.9, 2, 2, 2, 2, 2, 2]:
        if left > 0:
            left -= 1
            waited = 0
        if x < best - 0.01:
            best, waited = x, 0
        elif not left > 0:
            waited += 1
            if waited >= wait:
                lr, left, waited = lr * 0.5, rest, 0
        p.observe(x)
        assert p(0) == lr


@pytest.mark.parametrize("x", [None, "1", True, [1.0], 1j])
def test_plateau_observes_numbers_only(x):
    p = s.plateau(1.0)
    with pytest.raises(TypeError, match=r"^x is .*, expected a number$"):
        p.observe(x)
    assert p.bad == 0


def test_plateau_observes_numbers_of_numpy():
    p = s.plateau(1.0)
    p.observe(np.float32(0.5))
    assert type(p.best) is float
    p.observe(-(10**400))
    assert p.best == -INF


def test_plateau_may_ask_for_much():
    s.plateau(1, threshold=2, mode="max")
    s.plateau(1, threshold=2, threshold_mode="abs")
