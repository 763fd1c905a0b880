"""The scalars of the reference: powers in float64, and what is rounded to float32 once."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from fusedstep import reference
from fusedstep.reference import optimizer as base

f32 = np.float32


def test_powers_multiply_in_one_order():
    x = 0.9
    assert [base.power(x, n) for n in range(4)] == [1.0, x, x * x, x * (x * x)]
    assert base.power(x, 5) == x * ((x * x) * (x * x))
    assert base.power(x, 7) == (x * (x * x)) * ((x * x) * (x * x))
    assert (base.power(0.0, 0), base.power(0.0, 3), base.power(1.0, 10**9)) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("n", [829, 4097, 10**5])
@pytest.mark.parametrize("x", [0.5, 0.9, 0.999, 0.99999, 1 - 2.0**-40])
def test_powers_stay_accurate(x, n):
    with localcontext(prec=50):
        expected = Decimal(x) ** n
    assert base.power(x, n) == pytest.approx(float(expected), rel=n * 2.0**-52, abs=1e-300)


def test_powers_are_exact_where_they_can_be():
    assert [base.power(0.5, n) for n in (1, 100, 1074, 1075, 10**5)] == [0.5, 2.0**-100, 2.0**-1074, 0.0, 0.0]


BASES = [0.96, 0.9, 0.1, 0.75, 1.0, 1.5, 3.0]


@pytest.mark.parametrize("x", BASES)
def test_rational_powers_are_correctly_rounded(x):
    assert base.rational_power(x, 0.5) == math.sqrt(x)
    assert base.rational_power(x, 0.0) == 1.0
    for n in (1, 2, 3, 10, 200):
        assert base.rational_power(x, float(n)) == float(Fraction(x) ** n)
        assert base.rational_power(x, float(-n)) == float(1 / Fraction(x) ** n)


@pytest.mark.parametrize("x", BASES)
def test_fourth_roots_are_correctly_rounded(x):
    r = base.rational_power(x, 0.25)
    below, above = (Fraction(r) + Fraction(math.nextafter(r, to)) for to in (0.0, math.inf))
    assert (below / 2) ** 4 < Fraction(x) < (above / 2) ** 4


def test_rational_powers_at_the_ends():
    assert base.rational_power(0.0, 0.5) == 0.0
    assert base.rational_power(0.0, 0.0) == 0.0
    assert base.rational_power(0.96, math.inf) == 0.0
    assert base.rational_power(0.96, 0.004) ** 250 == pytest.approx(0.96, rel=1e-14)


def test_decoupled_decay_is_multiplied_in_float64():
    p = np.ones(1, f32)
    reference.SGD(lr=0.7, weight_decay=0.3, decoupled=True).step(p, np.zeros(1, f32))
    assert p.tolist() == [f32(1) - f32(0.7 * 0.3)]
    assert f32(0.7 * 0.3) != f32(0.7) * f32(0.3)


def test_decoupled_decay_is_not_too_strong_in_float32():
    start = np.linspace(1, 2, 10_000, dtype=f32)
    p = start.copy()
    reference.SGD(lr=1e-3, weight_decay=1e-3, decoupled=True).step(p, np.zeros_like(p))
    lost = (start.astype(float) - p).sum() / start.astype(float).sum()
    assert lost == pytest.approx(1e-6, rel=2e-3)
    assert 1 - float(f32(1 - 1e-6)) > 1.013e-6
