"""An optimizer that the tools have never seen: no table of theirs has an entry for it, and none of them breaks."""

import dataclasses

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import reference
from fusedstep.tools import demo, digits, plot, verify
from fusedstep.tools.bench import cases, heats, peers
from fusedstep.tools.bench.cases import Case
from fusedstep.tools.plot import families, trajectories


@pytest.fixture(params=[False, True], ids=["converges", "diverges"])
def newcomer(request, monkeypatch):
    """A new class and its reference, in place of all others; if it diverges, the class maximizes the loss."""

    def made(base):
        defaults = {"lr": 0.01, "maximize": request.param}
        fields = [(name, type(value), dataclasses.field(default=value)) for name, value in defaults.items()]
        return dataclasses.make_dataclass("NewcomerWithALongName", fields, bases=(base,), eq=False)

    for package in (fs.optimizers, reference):
        monkeypatch.setattr(package, "NewcomerWithALongName", made(package.Adam), raising=False)
    monkeypatch.setattr(fs.optimizers, "__all__", [*fs.optimizers.__all__, "NewcomerWithALongName"])
    cls = fs.optimizers.NewcomerWithALongName
    assert cls in fs.optimizers.classes()
    for tool in (verify, demo, plot.losses, families, trajectories):
        monkeypatch.setattr(tool, "classes", lambda: [cls])
    return cls


def test_verify(newcomer, monkeypatch, capsys):
    monkeypatch.setattr(verify, "cases", lambda cls: {"float32": [verify.Case({}, np.float32, np.float32)]})
    monkeypatch.setattr(verify, "LARGE", (70_001,))
    assert verify.main([]) == 0
    _, _, head, row, _ = capsys.readouterr().out.splitlines()
    assert row.split()[:3] == ["NewcomerWithALongName", "float32", "1"]
    assert len(row) == len(head)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_demo(newcomer, tmp_path, monkeypatch, capsys, dtype):
    monkeypatch.setenv("COLUMNS", "100")
    assert demo.main(["--epochs", "1", "--dtype", dtype, "--output", str(tmp_path / "demo.png")]) == 0
    assert newcomer.__name__ in capsys.readouterr().out


@pytest.mark.sampled(2)
def test_pictures(newcomer, tmp_path, monkeypatch):
    monkeypatch.setitem(digits.EPOCHS, "float32", 1)
    for draw in (plot.draw_losses, plot.draw_trajectories):
        path = tmp_path / "picture.png"
        draw(path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_trajectory_ends_where_it_leaves_the_picture():
    surface = trajectories.SURFACES["Rosenbrock"]
    points = trajectories.trajectory(fs.SGD(lr=1.0), surface)
    assert 2 < len(points) < surface.updates
    assert (np.abs(points[:-1]) < trajectories.FAR).all()


def test_bench_without_tables(monkeypatch):
    """Adam as a rule that no peer knows, and whose states are more than the engine has a limit for."""
    monkeypatch.delattr(peers.expressions, "adam")
    monkeypatch.delitem(peers.IN_TORCH, "adam")
    monkeypatch.setattr(Case, "limit", None)
    case = Case(size=1000, isa=fs.info()["isas"][-1])
    (found,) = heats.run((case,), [peers.Expression, peers.Torch], 1, inner=1e-4, rest=0.0)
    assert [row.name for row in found.rows] == ["fusedstep"]
    assert found.ours.ulp == 0
    assert found.share is None
    assert set(found.absent) == {"numpy", "torch fused"}


def test_rules_of_a_class_that_shares_them(newcomer, monkeypatch):
    monkeypatch.setattr(cases.optimizers, "classes", lambda: [newcomer])
    cases.rules.cache_clear()
    try:
        found = cases.rules()
    finally:
        cases.rules.cache_clear()
    assert {name for name, _ in found.values()} == {newcomer.__name__}
    assert list(found) == ["adam", "amsgrad"]
