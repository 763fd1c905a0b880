"""The rules of the engine, written as functions, have the bits of the built-in ones, whatever is asked for."""

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu
from fusedstep.tools.verify import HALVES, dialects, difference, halves, outcome
from tests.programs.built_in import RULES, adam

pytestmark = pytest.mark.usefixtures("both_ways")

SIZES = (1, 5, 16, 33, 129, 515)

rules = pytest.mark.parametrize(
    ("cls", "made", "options_of"), RULES, ids=[f"{cls.__name__}-{made.__name__}" for cls, made, _ in RULES]
)


def made_of(options_of, options):
    """Return the options of a class made of a function, or None where they ask for something else."""
    start = options.get("initial_accumulator")
    plain = {name: value for name, value in options.items() if name != "initial_accumulator"}
    return None if start else options_of(plain)


def asked_for(cls, options_of):
    """Return the options of a class that ask for one of its rules, beside those of the class made of a function."""
    pairs = [(options, made_of(options_of, options)) for options in dialects(cls)]
    return [(options, mine) for options, mine in pairs if mine is not None]


@pytest.mark.sampled(5)
@rules
def test_same_bits(cls, made, options_of):
    for options, mine in asked_for(cls, options_of):
        for dtype in (np.float32, np.float64):
            expected = outcome(cls(**options), dtype, SIZES)
            for isa in _cpu.isas:
                fs.use_isa(isa)
                assert difference(outcome(made(**mine), dtype, SIZES), expected) == 0, (options, dtype, isa)


@pytest.mark.sampled(5)
@pytest.mark.skipif(len(HALVES) < 2, reason="ml_dtypes is not installed")
@rules
def test_same_bits_of_halves(cls, made, options_of):
    count = 0
    for options, dtype, grad_dtype in halves(cls):
        mine = made_of(options_of, options)
        if mine is None:
            continue
        count += 1
        expected = outcome(cls(**options), dtype, SIZES, grad_dtype)
        for isa in _cpu.isas:
            fs.use_isa(isa)
            assert difference(outcome(made(**mine), dtype, SIZES, grad_dtype), expected) == 0, (options, dtype, isa)
    assert count


@pytest.mark.sampled(3)
@rules
def test_the_reference_calls_the_function(cls, made, options_of):
    options, mine = asked_for(cls, options_of)[-1]
    for dtype in (np.float32, np.float64):
        expected = outcome(cls(**options), dtype, SIZES)
        assert difference(outcome(made.reference(**mine), dtype, SIZES), expected) == 0, (options, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits_where_memory_decides(dtype):
    """Large arrays may be given to the machine of another instruction set."""
    rng = np.random.default_rng(4)
    p, g = (rng.standard_normal(2_600_003).astype(dtype) for _ in range(2))
    for options in ({}, {"weight_decay": 0.1, "ema": 0.9}):
        expected, found = p.copy(), p.copy()
        for isa in _cpu.isas:
            fs.use_isa(isa)
            fs.Adam(**options).step(expected, g)
            adam(**options).step(found, g)
            assert difference([found], [expected]) == 0, (options, isa)
