"""The pictures."""

import sys

import pytest

from fusedstep import plot, schedules
from fusedstep.__main__ import main


def drawn(axes):
    return [line.get_ydata().tolist() for line in axes.lines]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("plot") / "schedules.png"
    return path, plot.draw_schedules(path)


def test_every_schedule_has_a_panel(picture):
    _, axes = picture
    classes = {name for name in schedules.__all__ if isinstance(getattr(schedules, name), type)}
    assert set(axes) == set(plot.panels()) == classes - {"Schedule"}
    for name, panel in plot.panels().items():
        assert {type(schedule).__name__ for schedule in panel.lines.values()} == {name}


@pytest.mark.parametrize("name", [name for name in plot.panels() if name != "plateau"])
def test_lines_are_the_values(picture, name):
    panel = plot.panels()[name]
    expected = [[schedule(done) for done in range(panel.updates)] for schedule in panel.lines.values()]
    assert drawn(picture[1][name]) == expected


def test_plateau_observes_the_metric_that_is_drawn(picture):
    rates, metric = drawn(picture[1]["plateau"])
    schedule = plot.panels()["plateau"].lines["value"]
    for rate, x in zip(rates, metric, strict=True):
        assert schedule(0) == rate
        schedule.observe(x)
    assert len(set(rates)) > 3


def test_lines_differ_without_colours(picture):
    for axes in picture[1].values():
        styles = [line.get_linestyle() for line in axes.lines]
        assert len(set(styles)) == len(styles)
        assert len(axes.lines) == 1 or len(axes.get_legend_handles_labels()[1]) == len(axes.lines)


def test_png(picture):
    path, _ = picture
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20]) >= 900  # pixels from left to right


def test_command_writes_svg(tmp_path, capsys):
    output = tmp_path / "schedules.svg"
    assert main(["plot", "schedules", "--output", str(output)]) == 0
    assert "<svg" in output.read_text()[:1000]
    assert str(output) in capsys.readouterr().out


def test_missing_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    output = tmp_path / "schedules.png"
    assert plot.main(["schedules", "--output", str(output)]) == 2
    assert capsys.readouterr().err == 'plot needs matplotlib: python -m pip install "fusedstep[plot]"\n'
    assert not output.exists()


@pytest.mark.parametrize("output", ["no-such-folder/x.png", "x.txt", "x"])
def test_wrong_output(capsys, output):
    with pytest.raises(SystemExit, match="2"):
        plot.main(["schedules", "--output", output])
    assert f"--output is {output}, expected" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["landscape"]])
def test_wrong_picture(arguments):
    with pytest.raises(SystemExit, match="2"):
        plot.main(arguments)
