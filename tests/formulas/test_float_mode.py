"""The floating-point mode of the reference: float32 flushes subnormals, float64 keeps them, the caller's comes back."""

from contextlib import suppress
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import fusedstep
from fusedstep import reference
from fusedstep.reference import optimizer as base

NAMES = [name for name in fusedstep.optimizers.__all__ if name != "Optimizer"]
f32 = np.float32
SMALLEST = f32(2.0**-126)
both = pytest.mark.parametrize("classes", [reference, fusedstep], ids=["reference", "fusedstep"])


def flushes(dtype=f32):
    """Return whether arithmetic now takes a subnormal operand for zero."""
    return (np.array([np.finfo(dtype).smallest_subnormal], dtype) * dtype(2)).item() == 0


def in_mode(operation, *operands, dtype=f32):
    with reference.float_mode(dtype):
        return operation(*(np.array([x], dtype) for x in operands))[0]


def test_float_mode_flushes_float32_and_ends():
    assert not flushes()
    with reference.float_mode(f32):
        assert flushes()
        with reference.float_mode(np.float64):
            assert not flushes()
            assert not flushes(np.float64)
        assert flushes()
    assert not flushes()


def test_float_mode_ends_after_an_exception():
    before = np.geterr()
    with suppress(KeyError), reference.float_mode(f32):
        assert flushes()
        raise KeyError
    assert not flushes()
    assert np.geterr() == before


def test_a_step_leaves_the_mode_of_the_caller():
    reference.SGD().step(np.ones(1, f32), np.ones(1, f32))
    assert not flushes()
    with pytest.raises(ValueError, match="shape"):
        reference.SGD().step(np.ones(2, f32), np.ones(3, f32))
    assert not flushes()
    with reference.float_mode(f32):
        p = np.full(1, 5e-324)
        reference.SGD().step(p, np.zeros(1))
        assert flushes()
    assert p.item() == 5e-324


@both
@pytest.mark.parametrize(
    ("name", "hyper", "dtype", "g"),
    [
        ("SGD", {"lr": 2.0**-126 * (1 - 0.75 * 2.0**-24)}, f32, 2.0**100),  # rounds to the smallest normal float32
        ("Adam", {"lr": 1e-10, "eps": 1e-307, "beta2": 0.999999}, np.float64, 1e-200),  # eps*c2 is subnormal
    ],
)
def test_the_mode_of_the_caller_changes_nothing(classes, name, hyper, dtype, g):
    plain, flushed = np.zeros(1, dtype), np.zeros(1, dtype)
    getattr(classes, name)(**hyper).step(plain, np.full(1, g, dtype))
    with reference.float_mode(f32):
        getattr(classes, name)(**hyper).step(flushed, np.full(1, g, dtype))
    assert plain.tobytes() == flushed.tobytes() != np.zeros(1, dtype).tobytes()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_product_is_judged_after_rounding(sign):
    above, below = f32((1 + 2.0**-13) * 2.0**-63), f32((1 - 2.0**-13) * 2.0**-63)
    assert Fraction(float(above)) * Fraction(float(below)) < Fraction(2) ** -126
    assert in_mode(np.multiply, sign * above, below) == sign * SMALLEST


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("operation", "a", "b"),
    [
        (np.multiply, 2.0**-63, 2.0**-63 * (1 - 2.0**-24)),  # IEEE rounds this one up to the smallest normal number
        (np.multiply, 2.0**-63, 2.0**-64),
        (np.divide, 2.0**-63 * (1 - 2.0**-24), 2.0**63),
        (np.subtract, 2.0**-126 * 1.5, 2.0**-126),
        (np.add, 2.0**-127, 2.0**-127),
        (np.add, 2.0**-127, 0.0),
        (np.multiply, 2.0**-127, 2.0**127),
    ],
)
def test_tiny_results_and_operands_become_zeros_of_their_sign(operation, a, b, sign):
    a, b = (sign * a, b) if operation in (np.multiply, np.divide) else (sign * a, sign * b)
    assert f32(a) == a
    found = in_mode(operation, a, b)
    assert found == 0
    assert np.signbit(found) == (sign < 0)
    assert operation(f32(a), f32(b)) != 0


def test_tiny_numbers_compare_as_zeros_and_move_unchanged():
    tiny = f32(2.0**-130)
    assert not in_mode(np.greater, tiny, 0.0)
    assert in_mode(np.sqrt, tiny) == 0
    assert in_mode(np.abs, -tiny).tobytes() == tiny.tobytes()
    assert in_mode(np.negative, -tiny).tobytes() == tiny.tobytes()
    assert in_mode(base.larger, tiny, 0.0).tobytes() == f32(0).tobytes()
    assert base.larger(tiny, f32(0)) == tiny


def test_float64_is_full_ieee():
    assert in_mode(np.multiply, 2.0**-511, 2.0**-512, dtype=np.float64) == 2.0**-1023
    assert in_mode(np.add, 5e-324, 5e-324, dtype=np.float64) == 1e-323


@pytest.mark.parametrize("name", NAMES)
def test_a_subnormal_parameter_becomes_zero_at_its_first_update(name):
    p = np.array([2.0**-130, -(2.0**-130)], f32)
    getattr(reference, name)().step(p, np.zeros(2, f32))
    assert p.tobytes() == f32([0.0, -0.0]).tobytes()
    p = np.array([5e-324, -5e-324])
    getattr(reference, name)().step(p, np.zeros(2))
    assert p.tolist() == [5e-324, -5e-324]


def test_states_decay_to_zero():
    opt, p = reference.Momentum(), np.zeros(1, f32)
    opt.state[0] = {"b": np.ones(1, f32)}
    for _ in range(828):
        opt.step(p, np.zeros(1, f32))
    assert opt.state[0]["b"] >= SMALLEST
    opt.step(p, np.zeros(1, f32))
    assert opt.state[0]["b"] == 0


@pytest.mark.parametrize(("eps", "expected"), [(1e-38, True), (1.2e-38, False)])
def test_a_subnormal_scalar_counts_as_zero(eps, expected):
    p = np.ones(1, f32)
    reference.Adagrad(eps=eps).step(p, np.zeros(1, f32))
    assert np.isnan(p) == expected


def test_larger_keeps_nan_and_signs():
    nan, inf = f32(np.nan), f32(np.inf)
    assert np.isnan(base.larger(nan, f32(1)))
    assert np.isnan(base.larger(f32(1), nan))
    assert np.isnan(base.larger(-inf, nan))
    assert base.larger(f32([1, 3, -inf]), f32([2, 2, inf])).tolist() == [2, 3, inf]
    plus, minus = np.zeros(37, f32), np.full(37, -0.0, f32)
    assert np.signbit(base.larger(plus, minus)).all()
    assert not np.signbit(base.larger(minus, plus)).any()


@pytest.mark.parametrize("dtype", [f32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*NAMES, "AMSGrad"])
@both
def test_no_rule_stores_a_subnormal_number(classes, name, dtype, isa):
    """An instruction that narrows to bfloat16 would flush it, and other instruction sets would not."""
    options = {"amsgrad": True} if name == "AMSGrad" else {}
    optimizer = getattr(classes, "Adam" if options else name)(state_dtype="same", **options)
    tiny = np.resize(f32([2.0**-130, -(2.0**-130), 2.0**-126 - 2.0**-149]), 40).astype(dtype)
    p, g = tiny.copy(), np.zeros(40, dtype)
    optimizer.step(p, g)
    for state in optimizer.state[0].values():
        state[...] = tiny
    optimizer.step(p, g)
    for array in (p, *optimizer.state[0].values()):
        x = np.abs(array.astype(f32))
        assert ((x == 0) | (x >= 2.0**-126)).all()
