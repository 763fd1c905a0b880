"""What the compiler made of the rules."""

import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import fusedstep as fs
from fusedstep import _cpu

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
COMPILER = shutil.which("g++") or shutil.which("c++")
CROSS = "aarch64-linux-gnu-"
PACKED = {
    "x86": re.compile(r"v?(add|sub|mul|div|sqrt)p([sd])"),
    "arm": re.compile(r"f(add|sub|mul|div|sqrt)\tv\d+\.(4s|2d)"),
}
SINGLE = {  # instructions that compute with one number
    "x86": re.compile(r"v?(add|sub|mul|div|sqrt)s[sd]"),
    "arm": re.compile(r"f(add|sub|mul|div|sqrt)\t[sd]\d"),
}
FUSED = re.compile(r"v?fn?m(add|sub|la|ls)|vfm|vfnm")


def flags_of(isa):
    """Return the flags with which this build compiled the kernels of an instruction set."""
    common, *isas = fs.info()["flags"].split("; ")
    return common.split() + dict(entry.split(": ", 1) for entry in isas)[isa].split()


def compiled(compiler, isa, flags, folder, source="kernels"):
    target = folder / f"{isa}.o"
    command = [
        compiler,
        "-std=c++20",
        f"-I{CSRC}",
        "-fPIC",
        *flags,
        f"-DFUSEDSTEP_ISA={isa}",
        "-c",
        CSRC / "engines" / "cpu" / f"{source}.cpp",
        "-o",
        target,
    ]
    subprocess.run(command, check=True, timeout=300)
    return target


@cache
def instructions(target, tools=""):
    """Return the instructions of each function of an object file."""
    command = [tools + "objdump", "-d", "-C", "--no-show-raw-insn", target]
    functions = {}
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        if head := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            body = functions.setdefault(head[1].replace("(anonymous namespace)::", ""), [])
        elif code := re.match(r"\s+[0-9a-f]+:\s+(\S.*)", line):
            body.append(code[1])
    return functions


def built(isa, folder, source="kernels"):
    """Return the object that the build has left, as a link in `folder`; None if sources have changed since then."""
    objects = ROOT.glob(f"build/*/CMakeFiles/kernels_{isa}.dir/csrc/engines/cpu/{source}.cpp.o")
    changed = max(path.stat().st_mtime for path in [ROOT / "CMakeLists.txt", *CSRC.rglob("*.*")])
    for path in objects:
        if path.stat().st_mtime > changed:
            target = folder / f"{isa}.o"
            target.symlink_to(path)
            return target
    return None


def found_object(isa, folder, source):
    """Return a source of an instruction set as an object file, compiled if the build has left none."""
    if not COMPILER or not shutil.which("objdump"):
        pytest.skip("needs a compiler and objdump")
    return built(isa, folder, source) or compiled(COMPILER, isa, flags_of(isa), folder, source)


@pytest.fixture(scope="module", params=_cpu.built_isas)
def kernels(request, tmp_path_factory):
    """The kernels of an instruction set."""
    return found_object(request.param, tmp_path_factory.mktemp("kernels"), "kernels")


@pytest.fixture(scope="module", params=_cpu.built_isas)
def programs(request, tmp_path_factory):
    """What runs rules that are made at run time, of an instruction set."""
    return found_object(request.param, tmp_path_factory.mktemp("programs"), "programs")


def rules():
    """Return the C++ names of all rules."""
    return re.findall(r"X\((\w+)\)", (CSRC / "rules" / "all.h").read_text())


def check_vectorised(functions, machine):
    variants = {rule: "0" if rule.startswith("Limit") else "0123" for rule in rules()}  # a yardstick has no options
    pairs = [(rule, variant) for rule in variants for variant in variants[rule]]
    expected = {f"update<{rule}, {variant}, {t}, false, false>" for rule, variant in pairs for t in ("float", "double")}
    expected |= {f"update<{rule}, {variant}, float, false, true>" for rule, variant in pairs if variant in "01"}
    expected |= {f"update_measured<{rule}>" for rule, variant in pairs if variant == "2"}
    expected |= {f"update_narrow<{rule}, {v}, {loop}>" for rule, v in pairs if v in "01" for loop in "2345"}
    expected |= {f"update_generic<{rule}>" for rule in rules()}
    found = {}
    for name, code in functions.items():
        if match := re.search(r"(update\w*<.+?>)\(", name.replace("(fusedstep::Variant)", "")):
            found[match[1]] = code
    assert expected == found.keys()
    for name, code in found.items():
        operations = Counter(m[1] for line in code if (m := PACKED[machine].match(line)))
        assert operations["sub"] > 0, f"{name} is not vectorised"
        if not name.startswith(("update<", "update_measured<")):
            single = [line for line in code if SINGLE[machine].match(line)]
            assert not single, f"{name} computes one by one"
        scalar = Counter(m[1] for line in code if (m := re.match(r"v?(div|sqrt)s[sd]", line)))
        assert not scalar.keys() - operations.keys(), f"{name} divides or takes roots one by one only"


def test_sums_of_squares_are_vectorised(kernels):
    found = [code for name, code in instructions(kernels).items() if re.match(r"void square<", name)]
    found += [code for name, code in instructions(kernels).items() if re.search(r"square_(narrow<|pair\()", name)]
    assert len(found) == 5
    for code in found:
        operations = Counter(m[1] for line in code for machine in PACKED.values() if (m := machine.match(line)))
        assert operations["mul"] > 0
        assert operations["add"] > 0


def test_sums_of_arrays_are_vectorised(kernels):
    found = {}
    for name, code in instructions(kernels).items():
        if match := re.search(r"RunOfSum<(float|double)>::add<(\d)>", name):
            found[match.groups()] = Counter(m[1] for line in code for p in PACKED.values() if (m := p.match(line)))
    assert found.keys() == {(t, count) for t in ("float", "double") for count in "2345678"}
    for (_, count), operations in found.items():
        assert operations["add"] >= int(count) - 1


def test_float16_is_converted_by_the_instructions_for_it(kernels):
    if kernels.stem not in ("avx2", "avx512", "avx512_bf16"):
        pytest.skip("has none")
    for name, code in instructions(kernels).items():
        if re.search(r"update_narrow<\w+, .*, [45]>|update_generic", name):
            assert any(line.startswith("vcvtph2ps") for line in code), name
            assert any(line.startswith("vcvtps2ph") and line.split()[1].startswith("$0x0,") for line in code), name


def test_bfloat16_is_written_by_the_instruction_for_it(kernels):
    found = [name for name, code in instructions(kernels).items() if any("vcvtneps2bf16" in line for line in code)]
    assert bool(found) == (kernels.stem == "avx512_bf16")
    written = [name for name in instructions(kernels) if re.search(r"update_narrow<\w+, .*, [23]>", name)]
    assert not found or set(written) < set(found)


def test_every_loop_of_every_rule_is_vectorised(kernels):
    check_vectorised(instructions(kernels), "x86" if "neon" not in kernels.name else "arm")


def test_no_selection_becomes_a_maximum_that_flushes_what_it_moves(kernels):
    for name, code in instructions(kernels).items():
        if not re.search("RMSpropCentered|AMSGrad", name):  # they select a difference and a sum, never subnormal
            assert not [line for line in code if re.match(r"v?(max|min)[ps][sd]", line)], name


def test_no_kernel_fuses_a_multiplication_and_an_addition(kernels):
    for name, code in instructions(kernels).items():
        assert not [line for line in code if FUSED.match(line)], name


def symbols(target, tools=""):
    lines = subprocess.run([tools + "nm", target], check=True, capture_output=True, text=True).stdout.splitlines()
    return [line.split()[-2:] for line in lines]


def test_kernels_export_one_table_and_no_weak_symbol(kernels):
    defined = [name for kind, name in symbols(kernels) if kind.isupper() and kind != "U"]
    assert len(defined) == 1
    assert f"kernels_{kernels.stem}" in defined[0]
    assert not [name for kind, name in symbols(kernels) if kind in "wWvVu"]


# Rules that are made at run time: the steps of the machine, and what surrounds them.


MOVES = re.compile(r"(cs )?nop|data16|xchg +%ax,%ax$")  # no instructions, but room between functions


def steps():
    """Return the names of the steps of the machine."""
    text = (CSRC / "programs" / "instructions.h").read_text().partition("namespace")[0]
    return re.findall(r"^    X\((\w+),", text, re.MULTILINE)


def functions_of_steps(target, tools=""):
    """Return the instructions of the functions of steps by name and type, without what fills up their ends."""
    found = {}
    for name, code in instructions(target, tools).items():
        if match := re.search(r"do_step<(float|double), machine::(\w+)Text,|do_(store|end)<(float|double),", name):
            key = (match[2], match[1]) if match[2] else (match[3], match[4])
            found[key] = [line for line in code if not MOVES.match(line)]
    return found


def check_jumps(functions):
    """Check that each step goes on to the next one by a jump, on its only way: then no stack can grow."""
    names = {(name, t) for name in (*steps(), "store", "end") for t in ("float", "double")}
    assert names == functions.keys()
    for name, code in functions.items():
        assert re.match(r"ret" if name[0] == "end" else r"jmp +\*%r", code[-1]), f"{name} does not end in a jump"
        others = [line for line in code[:-1] if re.match(r"call|j\w+ |ret", line)]
        assert not others, f"{name} does not run straight to its end"


def check_programs(functions):
    for name, code in functions.items():
        assert not [line for line in code if FUSED.match(line)], f"{name} fuses"
        assert not [line for line in code if re.match(r"v?(max|min)[ps][sd]", line)], f"{name} takes a maximum"
        assert not [line for line in code if re.match(r"v?r(cp|sqrt)\d*[ps][sd]", line)], f"{name} estimates"


def test_no_program_fuses_or_takes_a_maximum(programs):
    check_programs(instructions(programs))


def test_programs_export_one_function_and_no_weak_symbol(programs):
    defined = [name for kind, name in symbols(programs) if kind.isupper() and kind != "U"]
    assert len(defined) == 1
    assert f"update_program_{programs.stem}" in defined[0]
    assert not [name for kind, name in symbols(programs) if kind in "wWvVu"]


def test_every_step_of_the_machine_jumps_to_the_next(programs):
    if programs.stem == "neon":
        pytest.skip("looks for the jumps of x86-64")
    check_jumps(functions_of_steps(programs))


def test_the_accumulator_stays_in_registers(programs):
    """Where there are 32 vector registers, no step needs memory but that of arrays and scalars."""
    functions = functions_of_steps(programs)
    if programs.stem.startswith("avx512"):
        kept = functions
    else:  # selections need more registers than the other sets have
        simple = ("Load", "Fill", "Add", "Subtract", "Multiply", "Divide", "Root", "Negative", "Magnitude", "store")
        kept = {key: code for key, code in functions.items() if key[0] in simple}
    assert kept
    for name, code in kept.items():
        assert not [line for line in code if re.search(r"%[re][sb]p|\bsp\b", line)], f"{name} uses the stack"


def test_every_step_computes_with_whole_vectors(programs):
    """Only a scalar that is compared is flushed to zero by itself, before it fills a vector."""
    machine, operations = "x86" if programs.stem != "neon" else "arm", ("add", "sub", "mul", "div")
    wanted = {("Add", 0), ("Subtract", 1), ("Multiply", 2), ("Divide", 3)}
    for (name, t), code in functions_of_steps(programs).items():
        single = [line for line in code if SINGLE[machine].match(line)]
        assert name in ("LargerAfterScalar", "SmallerAfterScalar") or not single, f"{name} computes one by one"
        done = Counter(m[1] for line in code if (m := PACKED[machine].match(line)))
        for step, i in wanted:
            assert step != name or done == {operations[i]: 8}, (name, t)  # the accumulator is eight vectors
        assert name != "Root" or done == {"sqrt": 8}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("isa", "flags", "check"),
    [
        ("avx2", "-O3 -mavx2 -mfma -ffp-contract=fast", lambda target: check_programs(instructions(target))),
        ("avx2", "-O3 -mavx2 -ffast-math", lambda target: check_programs(instructions(target))),
        (
            "avx2",
            "-O3 -mavx2 -fno-optimize-sibling-calls",
            lambda target: check_jumps(functions_of_steps(target)),
        ),
        ("baseline", "-O0", lambda target: check_jumps(functions_of_steps(target))),
    ],
)
def test_the_checks_of_programs_see_what_they_look_for(isa, flags, check, tmp_path):
    if not COMPILER or "avx2" not in _cpu.built_isas:
        pytest.skip("needs a compiler for x86-64")
    target = compiled(COMPILER, isa, [*flags.split(), "-march=x86-64-v2"], tmp_path, "programs")
    with pytest.raises(AssertionError, match=r"fuses|takes a maximum|estimates|does not"):
        check(target)


@pytest.mark.exhaustive
def test_the_checks_see_what_they_look_for(tmp_path):
    """Kernels that are compiled with fusing, or one number at a time, are found out."""
    if not COMPILER or "avx2" not in _cpu.built_isas:
        pytest.skip("needs a compiler for x86-64")
    fused = compiled(COMPILER, "avx2", ["-O3", "-mavx2", "-mfma", "-fno-math-errno"], tmp_path)
    assert any(FUSED.match(line) for code in instructions(fused).values() for line in code)
    scalar = compiled(COMPILER, "baseline", ["-O3", "-ffp-contract=off"], tmp_path)
    with pytest.raises(AssertionError, match=r"is not vectorised|one by one"):
        check_vectorised(instructions(scalar), "x86")


@pytest.mark.skipif(not shutil.which(CROSS + "g++"), reason="needs a compiler for AArch64")
def test_the_same_source_compiles_for_aarch64(tmp_path):
    common = fs.info()["flags"].split("; ")[0].split()
    target = compiled(CROSS + "g++", "neon", [*common, "-march=armv8-a"], tmp_path)
    functions = instructions(target, CROSS)
    check_vectorised(functions, "arm")
    assert not [line for code in functions.values() for line in code if FUSED.match(line)]
    assert not [name for kind, name in symbols(target, CROSS) if kind in "wWvVu"]
    for source in ("dispatch", "pool"):
        command = [
            CROSS + "g++",
            "-std=c++20",
            f"-I{CSRC}",
            "-fsyntax-only",
            "-Wall",
            "-Werror",
            CSRC / "engines" / "cpu" / f"{source}.cpp",
        ]
        subprocess.run(command, check=True)


def test_no_fast_math_anywhere():
    text = (ROOT / "CMakeLists.txt").read_text() + (ROOT / "pyproject.toml").read_text()
    assert not re.search(r"-ffast-math|-Ofast|-march=native|-flto|-ffp-contract=(fast|on)", text)
    assert "-ffp-contract=off" in fs.info()["flags"]
