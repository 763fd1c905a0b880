"""Presets make the updates that were recorded of libraries that cannot be installed beside."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.presets.page import make, rows
from tests.presets.problem import RATES, distance, path, steps_of

TRACES = {file.stem: json.loads(file.read_text()) for file in (Path(__file__).parent / "traces").glob("*.json")}
ROWS = [row for row in rows() if row.library in TRACES]


def seen(trace, call, rates):
    """Return the parameters that a trace has, from an optimizer of ours."""
    points = path(steps_of(make(call)), RATES[rates])
    return points[np.array(trace["updates"]) - 1][:, trace["elements"]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.library} {row.theirs}")
def test_updates(row):
    trace = TRACES[row.library]
    run = trace["runs"][row.theirs]
    assert run.keys() == row.limits.keys()
    for rates, points in run.items():
        assert distance(seen(trace, row.spelled_out, rates), np.array(points)) <= row.limits[rates], rates


@pytest.mark.parametrize("library", TRACES)
def test_every_trace_is_on_the_page(library):
    assert TRACES[library]["runs"].keys() == {row.theirs for row in ROWS if row.library == library}


def test_another_form_is_seen():
    """The problem tells forms apart: each is wrong by much more than any row of the page."""
    trace = TRACES["chainer"]
    for theirs, wrong, rates in [
        ("chainer.optimizers.Adam()", "fs.Adam()", "constant"),
        ("chainer.optimizers.RMSprop()", "fs.RMSprop(eps_mode='inside')", "constant"),
        ("chainer.optimizers.MomentumSGD()", "fs.Momentum()", "changing"),
        ("chainer.optimizers.AdaGrad()", "fs.Adagrad(lr=1e-3, eps=1e-7)", "constant"),
    ]:
        assert distance(seen(trace, wrong, rates), np.array(trace["runs"][theirs][rates])) > 1000, theirs
