"""The machine code that is made of rules, whichever instruction sets this processor has.

A disassembler, which shares nothing with the encoder, says what the instructions are; the tests follow values through
them, from arrays and scalars to what is stored, and find exactly what the program says.
"""

import random
import re
from dataclasses import fields

import pytest

from fusedstep import _cpu
from tests.programs.built_in import RULES
from tests.programs.disassembly import OBJDUMP, VECTORS, CodeError, check, check_codes, disassembled
from tests.programs.lists import CONDITIONS, FIRST_RESULT, OPS, TAKES, crowded, defined, drawn, program

needs_objdump = pytest.mark.skipif(not OBJDUMP, reason="needs objdump, which reads x86-64")
pairs = pytest.mark.parametrize(("isa", "dtype"), [(isa, t) for isa in VECTORS for t in ("float32", "float64")])


def with_rules(programs):
    return [(defined(**lists), lists) for lists in programs]


def has_code(rule, isa):
    """Return whether there is code of a rule with both endings."""
    return all(_cpu.code_of(rule.id, isa, "float32", ending) for ending in ("param", "update"))


def each_operation():
    """Return programs of one operation each, with scalars and elements in all places."""
    programs = []
    for name in OPS.keys() - {"power"}:
        for scalars in range(2 ** len(TAKES[name]) - 1):  # a bit for each operand that is a scalar
            elements = [("less", 0, 1), ("equal", 1, 0)]
            places = {"x": iter([1, 0, 2]), "c": iter([FIRST_RESULT, FIRST_RESULT + 1])}
            operands = [-1 - j if scalars >> j & 1 else next(places[kind]) for j, kind in enumerate(TAKES[name])]
            elements.append((name, *operands))
            if name in CONDITIONS:
                elements.append(("where", FIRST_RESULT + 2, 1, 3))
            value = FIRST_RESULT + len(elements) - 1
            programs += [program(elements, value, [value, 3], 3), program(elements, -1, [value, 2], 3)]
    return programs


@needs_objdump
@pairs
def test_each_operation_is_its_instruction(isa, dtype, tmp_path):
    seen = check_codes(with_rules(each_operation()), isa, dtype, tmp_path)
    letter = "s" if dtype == "float32" else "d"
    kinds = ["add", "sub", "mul", "div", "sqrt", "xor", "andn", "movu", "blendm" if isa == "avx512" else "blendv"]
    kinds += ["cmplt_oq", "cmple_oq", "cmpgt_oq", "cmpeq", "cmpneq", "cmpneq_oq", "cmpunord"]
    kinds += [] if isa == "avx512" else ["and", "or"]
    expected = {f"v{kind}p{letter}" for kind in kinds}
    if isa == "avx512":
        expected |= {"kandw", "korw", "knotw", "vpternlogd" if dtype == "float32" else "vpternlogq"}
    assert {name for name in seen if re.fullmatch(r"[vk][a-z]\w+", name)} - {"vzeroupper"} == expected


def random_programs(seeds):
    """Return programs of all lengths, with few and with many values at once."""
    programs = []
    for rng in map(random.Random, seeds):
        programs.append(
            drawn(rng, rng.randint(0, 64), rng.randint(0, 4), rng.choice([0, 2, 8, 24]), rng.choice([0, 3, 8, 20]))
        )
    return programs


def check_random(seeds, isa, dtype, folder):
    rules = [(rule, lists) for rule, lists in with_rules(random_programs(seeds)) if has_code(rule, isa)]
    assert len(rules) > 0.9 * len(seeds)
    return check_codes(rules, isa, dtype, folder)


@needs_objdump
@pairs
def test_code_of_random_programs(isa, dtype, tmp_path):
    check_random(range(100), isa, dtype, tmp_path)


@needs_objdump
@pytest.mark.exhaustive
@pairs
def test_code_of_many_random_programs(isa, dtype, tmp_path):
    check_random(range(100, 2000), isa, dtype, tmp_path)


@needs_objdump
@pairs
def test_code_that_needs_many_registers(isa, dtype, tmp_path):
    programs = [
        crowded(values, conditions, scalars) for values in range(8) for conditions in (0, 1) for scalars in (0, 24)
    ]
    programs += [crowded(values=13), crowded(conditions=7)] if isa == "avx512" else [crowded(conditions=8)]
    seen = check_codes(with_rules(programs), isa, dtype, tmp_path)
    vector, _, registers = VECTORS[isa]
    assert {f"{vector}{i}" for i in range(registers)} <= seen.keys()
    assert isa == "avx2" or {f"k{i}" for i in range(1, 8)} <= seen.keys()


@needs_objdump
@pairs
def test_code_of_the_rules_of_the_engine(isa, dtype, tmp_path):
    """All of them have code with both sets."""
    programs = [{each.name: getattr(made.program, each.name) for each in fields(made.program)} for _, made, _ in RULES]
    check_codes(with_rules(programs), isa, dtype, tmp_path)


@needs_objdump
@pytest.mark.parametrize("isa", VECTORS)
def test_wrong_code_is_found_out(isa, tmp_path):
    """Hardly any bit of code can be turned over without a fault that these tests see."""
    lists = drawn(random.Random(5), 12)
    code = _cpu.code_of(defined(**lists).id, isa, "float64", "param")
    wrong = [bytearray(code) for _ in range(8 * len(code))]
    for i, each in enumerate(wrong):
        each[i // 8] ^= 1 << i % 8
    passed = 0
    for each in disassembled(wrong, tmp_path):
        try:
            check(each, lists, isa, "float64", "param")
            passed += 1
        except CodeError:
            continue
    assert passed < 0.03 * len(wrong)  # some bits have no meaning


def test_what_code_is_asked_for():
    rule = defined(**program([], 1))
    assert _cpu.code_of(rule.id, "avx512_bf16", "float32", "param") == _cpu.code_of(
        rule.id, "avx512", "float32", "param"
    )
    for isa in ("baseline", "neon", "sse9"):
        with pytest.raises(ValueError, match=rf"^isa is {isa}, expected avx2 or avx512"):
            _cpu.code_of(rule.id, isa, "float32", "param")
    with pytest.raises(ValueError, match=r"^dtype is int8, expected float32 or float64"):
        _cpu.code_of(rule.id, "avx2", "int8", "param")
    with pytest.raises(ValueError, match=r"^ending is end, expected param or update"):
        _cpu.code_of(rule.id, "avx2", "float32", "end")
    with pytest.raises(ValueError, match=r"^rule is adam, expected one that define has made"):
        _cpu.code_of(_cpu.rules["adam"].id, "avx2", "float32", "param")
    for number in (-1, 10**6):
        with pytest.raises(IndexError):
            _cpu.code_of(number, "avx2", "float32", "param")
