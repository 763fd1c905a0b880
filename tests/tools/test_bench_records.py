"""What a benchmark keeps, prints, and tells of two runs."""

import copy
import json
import math
import re
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fusedstep as fs
from fusedstep.__main__ import main
from fusedstep.tools.bench import compare, machine, table
from fusedstep.tools.bench.cases import Case
from fusedstep.tools.bench.record import Measured, Record, Row, read, write

ROOT = Path(__file__).parents[2]
MACHINE = {
    "cpu": "fake",
    "date": "2026-11-26",
    "packages": {},
    "caches": {},
    "gpus": {},
    "flop_per_s": {},
    "fusedstep": {},
}


# Records.


def sample_record():
    rows = [
        Row("fusedstep", [1.0, 1.1, 1.2], 0.0, 0.0),
        Row("limit", [0.9, 1.0, 1.1]),
        Row("torch fused", [2.0, 2.2, 2.4], 1.0, 1e-5),
    ]
    other = Case("sgd", odd=True, options=(("ema", 0.9), ("clip_value", 1.0)), threads=2, isa="avx2", states=1e-40)
    found = [Measured(Case(), 0, rows, {"thinc": "not installed"}, 0.25), Measured(other, 1, [Row("fusedstep", [2.0])])]
    return Record(MACHINE, {"rounds": 3}, found, ["a note"])


def test_record_survives(tmp_path):
    path, record = tmp_path / "record.json", sample_record()
    write(record, path)
    assert read(path) == record
    known = json.loads(path.read_text())
    assert known["format"] == 1
    assert known["cases"][1]["case"]["options"] == [["ema", 0.9], ["clip_value", 1.0]]
    assert len(path.read_text().splitlines()) < 40  # a line for each contestant


def test_empty_record_survives(tmp_path):
    path = tmp_path / "record.json"
    write(Record(MACHINE), path)
    assert read(path) == Record(MACHINE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("format"), "format is missing"),
        (lambda r: r.update(format=2), "format is 2, expected 1"),
        (lambda r: r["machine"].pop("gpus"), "machine: gpus is missing"),
        (lambda r: r.update(cases={}), "cases is {}, expected another type"),
        (lambda r: r["cases"].append(3), r"cases\[2\] is int, expected an object"),
        (lambda r: r["cases"][0]["case"].update(color=3), r"cases\[0\].case: color is unknown"),
        (lambda r: r["cases"][1]["case"].update(size="big"), r"cases\[1\].case: size is 'big'"),
        (lambda r: r["cases"][1]["case"].update(options=["ema"]), r"cases\[1\].case: options is \['ema'\]"),
        (lambda r: r["cases"][1]["case"].update(rule="magic"), r"cases\[1\].case: rule is 'magic'"),
        (lambda r: r["cases"][1]["case"].update(dtype="int8"), r"cases\[1\].case: dtype is 'int8'"),
        (lambda r: r["cases"][0].pop("rows"), r"cases\[0\]: rows is missing"),
        (lambda r: r["cases"][0]["rows"][2].update(seconds=[]), r"cases\[0\].rows\[2\].seconds is \[\]"),
        (lambda r: r["cases"][0]["rows"][2].update(seconds=[1.0, -1.0, 1.0]), "expected positive numbers"),
        (lambda r: r["cases"][0]["rows"][2].update(seconds=[1.0]), r"cases\[0\].rows\[2\] has 1 rounds, expected 3"),
        (lambda r: r["cases"][0]["rows"].pop(0), r"cases\[0\]: fusedstep is missing"),
    ],
)
def test_damaged_records_are_refused(tmp_path, change, message):
    path = tmp_path / "record.json"
    write(sample_record(), path)
    known = json.loads(path.read_text())
    change(known)
    path.write_text(json.dumps(known))
    with pytest.raises(ValueError, match=message):
        read(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", None])
def test_what_is_no_record_is_refused(tmp_path, content, capsys):
    path = tmp_path / "record.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read(path)
    assert main(["bench", "compare", str(path), str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    assert main(["plot", "throughput", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


# Verdicts.


def run_of(ours, limit=None, case=None):
    rows = [Row("fusedstep", ours)] + ([Row("limit", limit)] if limit else [])
    return Record(dict(MACHINE), cases=[Measured(case or Case(), 0, rows)])


def noisy(middle, spread=0.01, n=15, seed=0):
    return (middle * np.random.default_rng(seed).normal(1, spread, n)).tolist()


def verdict(before, after):
    (found,) = compare.compare(before, after)
    return found


def test_faster_and_slower():
    a, b = run_of(noisy(1.0), noisy(0.9, seed=1)), run_of(noisy(1.3, seed=2), noisy(0.9, seed=3))
    assert verdict(a, b).says == "slower"
    assert verdict(b, a).says == "faster"
    assert verdict(a, b).low < 1.3 < verdict(a, b).high
    assert verdict(a, b).before == pytest.approx(1.0 / 0.9, rel=0.02)


def test_same():
    a, b = run_of(noisy(1.0, 0.002), [0.9] * 15), run_of(noisy(1.01, 0.002, seed=1), [0.9] * 15)
    assert verdict(a, b).says == "same"


def test_noise_is_no_verdict():
    a, b = run_of(noisy(1.0, 0.3)), run_of(noisy(1.15, 0.3, seed=1))
    assert verdict(a, b).says == "unclear"


def test_a_slower_machine_is_no_slower_step():
    ours, limit = noisy(1.0), noisy(0.9, seed=1)
    a, b = run_of(ours, limit), run_of([2 * x for x in ours], [2 * x for x in limit])
    assert verdict(a, b).says == "unclear"  # the machine was busier, or every call has become slower
    assert verdict(a, b).before == pytest.approx(verdict(a, b).after)
    assert verdict(a, b).seconds == pytest.approx(2)


def test_a_small_difference_is_no_verdict_however_certain():
    assert verdict(run_of([1.0] * 15), run_of([1.02] * 15)).says == "same"
    assert verdict(run_of([1.0] * 15), run_of([1.04] * 15)).says == "slower"


def test_without_a_limit_seconds_are_compared():
    assert verdict(run_of(noisy(1.0)), run_of(noisy(1.3, seed=1), noisy(0.9))).says == "slower"


def test_few_rounds_make_careful_verdicts():
    assert verdict(run_of([1.0] * 5), run_of([2.0] * 5)).says == "unclear"
    assert verdict(run_of([1.0] * 6), run_of([2.0] * 6)).says == "slower"
    assert verdict(run_of([1.0] * 5 + [1.5]), run_of([1.5] + [2.0] * 5)).says == "unclear"


def test_only_common_cases_are_compared():
    a, b = run_of([1.0] * 3), run_of([1.0] * 3, case=Case("sgd"))
    assert compare.compare(a, b) == []
    b.cases += a.cases * 2  # the same case in two heats counts once
    assert len(compare.compare(a, b)) == 1


@given(st.lists(st.floats(0.5, 2), min_size=1, max_size=60))
def test_interval_holds_the_median(values):
    low, high = compare.interval(values)
    assert min(values) <= low <= median(values) <= high <= max(values)


@pytest.mark.parametrize("n", [1, 5, 6, 8, 9, 15, 25, 100])
def test_interval_has_its_confidence(n):
    """Of n numbers, fewer than k lie below the true median with the probability of coins."""
    low, high = compare.interval([float(i) for i in range(1, n + 1)])
    k = int(low)
    assert high == n + 1 - k

    def confidence(k):
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    assert confidence(k) >= 0.95 or (k == 1 and n < 6)
    assert confidence(k + 1) < 0.95


@pytest.mark.parametrize(("factor", "code", "word"), [(1.0, 0, "1 same"), (1.5, 1, "1 slower"), (0.5, 0, "1 faster")])
def test_compare_command(tmp_path, capsys, factor, code, word):
    paths = [tmp_path / f"{name}.json" for name in "ab"]
    write(run_of([1.0] * 9, [0.9] * 9), paths[0])
    after = run_of([factor] * 9, [0.9] * 9)
    after.machine["cpu"] = "another"
    write(after, paths[1])
    assert main(["bench", "compare", *map(str, paths)]) == code
    out = capsys.readouterr().out
    assert word in out
    assert "cpu: fake before, another after" in out
    assert "adam f32 1e6" in out


# The table.


def test_line_has_the_numbers():
    record = sample_record()
    text = table.line(record.cases[0], ["numpy", "torch fused"])
    words = text.split()
    assert words[:3] == ["adam", "f32", "1e6"]
    assert words[4:] == ["1.1e+03", "0.0", "28", "0.91±0.01", "2.00±0.00", "0", "1"]
    above, titles = table.head(["numpy", "torch fused"]).splitlines()
    assert titles.index("fused") + len("fused") == text.index("2.00±0.00") + len("2.00±0.00")
    assert above.endswith("torch")
    record.cases[0].rows[2].change, record.cases[0].rows[2].ulp = 0.5, 1e6
    assert "2.00±0.00!" in table.line(record.cases[0], ["torch fused"])


def test_remarks():
    record = sample_record()
    assert table.remarks(record) == [
        "Absent: thinc: not installed.",
        "Meanwhile other processes kept so many processors busy: adam f32 1e6 (0.2).",
        "a note",
    ]
    other = copy.deepcopy(record.cases[0])
    other.absent = {
        "apex": "takes part on a GPU",
        "thinc": "takes part in Adam, float32",
        "optax": "takes part on a GPU",
    }
    record.cases.append(other)
    assert table.remarks(record)[:2] == [
        "Absent: apex, optax: takes part on a GPU.",
        "Absent: thinc: not installed; takes part in Adam, float32.",
    ]
    record.cases[0].rows[0].ulp = 3.0
    assert "OURS DIFFERS FROM THE REFERENCE: adam f32 1e6." in table.remarks(record)


# The machine.


def test_machine():
    about = machine.about(["cpu"])
    assert json.loads(json.dumps(about))["fusedstep"]["commit"] == fs.info()["commit"]
    assert {"date", "cpu", "caches", "affinity", "packages", "thread_pools", "environment", "load"} <= about.keys()
    assert about["packages"]["numpy"] == np.__version__
    assert about["flop_per_s"]["cpu"] > 1e8
    assert 10**7 < machine.available_bytes("cpu") < 10**14
    assert str(ROOT) not in json.dumps(about)
