"""Steps and files of ranks that are processes, which MPI connects: the bits are those of one process."""

import json
from functools import cache
from random import Random

import pytest

from tests.distributed.jobs import needs_mpi, run
from tests.distributed.synchronous_ranks import RANKS, cases, digests, one_file

pytestmark = needs_mpi

SEED = Random().randrange(10**6)  # of the place of a NaN


@cache
def alone(name):
    return digests(*cases(SEED)[name].alone())


def on_ranks(folder, size, *names):
    """Return the digests of all ranks of a job."""
    code, out, err = run(folder, "--ranks", size, "-m", "tests.distributed.synchronous_ranks", folder, SEED, *names)
    assert code == 0, out + err
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_processes_have_the_bits_of_one_process(tmp_path, size):
    names = list(cases(SEED))
    expected = {name: alone(name) for name in names}
    assert "skipped" in expected["skip"]["results"]
    assert on_ranks(tmp_path, size, *names) == [expected] * size, f"seed {SEED}"


def test_files_of_any_number_of_processes_go_on_with_any_number(tmp_path):
    """Files have the same bytes, and all ranks that go on end with the bits of one process."""
    found = on_ranks(tmp_path, max(RANKS), "files")
    one_file(cases(SEED)["options"], tmp_path / "one.npz")
    bytes_ = (tmp_path / "one.npz").read_bytes()
    assert [before for before in RANKS if (tmp_path / f"{before}.npz").read_bytes() != bytes_] == []
    expected = alone("options") | {"results": "[]"}
    for rank, its in enumerate(found):
        assert list(its["files"]) == [f"{before} {size}" for size in RANKS if rank < size for before in RANKS]
        assert [pair for pair, end in its["files"].items() if end != expected] == []
