"""Frozen parameters take no part in a step."""

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import reference
from tests.formulas.arrays import F64, INF, MODULES, NAN, bits, normal, same

BODY = {"body": {"frozen": True}}


def tensors(seed=0):
    return {"head": normal(30, F64, seed), "body": normal(1100, F64, seed + 1)}


@MODULES
@pytest.mark.parametrize("options", [{"clip_global_norm": 0.5}, {"clip_norm": 0.5}, {"skip_nonfinite": True}], ids=str)
def test_frozen_is_without_a_gradient(module, options, isa):
    frozen, free = module.Momentum(overrides=BODY, **options), module.Momentum(**options)
    params, twins = tensors(), tensors()
    for step in range(4):
        grads = tensors(step + 2)
        grads["body"][0] = (1.0, INF, NAN, -INF)[step]
        a, b = frozen.step(params, grads), free.step(twins, {"head": grads["head"]})
        assert a.grad_norm == b.grad_norm
        assert not a.skipped
    assert same(params.values(), twins.values())
    assert same([frozen.state["head"]["b"]], [free.state["head"]["b"]])
    assert dict(frozen.t).get("body", 0) == 0
    assert not frozen.state.get("body")


def test_frozen_between_steps():
    """What had been learned of a parameter before it was frozen is still there when it goes on."""
    optimizer, specification = fs.Momentum(lr=0.1, velocity="step"), reference.Momentum(lr=0.1, velocity="step")
    params, twins = tensors(), tensors()
    for step, overrides in enumerate(({}, {}, BODY, {"b*": {"frozen": True}}, {})):
        optimizer.overrides = specification.overrides = overrides
        kept = bits([params["body"], dict(optimizer.state.get("body", {}))])
        optimizer.step(params, tensors(step + 2))
        specification.step(twins, tensors(step + 2))
        assert (bits([params["body"], dict(optimizer.state["body"])]) == kept) == bool(overrides)
        assert same(params.values(), twins.values())
    assert optimizer.t == {"head": 5, "body": 3}
    optimizer.frozen = True
    kept = bits([params, optimizer.state_dict()])
    grads = tensors(9)
    optimizer.step(params, grads)
    assert bits([params, optimizer.state_dict()]) == kept


@MODULES
def test_the_gradient_of_a_frozen_parameter_is_not_zeroed(module):
    params, grads = tensors(), tensors(1)
    kept = grads["body"].copy()
    module.SGD(zero_grad=True, overrides=BODY).step(params, grads)
    assert same(grads.values(), [np.zeros(30), kept])
