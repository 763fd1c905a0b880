"""Archives to try things with, how their contents are compared, and how they are sealed again."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fusedstep.core import archive

ROOT = Path(__file__).parents[2]
DAMAGED = "is damaged or no checkpoint, expected a file as it was saved"


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert type(found[name]) is np.ndarray
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.c_contiguous
        assert found[name].flags.writeable
        assert found[name].flags.aligned


def read(path):
    """Return the arrays and the dictionary of an archive."""
    with archive.opened(path) as (stored, meta):
        arrays = {name: np.empty(each.shape, each.dtype) for name, each in stored.items()}
        for name, each in stored.items():
            each.read_into(arrays[name])
    return arrays, meta


def save(path, k=3, n=3, dtype=np.float32):
    arrays = {"params/w": np.full(n, k, dtype), "state/w/m": np.full(n, -k, np.float64)}
    archive.write(path, arrays, {"t": k})
    return arrays


GRID = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
ARRAYS = {
    **{f"dtype/{code}": np.arange(5).astype(code) for code in "?bBhHiIlLqQefd"},
    "special": np.array([np.nan, -np.nan, np.inf, -0.0, 5e-324]),
    "scalar": np.array(3.5),
    "empty": np.zeros(0, np.float32),
    "nothing": np.zeros((3, 0, 2)),
    "fortran": np.asfortranarray(GRID),
    "transposed": GRID.T,
    "strided": GRID[:, ::2, 1:],
    "reversed": GRID[::-1],
    "broadcast": np.broadcast_to(np.float32(2), (3, 4)),
    "unaligned": np.arange(17, dtype=np.uint8)[1:].view(np.float64),
    "metadata": np.ones(2, np.dtype("f4", metadata={"unit": "m"})),
    "subclass": np.ones(3).view(type("Named", (np.ndarray,), {})),
}
META = {"t": 3, "lr": [1e-3, float("inf")], "rule": 'ad"am', "grüße": {"a": None, "b": True}, "tiny": 5e-324}


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"checkpoint\.\w+ is damaged( or no checkpoint, expected|: .+ its digest$)"
    ) as caught:
        read(path)
    return str(caught.value)


def seal(path):
    """Seal a file again after its bytes were changed."""
    form = archive._locate(path)[1]
    with open(path, "r+b") as file:
        start = form.find_seal(file)
        _, value = archive._seals(file, start)
        file.seek(start)
        file.write(value)


def run(code, *arguments):
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # a fork is safer with fewer threads
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT)
    assert not result.returncode, result.stderr.decode()
