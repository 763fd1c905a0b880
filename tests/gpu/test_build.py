"""What nvcc made of the rules, and when the engine for GPUs is built."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).parents[2]
CUDA = ROOT / "csrc" / "engines" / "cuda"
NVCC = shutil.which("nvcc")
PACKAGED = [str(folder) for folder in Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin")]
NVDISASM = shutil.which("nvdisasm", path=os.pathsep.join([os.environ["PATH"], *PACKAGED]))
OLDEST, NEWER = "75", ("80", "90", "100", "120")  # architectures of GPUs
SOURCES = {"prepare": ["prepare.cu"]} | {
    loop: ["update.cu", f"-DFUSEDSTEP_LOOP={loop}"] for loop in ("float32", "float64", "generic")
}

needs_nvcc = pytest.mark.skipif(not NVCC, reason="needs nvcc")

# Instructions that round once (ARITHMETIC) or not at all (EXACT); instructions on float32 flush. Conversions of
# gradients are written by hand (KEEPING): subnormal numbers of float32 are kept in them, and the first rounds once.
ARITHMETIC = re.compile(r"(add|sub|mul|div|sqrt)\.rn(\.ftz\.f32|\.f64)")
EXACT = re.compile(
    r"(setp|set)\.\w+(\.\w+)?(\.ftz\.f32|\.f64)|selp\.f(32|64)|(neg|abs)(\.ftz\.f32|\.f64)|mov\.f(32|64)"
    r"|(ld|st)\.\w+(\.v[24])?\.f(32|64)|(ld|st)(\.v[24])?\.f(32|64)"
    r"|cvt\.rn\.f32\.s32|cvt\.rn\.f64\.(s64|u32)|cvt\.rzi\.ftz\.s32\.f32|cvt\.rzi\.[us]64\.f64|cvt\.ftz\.f64\.f32|cvt\.rn\.ftz\.f32\.f64"
)
KEEPING = re.compile(r"cvt\.rn\.f32\.f64|cvt\.f64\.f32")


def flags():
    """Return the flags that fix the bits, as the build gives them to nvcc."""
    return re.search(r"set\(CUDA_IEEE_FLAGS (.+)\)", (ROOT / "CMakeLists.txt").read_text())[1].split()


def rules():
    """Return the C++ names of all rules."""
    return re.findall(r"X\((\w+)\)", (ROOT / "csrc" / "rules" / "all.h").read_text())


def nvcc(name, target, *options):
    source, *definitions = SOURCES[name]
    command = [NVCC, "-std=c++20", f"-I{ROOT / 'csrc'}", *options, *definitions, CUDA / source, "-o", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stderr


def check_arithmetic(text):
    """Fail if there is an instruction on floating-point numbers that is not correctly rounded; return the others."""
    found = Counter(re.findall(r"^\s*(?:@!?%p\d+ )?([a-z]\w*\.[\w.]*f(?:16|32|64)[\w.]*)\s", text, re.MULTILINE))
    wrong = [code for code in found if not any(kind.fullmatch(code) for kind in (ARITHMETIC, EXACT, KEEPING))]
    assert not wrong
    assert not re.search(r"\bfma|\bmad\.\w+\.f|\.approx|\.full|\brcp|\brsqrt", text)
    return found


@pytest.mark.exhaustive
@needs_nvcc
@pytest.mark.parametrize("name", SOURCES)
def test_every_operation_is_rounded_once(name, tmp_path):
    nvcc(name, tmp_path / "a.ptx", "-ptx", "-arch=compute_75", *flags())
    found = check_arithmetic((tmp_path / "a.ptx").read_text())
    assert name != "float32" or not any(map(KEEPING.fullmatch, found))  # a loop that converts nothing
    own = {"float32": "ftz.f32", "generic": "ftz.f32", "float64": "f64", "prepare": "f64"}[name]
    assert {f"{word}.rn.{own}" for word in ("add", "sub", "mul", "div", "sqrt")} <= found.keys()
    if name in ("float32", "generic"):
        in_double = {code for code in found if ARITHMETIC.fullmatch(code) and code.endswith("f64")}
        assert in_double == {"mul.rn.f64", "add.rn.f64"}  # the squares of updates, and their sums


@needs_nvcc
@pytest.mark.exhaustive
@pytest.mark.parametrize("wrong", ["-fmad=true", "-prec-div=false", "-prec-sqrt=false", "-ftz=false"])
def test_the_check_sees_what_it_looks_for(wrong, tmp_path):
    nvcc(
        "float32",
        tmp_path / "a.ptx",
        "-ptx",
        "-arch=compute_75",
        *(flag for flag in flags() if flag[:6] != wrong[:6]),
        wrong,
    )
    with pytest.raises(AssertionError):
        check_arithmetic((tmp_path / "a.ptx").read_text())


@pytest.fixture(scope="module")
def cubins(tmp_path_factory):
    return tmp_path_factory.mktemp("cubins")


@pytest.fixture(scope="module", params=[OLDEST, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in NEWER)])
def arch(request):
    if not NVCC:
        pytest.skip("needs nvcc")
    listed = subprocess.run([NVCC, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout.split()
    if f"compute_{request.param}" not in listed:
        assert request.param not in (OLDEST, "80", "90")
        pytest.skip("unknown to this nvcc")
    return request.param


@pytest.fixture(scope="module")
def reports(arch, cubins):
    """What ptxas says of each kernel of each source: its registers, and the bytes that it spills."""

    def report(name):
        text = nvcc(name, cubins / f"{name}_{arch}.cubin", "-cubin", f"-arch=sm_{arch}", "-Xptxas=-v", *flags())
        kernels = re.findall(
            r"Compiling entry function '(\w+)'.*\n.*\n\s+\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes "
            r"spill loads\n.*Used (\d+) registers",
            text,
        )
        return {kernel: tuple(map(int, numbers)) for kernel, *numbers in kernels}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(SOURCES, pool.map(report, SOURCES), strict=True))


@pytest.mark.exhaustive
def test_kernels_fit_into_their_registers_on_every_architecture(reports):
    """A kernel for all rules that are made at run time has fewer threads, and more registers for each."""
    for name, kernels in reports.items():
        for kernel, (stored, loaded, registers) in kernels.items():
            assert (stored, loaded) == (0, 0), f"{kernel} of {name} spills"
            assert registers <= (96 if "update_made" in kernel else 64), f"{kernel} of {name}"


def test_every_rule_has_its_kernels(reports):
    """Two bodies of the loops that convert nothing, but one for a yardstick; one of all other kernels."""
    for name, kernels in reports.items():
        expected = {rule: 2 if "float" in name and not rule.startswith("Limit") else 1 for rule in rules()}
        for rule, count in expected.items():
            own = [kernel for kernel in kernels if re.search(rf"\d{rule}[EN]", kernel)]
            assert len(own) == count, (name, rule)
        common = 7 if name == "prepare" else 1  # the kernel that averages
        made = 2 if "float" in name else 1  # for rules that are made at run time
        assert len(kernels) == sum(expected.values()) + common + made


def keeping_subnormals(text):
    """Return the instructions that do not flush subnormals, but for comparisons with a normal number."""
    found = []
    for code, operands in re.findall(r"\s(F(?:ADD|MUL|SETP|SET|MNMX)[\w.]*) ([^;]*);", text):
        numbers = re.findall(r"(?<![\w.])\d[\d.]*(?:e[-+]?\d+)?", operands)
        exempt = code.startswith("FSETP") and any(float(each) >= 2.0**-126 for each in numbers)
        if ".FTZ" not in code and not exempt:
            found.append(f"{code} {operands}")
    return found


@pytest.mark.exhaustive
@pytest.mark.skipif(not NVDISASM, reason="needs nvdisasm")
@pytest.mark.parametrize("name", ["float32", "generic"])
def test_ptxas_leaves_the_flush_in_every_instruction(reports, arch, cubins, name):
    """A comparison with 0 that a branch guards would lose its flush, so no rule may have one."""
    command = [NVDISASM, "-c", cubins / f"{name}_{arch}.cubin"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert text.count("FADD.FTZ") > 1000
    assert keeping_subnormals(text) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (" FADD.FTZ R36, RZ, R20 ; FSETP.GEU.FTZ.OR P5, PT, R20.reuse, RZ, !P1 ;", 0),
        (" FSETP.GTU.OR P5, PT, R12, -1.175494350822287508e-38, !P2 ;", 0),
        (" FADD.FTZ R36, RZ, R20 ; FSETP.GEU.OR P5, PT, R36, RZ, !P1 ;", 1),
        (" FSETP.GTU.OR P5, PT, R12, 1.1e-38, !P2 ; @P1 FMUL R1, R2, R3 ;", 2),
    ],
)
def test_the_check_of_instructions_sees_what_it_looks_for(text, count):
    assert len(keeping_subnormals(text)) == count


# The build.


@pytest.fixture
def configure(tmp_path):
    """Return a function that configures the build, with a list of folders to look for programs in."""
    cmake, compiler = shutil.which("cmake"), shutil.which("c++")
    if not cmake or not compiler:
        pytest.skip("needs CMake and a compiler")

    def run(option, folders=os.environ["PATH"]):
        command = [
            cmake,
            "-S",
            ROOT,
            "-B",
            tmp_path / option,
            f"-DFUSEDSTEP_CUDA={option}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        command += [
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_CXX_COMPILER={compiler}",
            "-DPYBIND11_FINDPYTHON=ON",
        ]
        environment = {name: value for name, value in os.environ.items() if name != "CUDACXX"} | {"PATH": folders}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)

    return run


@pytest.fixture
def without_nvcc(tmp_path):
    """A folder of all programs that a build needs, but for nvcc."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("c++", "cc", "gcc", "g++", "ld", "as", "ar", "ranlib", "nm", "ninja", "make", "git", "uname", "sh"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return str(folder)


def test_a_build_without_nvcc_says_so(configure, without_nvcc):
    code, said = configure("AUTO", without_nvcc)
    assert code == 0, said
    assert "fusedstep: without the engine for GPUs (FUSEDSTEP_CUDA=AUTO, no nvcc found or wanted)" in said
    code, said = configure("ON", without_nvcc)
    assert code != 0
    assert "FUSEDSTEP_CUDA is ON, but nvcc was not found: put it in PATH or name it in CUDACXX" in said


def test_a_build_may_leave_it_out(configure):
    code, said = configure("OFF")
    assert code == 0, said
    assert "fusedstep: without the engine for GPUs (FUSEDSTEP_CUDA=OFF" in said


@pytest.mark.exhaustive
@needs_nvcc
def test_a_build_with_nvcc_has_it(configure):
    code, said = configure("ON")
    assert code == 0, said
    assert "fusedstep: with the engine for GPUs, architectures" in said


# Which architectures a build is for.


@pytest.fixture
def fakes(tmp_path):
    """Return a function that makes programs: nvidia-smi that finds GPUs, and nvcc that says which ones it knows."""

    def make(gpus, known):
        (folder := tmp_path / "fakes").mkdir()
        programs = {
            "nvidia-smi": f"printf '%s\\n' {' '.join(gpus)}" if gpus else "echo No devices were found; exit 6",
            "nvcc": f"""[ "$1" = --list-gpu-code ] || exec "{NVCC}" "$@"
                for each in {known}; do echo sm_$each; done""",
        }
        for name, text in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return os.pathsep.join([str(folder), os.environ["PATH"]])

    return make


@pytest.mark.parametrize(
    ("gpus", "known", "architectures", "too_old"),
    [
        (["9.0", "8.0", "9.0"], "75 80 90", "90;80", ""),
        (["7.0", "6.1", "8.0"], "75 80 90", "80", "70, 61 are too old for this nvcc, which begins with 75"),
        (["7.0"], "75 80 90", "", "70 are too old for this nvcc, which begins with 75"),
        (["12.0", "10.0"], "90 75 80", "90-virtual", ""),  # newer ones translate the code of the highest
        (["8.9"], "75 80 86 90", "86-virtual", ""),
        (["9.0"], "75 80 90 100", "90", ""),
        (["10.0"], "75 80 90 100 120", "100", ""),
        ([], "52 60 75 80 90", "75", ""),
        ([], "80 90", "80", ""),
        (["8.0"], "", "80", ""),  # a compiler that does not tell what it knows
        ([], "", "75", ""),
    ],
)
def test_the_architectures_of_a_build(fakes, tmp_path, gpus, known, architectures, too_old):
    if not (cmake := shutil.which("cmake")):
        pytest.skip("needs CMake")
    script = tmp_path / "script.cmake"
    script.write_text(
        f"""cmake_policy(VERSION 3.24)
include({CUDA}/architectures.cmake)
find_architectures(nvcc architectures too_old)
message("${{architectures}}|${{too_old}}")"""
    )
    environment = os.environ | {"PATH": fakes(gpus, known)}
    done = subprocess.run([cmake, "-P", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stderr.strip() == f"{architectures}|{too_old}"


@pytest.mark.exhaustive
@needs_nvcc
def test_a_build_for_a_newer_gpu(configure, fakes):
    code, said = configure("AUTO", fakes(["99.0"], "75 80 90"))
    assert code == 0, said
    assert "fusedstep: with the engine for GPUs, architectures 90-virtual " in said


@pytest.mark.exhaustive
@needs_nvcc
def test_a_build_for_gpus_that_are_too_old(configure, fakes):
    folders, reason = (
        fakes(["7.0"], "75 80 90"),
        "GPUs of architecture 70 are too old for this nvcc, which begins with 75",
    )
    code, said = configure("AUTO", folders)
    assert code == 0, said
    assert f"fusedstep: without the engine for GPUs (FUSEDSTEP_CUDA=AUTO, {reason})" in said
    code, said = configure("ON", folders)
    assert code != 0
    assert f"FUSEDSTEP_CUDA is ON, but {reason}: take an older CUDA, or set CMAKE_CUDA_ARCHITECTURES" in said


def test_the_engine_is_not_loaded_before_it_is_needed():
    code = """
import sys, numpy, fusedstep
fusedstep.Adam().step(numpy.ones(3), numpy.ones(3))
assert not {"cupy", "fusedstep._cuda"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
