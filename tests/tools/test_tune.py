"""Searches of learning rate and weight decay: what is written, drawn and tabled is what was tried."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from fusedstep.__main__ import main
from fusedstep.tools import plot
from fusedstep.tools.bench.searches import searches
from fusedstep.tools.bench.tables import rewritten
from tests.docs.test_pages import ROOT, examples

RECORD = {
    "machine": {"date": "2026-11-29", "packages": {"optuna": "5.0.0"}, "fusedstep": {"commit": "d85c74d67d8c"}},
    "settings": {"epochs": 3, "side": 2, "seeds": 2},
    "searches": [
        {
            "name": "grid",
            "seed": 0,
            "trials": [[0.1, 0.1, 0.5, 3], [0.001, 0.1, 0.4, 3], [0.1, 0.001, 0.9, 3], [0.001, 0.001, 0.8, 3]],
            "test": {"loss": 0.45, "accuracy": 0.9},
        },
        {
            "name": "TPE",
            "seed": 0,
            "trials": [[0.1, 0.2, 0.7, 3], [0.2, 0.1, 0.1, 1], [0.3, 0.1, 0.3, 3], [0.3, 0.2, 0.6, 3]],
            "test": {"loss": 0.35, "accuracy": 0.95},
        },
        {
            "name": "TPE",
            "seed": 1,
            "trials": [[0.1, 0.2, 0.2, 1], [0.2, 0.1, 0.8, 3], [0.3, 0.1, 0.7, 3], [0.3, 0.2, 0.9, 2]],
        },
    ],
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(RECORD))
    return path


@pytest.fixture
def tune():
    """The script; the test is skipped where Optuna is not installed."""
    pytest.importorskip("optuna").logging.set_verbosity(30)
    spec = importlib.util.spec_from_file_location("tune", ROOT / "benchmarks" / "tune.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_training_that_was_ended_early_is_never_the_best(path):
    first, second = searches(path).by_name["TPE"]
    assert first.best == (0.3, 0.1, 0.3, 3)
    assert first.so_far == [0.7, 0.7, 0.3, 0.3]
    assert second.so_far == [np.inf, 0.8, 0.7, 0.7]


def test_table(path):
    lines = rewritten(f"<!-- table: searches {path.name} -->\n<!-- end -->", path.parent).split("\n")[2:-2]
    assert lines[2] == "| grid | 4 | 12 | 0.400 | 0.400 | 0.400 | 0.001 | 0.1 | 0.450 | 90.0 % |"
    assert lines[3] == "| TPE | 4 | 10 | 0.500 | 0.300 | 0.700 | 0.3 | 0.1 | 0.350 | 95.0 % |"
    assert len(lines) == 4
    with pytest.raises(ValueError, match="table searches has the words 'TPE', expected none"):
        rewritten(f"<!-- table: searches {path.name} TPE -->\n<!-- end -->", path.parent)


def test_picture(path, tmp_path):
    panels = plot.draw_tuning(searches(path), tmp_path / "x.svg")
    cells = panels["grid"].collections[0]
    assert cells.get_array().ravel().tolist() == [0.8, 0.4, 0.9, 0.5]  # rates upwards, decays to the right
    corners = cells.get_coordinates()[0, 0], cells.get_coordinates()[-1, -1]
    assert np.ravel(corners) == pytest.approx([1e-4, 1e-4, 1, 1])
    points = panels["TPE"].collections[0]
    assert points.get_offsets().tolist() == [[0.2, 0.1], [0.1, 0.3], [0.2, 0.3]]
    assert points.get_array().tolist() == [0.7, 0.3, 0.6]
    assert [panels[name].lines[0].get_xydata().tolist() for name in ("grid", "TPE")] == [[[0.1, 0.001]], [[0.1, 0.3]]]
    grid, tpe = panels["so far"].lines
    assert (grid.get_label(), grid.get_ydata().tolist()) == ("grid", [0.5, 0.4, 0.4, 0.4])
    assert tpe.get_label() == "TPE"
    assert (tmp_path / "x.svg").stat().st_size < 500_000


def test_command(path, tmp_path, capsys):
    output = tmp_path / "x.png"
    assert main(["plot", "tuning", str(path), "--output", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    path.write_text(json.dumps(RECORD | {"searches": RECORD["searches"][:1]}))
    assert main(["plot", "tuning", str(path)]) == 2
    path.write_text("[]")
    assert main(["plot", "tuning", str(path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "plot tuning: the record has no search TPE, expected those of benchmarks/tune.py",
        f"plot tuning: {path} has no searches, expected a record of benchmarks/tune.py: "
        "list indices must be integers or slices, not str",
    ]


def test_script(tune, tmp_path, monkeypatch):
    path = tmp_path / "mine.json"
    monkeypatch.setattr(sys, "argv", ["tune.py", str(path), "--epochs", "3", "--side", "2", "--seeds", "1"])
    tune.main()
    found = searches(path)
    assert list(found.by_name) == ["defaults", *tune.SEARCHES]
    assert sorted(trial[:2] for trial in found.by_name["grid"][0].trials) == [
        (a, b) for a in (1e-3, 1) for b in (1e-3, 1)
    ]
    for (search,) in found.by_name.values():
        assert len(search.trials) == (1 if search.name == "defaults" else 4)
        *_, loss = tune.training(tune.split(), 3, *search.best[:2])
        assert loss == search.best.loss
        assert search.test == tune.tested(*search.best[:2], 3)
    tune.write(json.loads(path.read_text()), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_the_page_trains_as_the_script_does(tune):
    names = {}
    exec(examples(ROOT / "docs" / "guide" / "tuning.md")[0][1], names)
    data = tune.split()
    assert (names["x"] == data.x).all()
    assert (names["x_valid"] == data.x_test).all()
    assert list(names["training"](0.1, 0.05)) == list(tune.training(data, names["epochs"], 0.1, 0.05))
