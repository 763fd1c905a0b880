"""Rules with more values at once than there are registers: first the code of a rule has too few, then the machine."""

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu
from fusedstep.tools.verify import difference, outcome

MOST = 13  # intermediate results of the machine
SETS = ("avx2", "avx512")


def crowd(values=0, conditions=0, scalars=0):
    """Return a rule in which so many intermediate results are alive at once, and all arrays."""

    def mine(p, g, a, b, c, d, *, lr=0.1, rate=0.3):
        arrays = [p, g, a, b, c, d]
        numbers = [rate + k for k in range(scalars)]
        pairs = [(arrays[i % 6], arrays[(i + 1 + i // 6) % 6]) for i in range(max(values, conditions))]
        made = [x * y for x, y in pairs[:values]]
        asked = [x < y for x, y in pairs[:conditions]]
        last = p
        for _ in range(2):  # each is needed twice
            for value in made:
                last = last + value
            for condition in asked:
                last = np.where(condition, last, g)
        for each in (*arrays, *numbers):
            last = last + each
        return lr * last, last, b, c, d

    return fs.rule(states="a b c d")(mine)


def has_code(cls, isa):
    return [bool(_cpu.code_of(_cpu.rules[cls.rule].id, isa, "float32", ending)) for ending in ("param", "update")]


def check(cls, sizes=(1, 16, 33, 300)):
    """Check the bits of a rule on all instruction sets, with code where there is some."""
    for options in ({}, {"weight_decay": 0.1}):
        for dtype in (np.float32, np.float64):
            expected = outcome(cls.reference(**options), dtype, sizes)
            for isa in _cpu.isas:
                fs.use_isa(isa)
                assert difference(outcome(cls(**options), dtype, sizes), expected) == 0, (options, dtype, isa)


@pytest.mark.parametrize("values", [4, 10, MOST])
def test_results(values):
    cls = crowd(values)
    assert has_code(cls, "avx2") == [values < 10] * 2
    assert has_code(cls, "avx512") == [True] * 2  # these are never too many
    check(cls)


@pytest.mark.parametrize(("conditions", "sets"), [(4, SETS), (7, SETS), (8, ["avx2"]), (MOST, [])])
def test_conditions(conditions, sets):
    """AVX-512 has registers of their own for conditions, and fewer of these."""
    cls = crowd(conditions=conditions)
    assert [isa for isa in SETS if has_code(cls, isa) == [True] * 2] == [*sets]
    check(cls)


@pytest.mark.parametrize(("values", "conditions"), [(2, 0), (8, 0), (0, 8)])
def test_scalars(values, conditions):
    """Scalars that find no register stay in memory: they cost no rule its code."""
    few, many = crowd(values, conditions), crowd(values, conditions, 20)
    for isa in SETS:
        assert has_code(few, isa) == has_code(many, isa)
    check(many)


@pytest.mark.parametrize(("values", "conditions"), [(MOST + 1, 0), (0, MOST + 1), (7, 7)])
def test_too_many_for_the_machine(values, conditions):
    before = dict(_cpu.rules)
    message = rf"^\w+, line \d+ of .*: the program has more than {MOST} intermediate results at once, expected f"
    with pytest.raises(ValueError, match=message):
        crowd(values, conditions)
    assert before == _cpu.rules
