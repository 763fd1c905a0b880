"""Ranks on two hosts, which talk by TCP over a link whose bytes are counted: the bits are those of one process."""

import json
import shlex

import pytest

from tests.distributed.hosts import NAMES, two_hosts
from tests.distributed.jobs import MPI, needs_mpi, run
from tests.distributed.synchronous_ranks import SIZES, cases, digests
from tests.distributed.test_deaths import check

pytestmark = [
    needs_mpi,
    pytest.mark.skipif(MPI is not None and MPI.family != "MPICH", reason="uses options of the mpiexec of MPICH"),
]


@pytest.fixture
def hosts(tmp_path):
    with two_hosts(tmp_path) as made:
        yield made


@pytest.fixture
def slow_hosts(tmp_path_factory):
    with two_hosts(tmp_path_factory.mktemp("hosts"), rate="1gbit") as made:
        yield made


def launcher(hosts, slots):
    return ["--hosts", ",".join(f"{name}:{slots}" for name in NAMES), "--mpiexec", shlex.join(hosts.mpiexec(MPI.words))]


def test_two_hosts_have_the_bits_of_one_process(hosts, tmp_path):
    before = hosts.sent()
    program = ["-m", "tests.distributed.synchronous_ranks", tmp_path, 0, "options"]
    code, out, err = run(tmp_path, "--ranks", 4, *launcher(hosts, 2), *program)
    assert code == 0, out + err
    case = cases(0)["options"]
    expected = digests(*case.alone())
    for rank in range(4):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {"options": expected}
    # Each rank of a host sends a quarter of its gradient, and of the parameters, to both ranks of the other host.
    count = sum(array.size for array in case.params().values())
    assert count > SIZES["W"][0] * SIZES["W"][1]
    least = case.steps * 2 * 2 * (2 * 4 * count // 4)
    sent = [after - start for start, after in zip(before, hosts.sent(), strict=True)]
    assert min(sent) > least, (sent, least)


def test_a_death_on_a_slow_link_changes_no_bit(slow_hosts, tmp_path):
    check(tmp_path, 2, 2, [["thread", 4, 0.6, 5]], "of none", launcher(slow_hosts, 1))
    assert min(slow_hosts.sent()) > 10**6
