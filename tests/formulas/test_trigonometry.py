"""The cosine of schedules: its bits, its error, and that no C library has a part in it."""

import ast
import math
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.schedules import trigonometry
from fusedstep.schedules.trigonometry import cos_pi

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
BITS = {
    1e-300: "0x1.0000000000000p+0",
    1e-9: "0x1.0000000000000p+0",
    0.01: "0x1.ffbf52e9d1086p-1",
    0.1: "0x1.e6f0e134454ffp-1",
    0.2: "0x1.9e3779b97f4a8p-1",
    0.25: "0x1.6a09e667f3bcdp-1",
    0.3: "0x1.2cf2304755a5ep-1",
    1 / 3: "0x1.0000000000000p-1",
    0.4999: "0x1.496b7bf8dc391p-12",
    0.5: "0x0.0p+0",
    0.7: "-0x1.2cf2304755a5dp-1",
    0.9: "-0x1.e6f0e13445500p-1",
    1.0: "-0x1.0000000000000p+0",
    1.7: "0x1.2cf2304755a5dp-1",
    1e6 + 0.3: "0x1.2cf2304651635p-1",
}


def exact(x):
    """Return cos(pi x) to some 60 digits, by its series."""
    with localcontext(prec=70):
        y = PI * Decimal(x)
        term = total = Decimal(1)
        for k in range(2, 130, 2):
            term *= -y * y / (k * (k - 1))
            total += term
    return total


def test_bits():
    assert {x: cos_pi(x).hex() for x in BITS} == BITS


@pytest.mark.parametrize("low", [0.0, 0.25, 0.49, 0.75, 1.5])
def test_the_error_is_below_one_unit_in_the_last_place(low):
    rng = np.random.default_rng(7)
    for x in (low + rng.random(400) / 4).tolist():
        right = exact(x)
        assert abs(Decimal(cos_pi(x)) - right) < Decimal(math.ulp(float(right))) * Decimal("0.75"), x


def test_tiny_numbers_and_what_is_close_to_half_a_turn():
    for k in range(2, 54):
        x = 0.5 - 2.0**-k
        right = exact(x)
        assert abs(Decimal(cos_pi(x)) - right) < Decimal(math.ulp(float(right))), x
        assert cos_pi(2.0**-k) == pytest.approx(float(exact(2.0**-k)), rel=2**-53, abs=0)


def test_symmetries_are_exact():
    for x in np.random.default_rng(8).integers(0, 2**40, 200) / 2**41:
        assert cos_pi(x) == cos_pi(2 - x) == cos_pi(2 + x) == -cos_pi(1 - x) == -cos_pi(1 + x)
        assert cos_pi(x + 2**-41) <= cos_pi(x)
        assert type(cos_pi(x)) is float


def test_coefficients_are_those_of_the_series():
    with localcontext(prec=80):
        sine = [float((-1) ** (k // 2) * PI**k / math.factorial(k)) for k in range(3, 18, 2)]
        cosine = [float((-1) ** (k // 2) * PI**k / math.factorial(k)) for k in range(4, 17, 2)]
        assert list(trigonometry._SINE) == sine
        assert list(trigonometry._COSINE) == cosine
        assert float(PI - Decimal(trigonometry._PI)) == trigonometry._PI_REST
        assert float(PI * PI / 2 - Decimal(trigonometry._HALF_PI2)) == trigonometry._HALF_PI2_REST


def test_schedules_have_bits():
    cosine = fs.schedules.cosine(0.1, steps=233)
    assert [cosine(done).hex() for done in (1, 116, 200, 232)] == [
        "0x1.9994d5989b758p-4",
        "0x1.9c5c81151fc65p-5",
        "0x1.3f0cd03ca7c54p-8",
        "0x1.31003f8908000p-18",
    ]
    restarts = fs.schedules.cosine_restarts(0.1, 7, 1.5, 0.7, 0.2)
    assert [restarts(done).hex() for done in (1, 9, 30)] == [
        "0x1.895feeea779bfp-4",
        "0x1.235e1fc9c487bp-4",
        "0x1.88d37bca30b02p-6",
    ]
    p = np.zeros(1)
    opt = fs.SGD(lr=cosine)
    for _ in range(233):
        opt.step(p, -np.ones(1))
    assert p.item().hex() == "0x1.7666666666667p+3"


@pytest.mark.parametrize("name", ["combined", "decays", "plateau", "schedule", "trigonometry"])
def test_no_function_of_the_c_library_is_called(name):
    """Powers of floats, `math.exp` and the like have other last bits on other platforms; a root is exact everywhere."""
    tree = ast.parse(Path(trigonometry.__file__).with_name(f"{name}.py").read_text())
    allowed = {"inf", "isnan", "prod", "sqrt"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "math":
            assert node.attr in allowed
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            assert ast.unparse(node) == "2.0 ** 40"
