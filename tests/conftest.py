import ctypes
import inspect

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu
from fusedstep.reference import optimizer as reference


@pytest.fixture(autouse=True)
def settings():
    """Every test leaves the instruction set and the number of threads as it found them."""
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
