import ctypes
import hashlib
import importlib.util
import inspect
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pybind11
import pytest

import fusedstep as fs
from fusedstep import _cpu
from fusedstep.reference import optimizer as reference


@pytest.fixture(autouse=True)
def settings():
    """Restore the instruction set and the number of threads after every test."""
    isa, threads = _cpu.isa(), _cpu.num_threads()
    yield
    fs.use_isa(isa)
    fs.set_num_threads(threads)


@pytest.fixture(params=_cpu.isas)
def isa(request):
    fs.use_isa(request.param)
    return request.param


@pytest.fixture
def float_word():
    """Return a function that reads the bits of the floating-point mode of this thread."""

    def read():
        environment = (ctypes.c_char * 64)()
        ctypes.CDLL(None).fegetenv(environment)
        offset, _ = reference._MODE[reference.platform.system(), reference.platform.machine()]
        return ctypes.c_uint32.from_buffer(environment, offset).value & ~0x3F  # without the flags of past operations

    return read


@pytest.fixture
def own_state():
    """Return a function that makes zeros for each state of a function of `functional`, by name."""

    def make(function, n, dtype):
        parameters = inspect.signature(function).parameters.values()
        names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        return {name: np.zeros(n, dtype) for name in names[2:]}

    return make


@pytest.fixture
def own_memory():
    """Return a function that gives what a function of `functional` returned: the memory of its rule, by name."""

    def named(function, returned):
        names = _cpu.rules[function.__name__].memory
        return dict(zip(names, returned if len(names) > 1 else [returned], strict=False))

    return named


# CuPy on a GPU, or a stand-in for CuPy on an emulated CUDA runtime, where the kernels run as C++.

ROOT = Path(__file__).parents[1]
EMULATOR = ROOT / "tests" / "gpu" / "emulator"


def _module(name, path):
    """Load a module from a file, and register it under a name for imports."""
    # The name of the spec is not that of the module: pybind11 makes only one module for each name of a spec.
    spec = importlib.util.spec_from_file_location(f"emulated.{name.rpartition('.')[2]}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _emulated(folder):
    """Return the module file of the CUDA engine for the CPU, compiled unless one of the same sources is in a folder."""
    compiler = shutil.which("g++")
    if not compiler or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("needs g++ on x86-64 Linux")
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True).stdout
    digest = hashlib.sha256(version + f"{sys.version} {pybind11.__version__}".encode())
    for source in sorted([*(ROOT / "csrc").rglob("*.*"), *EMULATOR.glob("*.*"), Path(__file__)]):
        if source.suffix in (".h", ".cpp", ".cu", ".py"):
            digest.update(source.read_bytes())
    module = folder / f"{digest.hexdigest()[:16]}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists():
        with TemporaryDirectory(dir=folder) as objects:
            _build_emulated(compiler, Path(objects)).rename(module)
    return module


def _build_emulated(compiler, folder):
    """Compile the CUDA engine for the CPU, and return the module file."""
    flags = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno"]
    flags += ["-fno-trapping-math", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    flags += ["-I", EMULATOR, "-I", ROOT / "csrc", "-I", pybind11.get_include(), "-I", sysconfig.get_path("include")]
    flags += [f'-DFUSEDSTEP_CUDA_{word}="emulated"' for word in ("COMPILER", "FLAGS", "ARCHITECTURES")]
    cuda = ROOT / "csrc" / "engines" / "cuda"
    jobs = {loop: ["-x", "c++", f"-DFUSEDSTEP_LOOP={loop}", cuda / "update.cu"] for loop in ("generic", "float32")}
    jobs |= {"float64": ["-x", "c++", "-DFUSEDSTEP_LOOP=float64", cuda / "update.cu"]}
    jobs |= {"prepare": ["-x", "c++", cuda / "prepare.cu"], "control": [EMULATOR / "control.cpp"]}
    jobs |= {name: [cuda / f"{name}.cpp"] for name in ("module", "device", "session")}

    def compile_one(name):
        target = folder / f"{name}.o"
        subprocess.run([compiler, *flags, *jobs[name][:-1], "-c", jobs[name][-1], "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([compiler, "-shared", "-o", module, *objects, "-lpthread"], check=True)
    return module


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """
    Leave most cases of sampled tests to those who ask for exhaustive ones, and run tests on a GPU last.

    The emulated engine stays once it is loaded, and others expect that there is none.
    """
    cases = Counter()
    for item in items:
        if mark := item.get_closest_marker("sampled"):
            if cases[item.function] % mark.args[0]:
                item.add_marker(pytest.mark.exhaustive)
            cases[item.function] += 1
    items.sort(key=lambda item: "cupy" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request, tmp_path_factory):
    """CuPy itself, or a stand-in with `emulator`, the library that tells what the engine asked of the runtime."""
    if request.param == "gpu":
        module = pytest.importorskip("cupy")
        assert fs.info()["cuda"]["devices"], fs.info()["cuda"]
        yield module
        return
    cache = getattr(request.config, "cache", None)  # not there with `-p no:cacheprovider`
    path = _emulated(cache.mkdir("emulated") if cache else tmp_path_factory.mktemp("cuda"))
    names = ("cupy", "fusedstep._cuda")
    before = {name: sys.modules.pop(name, None) for name in names}
    module = _module("cupy", EMULATOR / "cupy.py")
    module.emulator = ctypes.CDLL(path)
    module.connect(module.emulator)
    fs._cuda = _module("fusedstep._cuda", path)
    yield module
    del fs._cuda
    for name, module in before.items():
        del sys.modules[name]
        if module is not None:
            sys.modules[name] = module


@pytest.fixture
def emulator(cupy):
    """The emulated runtime, with all counts of calls reset."""
    if not hasattr(cupy, "emulator"):
        pytest.skip("looks into the emulated runtime")
    cupy.emulator.emulator_reset_calls()
    yield cupy.emulator
    cupy.emulator.emulator_reset_calls()
    cupy.emulator.emulator_set_device_count(1)


class Recorder:
    """A stream beside the current one: work in it can be captured as a graph, and is awaited at the end of a block."""

    def __init__(self, cupy):
        self.cupy = cupy
        self.stream = cupy.cuda.Stream(non_blocking=True)

    def __enter__(self):
        self.cupy.cuda.get_current_stream().synchronize()  # work of the block begins when its arrays are ready
        self.stream.__enter__()
        return self

    def __exit__(self, *error):
        self.stream.__exit__(*error)
        self.stream.synchronize()

    def capture(self, work):
        """Return the graph of what `work` does, and what `work` returned; the graph has not run yet."""
        self.stream.begin_capture()
        try:
            returned = work()
        finally:
            graph = self.stream.end_capture()
        return graph, returned

    def replay(self, graph):
        graph.launch(self.stream)


@pytest.fixture
def recorder(cupy):
    return Recorder(cupy)
