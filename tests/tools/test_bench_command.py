"""The benchmark as its users start it: the command, and pytest with its cases for developers."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fusedstep as fs
from fusedstep.__main__ import main
from fusedstep.tools import bench
from fusedstep.tools.bench import heats, table
from fusedstep.tools.bench.cases import tour
from fusedstep.tools.bench.record import read

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The output and the record of a quick run that was started from the command line."""
    path = tmp_path_factory.mktemp("bench") / "quick.json"
    command = [sys.executable, "-m", "fusedstep", "bench", "--quick", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, path


@pytest.mark.exhaustive
def test_quick_run(quick):
    out, path = quick
    record = read(path)
    assert record.settings["quick"]
    assert record.settings["seconds"] < 60
    assert record.machine["fusedstep"]["commit"] == fs.info()["commit"]
    begun = len({each.heat for each in record.cases})
    assert begun == len(tour("cpu", True)) or "minutes were over" in record.notes[-1]
    for each in record.cases:
        assert {len(row.seconds) for row in each.rows} == {bench.QUICK_ROUNDS}
        assert each.ours.ulp in (0.0, None)
        assert all(row.agrees for row in each.rows), each
        assert table.line(each, []).split()[0] == each.case.rule
        assert str(each.case) in out
    assert record.cases[0].row("numpy")
    assert "ns/param" in out
    assert str(path) in out


@pytest.mark.exhaustive
@pytest.mark.parametrize("picture", ["throughput", "ratios", "roofline", "small"])
def test_pictures_of_a_quick_run(quick, tmp_path, capsys, picture):
    outputs = [tmp_path / f"{picture}.png", tmp_path / f"{picture}.svg"]
    assert main(["plot", picture, str(quick[1]), "--output", *map(str, outputs)]) == 0
    assert outputs[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in outputs[1].read_text()[:1000]
    assert capsys.readouterr().out == "".join(f"{picture.capitalize()}: {path}\n" for path in outputs)


@pytest.mark.exhaustive
def test_axes(tmp_path, capsys):
    path = tmp_path / "record.json"
    axes = ["--rule", "sgd", "lion", "--size", "100", "1e3", "--threads", "1", "--odd", "all"]
    assert main(["bench", *axes, "--rounds", "1", "--peers", "numpy", "--json", str(path)]) == 0
    found = {(m.case.rule, m.case.size, m.case.odd, m.case.threads) for m in read(path).cases}
    assert found == {(rule, size, odd, 1) for rule in ("sgd", "lion") for size in (100, 1000) for odd in (True, False)}
    assert {row.name for m in read(path).cases for row in m.rows} == {"fusedstep", "limit", "numpy"}
    assert "lion f32 1e3 odd" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "many"], "--size is 'many', expected whole numbers"),
        (["--size", "1.5"], "--size is '1.5', expected whole numbers"),
        (["--size", "0"], "--size is '0', expected whole numbers"),
        (["--size", "inf"], "--size is 'inf', expected whole numbers"),
        (["--rule", "glide"], "--rule is 'glide', expected sgd"),
        (["--dtype", "int8"], "--dtype is 'int8', expected float32"),
        (["--isa", "sse"], "--isa is 'sse', expected"),
        (["--threads", "0"], "--threads is '0', expected"),
        (["--threads", "-3"], "expected"),
        (["--device", "cuda:77"], "--device is 'cuda:77', expected cpu"),
        (["--rounds", "0"], "--rounds is 0, expected at least 1"),
        (["--minutes", "0"], "--minutes is 0"),
        (["--peers", "nobody"], "--peers is 'nobody', expected numpy"),
        (["--json", "no-such-folder/x.json"], "--json is no-such-folder/x.json, expected a file in a folder that"),
        (["--speed"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("package", ["rich", "threadpoolctl"])
def test_missing_packages(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["bench", "--quick"]) == 2
    assert capsys.readouterr().err == f'bench needs {package}: python -m pip install "fusedstep[bench]"\n'


def test_a_difference_from_the_reference_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(heats, "disagreements", lambda job, everyone: [(1.0, 1e-7)] * len(everyone))
    assert main(["bench", "--size", "100", "--rounds", "1", "--peers"]) == 1
    assert "OURS DIFFERS FROM THE REFERENCE" in capsys.readouterr().out


def test_no_time_is_no_heat(capsys, tmp_path):
    path = tmp_path / "record.json"
    assert main(["bench", "--device", "cpu", "--minutes", "1e-9", "--json", str(path)]) == 0
    assert read(path).cases == []
    assert "minutes were over" in capsys.readouterr().out


def test_an_interrupt_keeps_what_was_measured(monkeypatch, capsys, tmp_path):
    path, real = tmp_path / "record.json", heats.run

    def run(heat, *args, **options):
        if heat[0].size == 200:
            raise KeyboardInterrupt
        return real(heat, *args, **options)

    monkeypatch.setattr(heats, "run", run)
    sizes = ["--size", "100", "200", "300"]
    assert main(["bench", *sizes, "--rounds", "1", "--peers", "--json", str(path)]) == 130
    assert [each.case.size for each in read(path).cases] == [100]
    assert read(path).notes == ["interrupted"]
    assert "adam f32 100" in capsys.readouterr().out


def test_no_memory_is_a_note(monkeypatch, capsys):
    monkeypatch.setattr(heats, "available_bytes", lambda device: 1000)
    assert main(["bench", "--size", "1e6", "--rounds", "1"]) == 0
    assert "adam f32 1e6: left out, for lack of memory" in capsys.readouterr().out


# Benchmarks for developers, under pytest.


def test_pytest_benchmark_gets_the_rounds(tmp_path):
    path = tmp_path / "found.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks/bench_calls.py"]
    command += ["--benchmark-min-rounds=3", f"--benchmark-json={path}", "-k", "functional or plain or schedule"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    known = json.loads(path.read_text())
    assert known["machine_info"]["fusedstep"]["commit"] == fs.info()["commit"]
    by_name = {each["name"]: each for each in known["benchmarks"]}
    scheduled = by_name["test_step[schedule]"]
    assert scheduled["stats"]["rounds"] == 3
    assert scheduled["stats"]["median"] == pytest.approx(scheduled["extra_info"]["seconds"])
    assert scheduled["extra_info"]["plain"] > 1
    assert re.search(r"functional_sgd .* us +<= 0.6 us +(met|MISSED)", done.stdout)
    assert re.search(r"\d goals met, \d missed", done.stdout)
