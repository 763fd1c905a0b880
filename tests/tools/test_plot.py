"""The pictures."""

import sys
from itertools import product

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import schedules
from fusedstep.__main__ import main
from fusedstep.tools import digits, plot
from fusedstep.tools.plot import families, losses, picture, trajectories
from tests.rules import FILES

NAMES = [cls.__name__ for cls in fs.optimizers.classes()]
BOTH = list(product(NAMES, trajectories.SURFACES))


def drawn(axes):
    return [line.get_ydata().tolist() for line in axes.lines]


def labelled(panels):
    """Return the lines in some panels by the first word of their labels, and what follows it."""
    lines = [line for axes in panels for line in axes.get_legend_handles_labels()[0]]
    words = [line.get_label().split() for line in lines]
    found = {name: (line, float(rate)) for line, (name, rate) in zip(lines, words, strict=True)}
    assert len(found) == len(lines)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plot")


@pytest.fixture(scope="module")
def every_schedule(folder):
    path = folder / "schedules.png"
    return path, plot.draw_schedules(path)


@pytest.fixture(scope="module")
def every_loss(folder):
    """Paths, panels, and the losses of two epochs."""
    curves = losses.losses(2)
    paths = [folder / "losses.png", folder / "losses.svg"]
    return paths, plot.draw_losses(*paths, curves=curves), curves


@pytest.fixture(scope="module")
def every_trajectory(folder):
    paths = [folder / "trajectories.png", folder / "trajectories.svg"]
    return paths, plot.draw_trajectories(*paths)


def test_every_schedule_has_a_panel(every_schedule):
    _, axes = every_schedule
    classes = {name for name in schedules.__all__ if isinstance(getattr(schedules, name), type)}
    assert set(axes) == set(plot.schedules.panels()) == classes - {"Schedule"}
    for name, panel in plot.schedules.panels().items():
        assert {type(schedule).__name__ for schedule in panel.lines.values()} == {name}


@pytest.mark.parametrize("name", [name for name in plot.schedules.panels() if name != "plateau"])
def test_lines_are_the_values(every_schedule, name):
    panel = plot.schedules.panels()[name]
    expected = [[schedule(done) for done in range(panel.updates)] for schedule in panel.lines.values()]
    assert drawn(every_schedule[1][name]) == expected


def test_plateau_observes_the_metric_that_is_drawn(every_schedule):
    rates, metric = drawn(every_schedule[1]["plateau"])
    schedule = plot.schedules.panels()["plateau"].lines["value"]
    for rate, x in zip(rates, metric, strict=True):
        assert schedule(0) == rate
        schedule.observe(x)
    assert len(set(rates)) > 3


def test_schedules_differ_without_colours(every_schedule):
    for axes in every_schedule[1].values():
        styles = [line.get_linestyle() for line in axes.lines]
        assert len(set(styles)) == len(styles)
        assert len(axes.lines) == 1 or len(axes.get_legend_handles_labels()[1]) == len(axes.lines)


def test_losses_are_those_of_the_demo(every_loss):
    _, panels, curves = every_loss
    images = digits.load()
    for name, (line, rate) in labelled(panels.values()).items():
        assert rate == digits.rate(name)
        expected = digits.train(getattr(fs, name)(lr=rate), images, 2).losses
        assert line.get_ydata().tolist() == curves[name] == expected


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_an_optimizer_are_in_every_panel(every_loss, name):
    _, panels, curves = every_loss
    assert list(panels) == list(families.FAMILIES)
    for kind, axes in panels.items():
        assert axes.get_yscale() == "log"
        assert drawn(axes).count(curves[name]) == 1 + (kind == families.family(name))


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("name", "title"), BOTH)
def test_trajectory_is_that_of_the_reference(every_trajectory, name, title):
    surface = trajectories.SURFACES[title]
    panels = {kind: axes for (where, kind), axes in every_trajectory[1].items() if where == title}
    line, rate = labelled(panels.values())[name]
    assert line.axes is panels[families.family(name)]
    optimizer = getattr(fs.reference, name)(lr=rate)
    p = np.array(surface.start)
    expected = [p.tolist()]
    for _ in range(surface.updates):
        optimizer.step(p, np.array(surface.slopes(*p.tolist())))
        expected.append(p.tolist())
    assert line.get_xydata().tobytes() == np.array(expected).tobytes()
    assert np.isfinite(expected).all()


@pytest.mark.parametrize(("name", "title"), list(product(trajectories.RATES, trajectories.SURFACES)))
def test_every_optimizer_with_a_rate_of_its_own_gets_down(name, title):
    surface = trajectories.SURFACES[title]
    optimizer = getattr(fs, name)(lr=trajectories.rate(name, title))
    begin, end = (surface.value(*p) for p in trajectories.trajectory(optimizer, surface)[[0, -1]])
    assert end < begin / 5


@pytest.mark.parametrize("title", trajectories.SURFACES)
def test_gradients(title):
    surface = trajectories.SURFACES[title]
    assert surface.gradient(np.array(surface.rest)).tolist() == [0, 0]
    for p in np.random.default_rng(0).uniform(-1.5, 1.5, (20, 2)):
        differences = [(surface.value(*(p + h)) - surface.value(*(p - h))) / 2e-6 for h in 1e-6 * np.eye(2)]
        assert surface.gradient(p) == pytest.approx(differences, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("title", ["Beale", "Rosenbrock"])
def test_minima(title):
    surface = trajectories.SURFACES[title]
    x, y = np.meshgrid(np.linspace(*surface.xlim, 50), np.linspace(*surface.ylim, 50))
    assert surface.value(*surface.rest) == 0
    assert (surface.value(x, y) >= 0).all()


@pytest.mark.parametrize("title", trajectories.SURFACES)
def test_start_and_rest_are_marked(every_trajectory, title):
    surface = trajectories.SURFACES[title]
    for kind in families.FAMILIES:
        axes = every_trajectory[1][title, kind]
        points = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) == 1]
        assert points == [[list(surface.start)], [list(surface.rest)]]
        for (x, y), *_ in points:
            assert axes.get_xlim()[0] < x < axes.get_xlim()[1]
            assert axes.get_ylim()[0] < y < axes.get_ylim()[1]


@pytest.mark.parametrize("name", FILES)
def test_families(name):
    assert families.family(name) == FILES[name].FAMILY


def test_a_new_optimizer_appears(monkeypatch):
    class Newcomer(fs.Adam):
        pass

    monkeypatch.setattr(fs.optimizers, "Newcomer", Newcomer, raising=False)
    monkeypatch.setattr(fs.optimizers, "__all__", [*fs.optimizers.__all__, "Newcomer"])
    panels = plot.draw_trajectories()
    kind = families.FAMILIES[2]
    assert [key for key, axes in panels.items() if "Newcomer" in labelled([axes])] == [
        (title, kind) for title in trajectories.SURFACES
    ]
    assert list(labelled([plot.draw_losses(curves={"Newcomer": [2.0, 1.0]})[kind]])) == ["Newcomer"]


def test_optimizers_differ_without_colours(every_trajectory, every_loss):
    for axes in [*every_trajectory[1].values(), *every_loss[1].values()]:
        lines = labelled([axes])
        dashes = {str(picture.style(families.places()[name])["linestyle"]) for name in lines}
        assert len(dashes) == len({line.get_marker() for line, _ in lines.values()}) == len(lines)
    assert len({(str(look["linestyle"]), look["marker"]) for look in map(picture.style, range(77))}) == 77


def test_no_line_hides_another(every_trajectory):
    for axes in every_trajectory[1].values():
        handles, _ = axes.get_legend_handles_labels()
        widths = [line.get_linewidth() for line in sorted(handles, key=lambda line: line.get_zorder())]
        assert widths == sorted(set(widths), reverse=True)  # each is wider than those that lie on it


@pytest.mark.parametrize("drawing", ["every_schedule", "every_loss", "every_trajectory"])
def test_png(request, drawing):
    path = request.getfixturevalue(drawing)[0]
    content = (path[0] if isinstance(path, list) else path).read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20]) >= 900  # pixels from left to right


def test_svg_is_the_same_every_time(every_trajectory, every_loss, tmp_path):
    again = tmp_path / "again.svg"
    for (png, svg), draw in (
        (every_trajectory[0], plot.draw_trajectories),
        (every_loss[0], lambda *paths: plot.draw_losses(*paths, curves=every_loss[2])),
    ):
        draw(again)
        assert again.read_bytes() == svg.read_bytes()
        assert b"<text" not in svg.read_bytes()
        assert svg.stat().st_size < 500_000
        assert png.exists()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [name for name, picture in plot.PICTURES.items() if not picture.record])
def test_command_writes_png_and_svg(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(digits.EPOCHS, "float32", 1)
    assert main(["plot", name]) == 0
    png, svg = f"fusedstep-{name}.png", f"fusedstep-{name}.svg"
    assert capsys.readouterr().out == f"{name.capitalize()}: {png}\n{name.capitalize()}: {svg}\n"
    assert (tmp_path / png).read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / svg).read_text()[:1000]


def test_command_writes_what_it_is_told(tmp_path, capsys):
    output = tmp_path / "one.svg"
    assert main(["plot", "schedules", "--output", str(output)]) == 0
    assert list(tmp_path.iterdir()) == [output]
    assert capsys.readouterr().out == f"Schedules: {output}\n"


@pytest.mark.parametrize(
    ("name", "modules", "needed"),
    [
        ("schedules", ["matplotlib"], 'matplotlib: python -m pip install "fusedstep[plot]"'),
        ("trajectories", ["matplotlib"], 'matplotlib: python -m pip install "fusedstep[plot]"'),
        ("losses", ["sklearn"], 'scikit-learn: python -m pip install "fusedstep[demo]"'),
        ("losses", ["matplotlib", "sklearn"], 'matplotlib, scikit-learn: python -m pip install "fusedstep[demo]"'),
    ],
)
def test_missing_packages(tmp_path, capsys, monkeypatch, name, modules, needed):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    output = tmp_path / "picture.png"
    assert plot.main([name, "--output", str(output)]) == 2
    assert capsys.readouterr().err == f"plot needs {needed}\n"
    assert not output.exists()


def command(name):
    """Return the arguments that ask for a picture."""
    return [name, "record.json"] if plot.PICTURES[name].record else [name]


@pytest.mark.parametrize("name", plot.PICTURES)
@pytest.mark.parametrize("output", ["no-such-folder/x.png", "x.txt", "x"])
def test_wrong_output(tmp_path, capsys, monkeypatch, name, output):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        plot.main([*command(name), "--output", "good.png", output])
    assert f"--output is {output}, expected a .png or .svg file in a folder that exists" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["landscape"]])
def test_wrong_picture(arguments):
    with pytest.raises(SystemExit, match="2"):
        plot.main(arguments)
