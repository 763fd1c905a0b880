"""The model of scale: its arithmetic by hand, and that its page shows what it says of the record that it names."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fusedstep.tools.bench.cases import Case
from fusedstep.tools.bench.ranks import Race, Ranks, Side
from fusedstep.tools.bench.record import Measured, Record, Row

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
scale = importlib.util.module_from_spec(SPEC)
sys.modules["scale"] = scale
SPEC.loader.exec_module(scale)


@pytest.fixture
def machine():
    """28 GB/s, a network of 4 GB/s, and no latency."""
    return scale.Machine(call=0.0, rate=28e9, network=4e9, latency=0.0)


@pytest.mark.parametrize(
    ("placement", "update", "network", "memory"),
    [
        ("replicas", 1.0, 2 * 0.75, 16e9),  # of 4 GB, a ring of 4 passes on three quarters; sums, then gathers
        ("sharded states", 0.25, 2 * 0.75, 8e9 + 8e9 / 4),
        ("all sharded", 0.25, 0.75, 4e9),
    ],
)
def test_a_billion_parameters_on_four_machines(machine, placement, update, network, memory):
    found = scale.placements()[placement]
    assert found.update(machine, 1e9, 4) == pytest.approx(update)
    assert found.network(machine, 1e9, 4) == pytest.approx(network)
    assert found.memory(machine, 1e9, 4) == pytest.approx(memory)


def test_one_machine_has_no_network(machine):
    assert {each.network(machine, 1e9, 1) for each in scale.placements().values()} == {0.0}
    assert {each.update(machine, 1e9, 1) for each in scale.placements().values()} == {1.0}
    assert {each.memory(machine, 1e9, 1) for each in scale.placements().values()} == {16e9}


def test_each_hop_of_a_ring_has_its_latency():
    machine = scale.Machine(call=0.0, rate=1.0, network=1e9, latency=1e-3)
    assert machine.ring(0, 11) == pytest.approx(10e-3)
    assert machine.ring(1e9, 2) == pytest.approx(0.5 + 1e-3)


def a_record(seconds, **axes):
    here = {"threads": 2, "isa": "avx2"} | axes
    cases = [Measured(Case(size=n, **here), 0, [Row("fusedstep", [s])]) for n, s in seconds.items()]
    return Record({"fusedstep": {"isa": "avx2"}}, cases=cases)


def test_fit():
    some = scale.measured(a_record({10**3: 2e-6, 10**7: 1e-6 + 0.01, 10**8: 1e-6 + 0.1}))
    machine = scale.fitted(some)
    assert machine.rate == pytest.approx(28e9)
    assert machine.call == pytest.approx(1e-6)
    assert machine.update(1e12) == pytest.approx(1000)
    assert (machine.moved, machine.held) == (28, 16)


@pytest.mark.parametrize(("dtype", "size"), [("float64", 8), ("float16", 2)])
def test_other_dtypes_send_other_bytes(dtype, size):
    some = scale.measured(a_record({10**3: 1e-6, 10**7: 0.01}, dtype=dtype), dtype=dtype)
    assert (scale.fitted(some).param, scale.fitted(some).grad) == (size, size)


def test_fit_is_the_line_through_both_ends():
    some = scale.measured(a_record({n: 1e-6 + 28 * n / 5e10 for n in (10**7, 3 * 10**7, 10**8)}))
    assert scale.fitted(some).rate == pytest.approx(5e10)
    assert scale.fitted(some).call == pytest.approx(1e-6)
    assert [float(line.split("|")[-2]) for line in scale.check(some)[2:]] == [1.0, 1.0]
    with pytest.raises(ValueError, match="took no longer"):
        scale.fitted(some[:1] * 2)


def test_check_predicts_what_it_has_not_seen():
    some = scale.measured(a_record({10**3: 1e-6, 10**7: 0.01, 10**8: 0.2}))
    ratios = [float(line.split("|")[-2]) for line in scale.check(some)[2:]]
    assert ratios == [pytest.approx(2.0, abs=0.01), pytest.approx(0.5, abs=0.01)]  # each of two sizes, from the other


def test_only_the_whole_machine_is_taken():
    record = a_record({10**3: 1e-6, 10**7: 0.01})
    record.cases += a_record({10**8: 0.2}, threads=1).cases + a_record({10**6: 1.0}, odd=True).cases
    assert [each.case.size for each in scale.measured(record)] == [10**3, 10**7]


def test_table_says_what_does_not_fit(machine):
    lines = scale.table(machine, [4], memory=20e9)
    assert lines[2] == "| 1e+09 | one machine | 1 | 16 GB | 1 s | 0 us | 1 s |"
    assert lines[3] == "| 1e+09 | replicas | 4 | 16 GB | 1 s | 1.5 s | 2.5 s |"
    assert lines[6] == "| 1e+11 | one machine | 1 | 1.6 TB (does not fit) | 100 s | 0 us | 100 s |"
    assert len(lines) == 2 + 3 * 4


def test_page_shows_what_the_script_says():
    page = (ROOT / "benchmarks" / "scale.md").read_text()
    command = re.search(r"python (benchmarks/scale\.py .*)", page)[1].split()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    for block in done.stdout.strip().split("\n\n"):
        assert block in page


@pytest.fixture
def rank():
    """A second for 28 GB of updates, 12 GB of sums, and 4 GB of anything else."""
    return scale.Rank(update=28e9, add=12e9, square=4e9, fold=4e9, network=4e9, latency=1e-3)


def test_a_shared_step_of_two_ranks(rank):
    pieces = rank.step(1e9, 2)
    assert pieces["agreement"] == pytest.approx(1e-3)
    assert pieces["wire"] == pytest.approx(1.0 + 2e-3)  # half a billion gradients go, half a billion parameters follow
    assert pieces["sum"] == pytest.approx(0.5)  # two parts are read, and their sum is written, of half of them
    assert pieces["update"] == pytest.approx(0.5)


@pytest.mark.parametrize(("param", "wire"), [(4, 0.75 * 1.5), (2, 0.75)])
def test_half_precision_shortens_wire_and_sum(rank, param, wire):
    pieces = rank.step(1e9, 4, 2, param)
    assert pieces["wire"] == pytest.approx(wire + 6e-3)
    assert pieces["sum"] == pytest.approx((4 * 2 + 4) / 4 / 12)
    assert pieces["update"] == rank.step(1e9, 4)["update"]


def test_norm(rank):
    n = 1e13
    sums = 8 * (n / 1024**2 + 2 * 1023 * 1000)  # of superblocks, and of the blocks at both ends of each piece
    wanted = (4 * n / 1000 + 0.999 * sums + 8 * n / 1024 / 1000 + sums) / 4e9 + 0.999
    assert rank.step(n, 1000)["norm"] == pytest.approx(wanted)
    blocks = 8 * 1e9 / 1024  # a piece of a thousandth has no superblock
    wanted = (4e9 / 1000 + 0.999 * blocks + blocks / 1000 + blocks) / 4e9 + 0.999
    assert rank.step(1e9, 1000)["norm"] == pytest.approx(wanted)


def test_one_rank_has_no_messages(rank):
    pieces = rank.step(1e9, 1)
    assert (pieces["agreement"], pieces["wire"], pieces["sum"]) == (0, 0, 0)
    assert pieces["update"] == pytest.approx(1.0)


def test_shared_steps_are_compared_with_those_of_as_many_ranks_as_processors():
    computing = {1: {}, 2: {"adam": 28e9, "sum of 2": 12e9, "squares": 4e9, "fold": 4e9}}
    sides = {"Synchronous": Side("Synchronous", [0.003, 0.004], 0.0, "equal bits")}
    races = [Race(size, count, sides, {}) for size in (10**4, 10**6) for count in (1, 2, 4)]
    found = Ranks({}, races, computing, {"bandwidth": 4e9, "latency": 0.0}, {}, {}, None)
    lines = scale.check_shared(found)  # 1 ms of messages, half a millisecond each of sum and update
    assert lines[2:] == ["| 1e+06 | 2 | 3 ms | 2 ms | 0.67 |"]
