"""Runs with workers that are not equally fast: what is written, drawn and tabled is what was run."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from fusedstep.__main__ import main
from fusedstep.tools import plot
from fusedstep.tools.bench.stragglers import stragglers
from fusedstep.tools.bench.tables import rewritten
from tests.docs.test_pages import ROOT


def _run(case, way, lr, seed, *losses):
    counts = {"gradients": 30 + seed, "updates": 10, "late": 1.5 + seed, "latest": 4 + seed}
    curve = [[float(i), loss] for i, loss in enumerate(losses)]
    return {"case": case, "way": way, "lr": lr, "seed": seed, **counts, "curve": curve}


RECORD = {
    "machine": {"date": "2026-11-29", "packages": {"numpy": "2.4.6"}, "fusedstep": {"commit": "d28526d4a4d5"}},
    "settings": {"seconds": 2, "seeds": 2, "workers": 3, "gradient": 0.04, "batch": 32},
    "runs": [
        _run("equal", "synchronous", 0.002, 0, 2.0, 0.5, 0.1),
        _run("equal", "synchronous", 0.002, 1, 2.0, 0.7, 0.3),
        _run("equal", "synchronous", 0.004, 0, 2.0, 0.4, 0.05),
        _run("equal", "synchronous", 0.004, 1, 2.0, 0.4, 0.9),
        _run("equal", "asynchronous", 0.002, 0, 2.0, 1.0, 0.25),
    ],
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(RECORD))
    return path


def test_the_best_rate_is_that_of_all_seeds(path):
    found = stragglers(path)
    assert (found.cases, found.ways) == (["equal"], ["synchronous", "asynchronous"])
    assert [(run.lr, run.loss) for run in found.best("equal", "synchronous")] == [(0.002, 0.1), (0.002, 0.3)]


def test_table(path):
    lines = rewritten(f"<!-- table: stragglers {path.name} -->\n<!-- end -->", path.parent).split("\n")[2:-2]
    assert lines[2:] == [
        "| equal | synchronous | 30 | 10 | 2.0 | 5 | 0.002 | 0.200 |",
        "| equal | asynchronous | 30 | 10 | 1.5 | 4 | 0.002 | 0.250 |",
    ]


def test_picture(path, tmp_path):
    panels = plot.draw_stragglers(stragglers(path), tmp_path / "x.svg")
    one, other = panels["equal"].lines
    assert [line.get_label() for line in (one, other)] == ["synchronous (lr 0.002)", "asynchronous (lr 0.002)"]
    assert one.get_xdata().tolist() == [0, 1, 2]
    assert one.get_ydata() == pytest.approx([2.0, 0.6, 0.2])
    assert other.get_ydata().tolist() == [2.0, 1.0, 0.25]
    corners = panels["equal"].collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in corners.round(3).tolist()} >= {(1, 0.5), (1, 0.7), (2, 0.1), (2, 0.3)}


def test_command(path, tmp_path, capsys):
    output = tmp_path / "x.png"
    assert main(["plot", "stragglers", str(path), "--output", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    path.write_text('{"machine": {}, "settings": {}, "runs": [{"case": "equal"}]}')
    assert main(["plot", "stragglers", str(path)]) == 2
    assert f"{path} has no runs, expected a record of benchmarks/stragglers.py" in capsys.readouterr().err


@pytest.fixture
def script(monkeypatch):
    """The script, with gradients that take a millisecond."""
    spec = importlib.util.spec_from_file_location("stragglers", ROOT / "benchmarks" / "stragglers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CASES", {"one is slow": (10, 0.0)})
    monkeypatch.setattr(module, "GRADIENT", 0.001)
    monkeypatch.setattr(module, "PERIOD", 0.02)
    monkeypatch.setattr(module, "RATES", (0.002,))
    return module


def test_script(script, tmp_path, monkeypatch):
    path = tmp_path / "mine.json"
    monkeypatch.setattr(sys, "argv", ["stragglers.py", str(path), "--seconds", "0.3", "--seeds", "1"])
    script.main()
    found = stragglers(path)
    assert [(run.way, run.lr, run.seed) for run in found.runs] == [(way, 0.002, 0) for way in script.WAYS]
    first = script.digits.loss(script.digits.initial_params(), *script.digits.load()[:2])
    for run in found.runs:
        assert run.curve[0][1] == round(first, 5)
        assert (np.diff([at for at, _ in run.curve]) >= 0.019).all()  # which are rounded to milliseconds
        assert run.updates == (run.gradients // 3 if run.way.startswith("synchronous") else run.gradients) > 0
    assert [found.runs[0].late, found.runs[0].latest] == [0, 0]
    script.write(json.loads(path.read_text()), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
