"""The scale of a loss: GradScaler's rule, what is refused, and that a run with it resumes."""

import copy
import dataclasses
import json
import pickle
from importlib.util import find_spec

import numpy as np
import pytest

import fusedstep as fs

FINE, SKIPPED = fs.Result(1.0), fs.Result(np.inf, True, "w")


def test_the_rule():
    scale = fs.LossScale(8.0, interval=3)
    seen = []
    for result in (FINE, FINE, FINE, FINE, FINE, SKIPPED, FINE, FINE, SKIPPED, SKIPPED, FINE, FINE, FINE, FINE):
        scale.update(result)
        seen.append(scale.scale)
    assert seen == [8, 8, 16, 16, 16, 8, 8, 8, 4, 2, 2, 2, 4, 4]
    assert (scale.skipped, scale.good, scale.grad_scale) == (3, 1, 0.25)


def test_the_scale_stays_a_number_whose_inverse_is_one():
    scale = fs.LossScale(1.0, interval=1)
    for _ in range(2000):
        scale.update(SKIPPED)
    assert scale.scale == 2.0**-126
    for _ in range(2000):
        scale.update(FINE)
    assert scale.scale == 2.0**127


@pytest.mark.skipif(not find_spec("torch"), reason="needs PyTorch")
def test_the_rule_is_that_of_pytorch():
    import torch

    rng = np.random.default_rng(0)
    scale, theirs = fs.LossScale(interval=5), torch.tensor(2.0**16)
    tracker = torch.tensor(0, dtype=torch.int32)
    for _ in range(300):
        skips = bool(rng.random() < 0.15)
        scale.update(SKIPPED if skips else FINE)
        torch._amp_update_scale_(theirs, tracker, torch.tensor(float(skips)), 2.0, 0.5, 5)
        assert (scale.scale, scale.good) == (theirs.item(), tracker.item())


def test_a_run_with_overflow_finds_its_scale():
    p, opt, scale = np.ones(3, np.float16), fs.Adam(lr=0.01, skip_nonfinite=True), fs.LossScale(2.0**20, interval=10)
    with np.errstate(over="ignore"):
        for _ in range(40):
            g = (p.astype(np.float32) * scale.scale).astype(np.float16)
            scale.update(opt.step(p, g, grad_scale=scale.grad_scale))
    assert scale.skipped > 4
    assert opt.t[0] == 40 - scale.skipped
    assert (p < 0.8).all()


def test_what_is_saved_is_all():
    scale = fs.LossScale(4.0, interval=2)
    scale.update(FINE)
    for other in (
        copy.deepcopy(scale),
        pickle.loads(pickle.dumps(scale)),
        fs.LossScale(**json.loads(json.dumps(dataclasses.asdict(scale)))),
    ):
        assert other == scale
        other.update(FINE)
        assert other.scale == 8


def test_refusals():
    for options, error, message in (
        ({"scale": 0}, ValueError, r"^scale is 0.0, expected 0 < scale < inf"),
        ({"scale": "1"}, TypeError, r"^scale is '1', expected a number"),
        ({"growth": 1}, ValueError, r"^growth is 1.0, expected 1 < growth < inf"),
        ({"backoff": 1}, ValueError, r"^backoff is 1.0, expected 0 < backoff < 1"),
        ({"interval": 0}, ValueError, r"^interval is 0, expected an integer >= 1"),
        ({"good": -1}, ValueError, r"^good is -1, expected an integer >= 0"),
    ):
        with pytest.raises(error, match=message):
            fs.LossScale(**options)
    scale = fs.LossScale()
    with pytest.raises(ValueError, match=r"^result has no grad_norm, expected .* skip_nonfinite=True"):
        scale.update(fs.SGD().step(np.ones(2), np.ones(2)))
