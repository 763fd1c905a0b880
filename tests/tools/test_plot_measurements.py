"""The pictures of measurements: what is drawn is what was measured."""

import json
from statistics import median

import numpy as np
import pytest

from fusedstep import _cpu
from fusedstep.__main__ import main
from fusedstep.tools import plot
from fusedstep.tools.bench import machine, roofs
from fusedstep.tools.bench.cases import Case
from fusedstep.tools.bench.record import Measured, Record, Row, write
from fusedstep.tools.plot.picture import blank, name_ends

RULES = [rule for rule in _cpu.rules if rule.isidentifier() and not rule.startswith("limit")]


@pytest.fixture
def full():
    """A record of two sizes for every rule, three in all for Adam, and lists."""
    rng = np.random.default_rng(0)
    found = []
    names = ("fusedstep", "limit", "numpy", "torch single", "torch fused")

    def add(case):
        rows = [Row(name, (case.moved / rng.uniform(1e9, 1e11, 5)).tolist(), 0.0, 0.0) for name in names]
        found.append(Measured(case, len(found), rows))

    here = {"threads": 2, "isa": "avx2"}
    for size in (10**5, 10**7):
        for rule in RULES:
            add(Case(rule, size=size, **here))
    add(Case(size=10**3, **here))
    add(Case(size=10**3, odd=True, **here))
    for size in (16, 64, 256):
        add(Case(size=size, count=1000, **here))
    about = machine.about(["cpu"])
    return Record(about | {"caches": {"L1 Data": "32K", "L1 Instruction": "32K", "L2 Unified": "1M"}}, {}, found)


def by_label(axes):
    return {label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}


def test_throughput(full, tmp_path):
    (axes,) = plot.draw_throughput(full, tmp_path / "x.png").values()
    lines = by_label(axes)
    assert list(lines) == ["fusedstep", "limit", "numpy", "torch single", "torch fused"]
    wanted = sorted((m for m in full.cases if m.case.rule == "adam" and m.case.count == 1 and not m.case.odd),
                    key=lambda m: m.case.size)  # fmt: skip
    for name, line in lines.items():
        assert line.get_xdata().tolist() == [10**3, 10**5, 10**7]
        rates = [28 * m.case.size / median(m.row(name).seconds) / 1e9 for m in wanted]
        assert line.get_ydata() == pytest.approx(rates)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1e3", "1e5", "1e7"]  # the sizes measured
    assert axes.get_xticks().tolist() == [10**3, 10**5, 10**7]
    assert not axes.get_xticks(minor=True).size
    caches = [text.get_text() for text in axes.texts]
    assert caches == ["L1", "L2"]
    looks = {(str(line.get_linestyle()), line.get_marker(), str(line._dash_pattern)) for line in lines.values()}
    assert len(looks) == len(lines)


def test_small(full, tmp_path):
    (axes,) = plot.draw_small(full, tmp_path / "x.png").values()
    wanted = [m for m in full.cases if m.case.count == 1000]
    for name, line in by_label(axes).items():
        assert line.get_xdata().tolist() == [16, 64, 256]
        assert line.get_ydata() == pytest.approx([1e6 * median(m.row(name).seconds) for m in wanted])


def test_ratios(full, tmp_path):
    panels = plot.draw_ratios(full, tmp_path / "x.png")
    assert [label.get_text() for label in next(iter(panels.values())).get_yticklabels()] == RULES
    assert list(panels) == ["1e5 elements, 2 threads, avx2", "1e7 elements, 2 threads, avx2"]
    for axes, size in zip(panels.values(), (10**5, 10**7), strict=True):
        measured = {m.case.rule: m for m in full.cases if m.case.size == size}
        ends = {name: [] for name in ("numpy", "torch single", "torch fused")}
        for container in axes.containers:
            if container.get_label() in ends:
                ends[container.get_label()] += [bar.get_x() + bar.get_width() for bar in container]
        for name, drawn in ends.items():
            assert drawn == pytest.approx([measured[rule].ratios[name].median for rule in RULES])
        hatches = {
            bar.get_hatch() for container in axes.containers if hasattr(container, "patches") for bar in container
        }
        assert len(hatches) == 3


def test_ratios_of_a_run_that_was_cut_short(full, tmp_path):
    full.cases = [m for m in full.cases if m.case.size == 10**7 or m.case.rule not in RULES[2:6]]
    panels = plot.draw_ratios(full, tmp_path / "x.png")
    for axes, size in zip(panels.values(), (10**5, 10**7), strict=True):
        bars = [bar for container in axes.containers for bar in getattr(container, "patches", ())]
        rows = {RULES[round(bar.get_y() + bar.get_height() / 2)] for bar in bars}
        assert rows == {m.case.rule for m in full.cases if m.case.size == size}


def test_who_did_other_work_is_not_drawn(full, tmp_path):
    for m in full.cases:
        m.rows[-1].ulp, m.rows[-1].change = 100.0, 0.1
    (axes,) = plot.draw_throughput(full, tmp_path / "x.png").values()
    assert full.cases[0].rows[-1].name not in by_label(axes)


def test_roofline(full, tmp_path):
    (axes,) = plot.draw_roofline(full, tmp_path / "x.png").values()
    points = by_label(axes)
    assert list(points) == RULES
    for m in full.cases:
        if m.case.size == 10**7:
            ((x,), (y,)) = points[m.case.rule].get_data()
            flops = roofs.operations(m.case.rule)
            assert x == pytest.approx(flops / m.case.bytes_per_parameter)
            assert y == pytest.approx(flops * m.case.size / median(m.ours.seconds) / 1e9)
            assert y / x == pytest.approx(m.gb_per_s)
    peak = full.machine["flop_per_s"]["cpu"] / 1e9
    assert any(line.get_ydata()[-1] == pytest.approx(peak) for line in axes.lines)


def cases(sizes):
    """A record of pytest-benchmark of the race of rules."""
    found = [
        {
            "name": f"test_against_others[{size}]",
            "params": {"size": size},
            "extra_info": {
                "seconds": 1e-9 * size,
                "gb_per_s": 28.0,
                "machine": 2.0,
                "limit": 0.5,
                "limit, goal": "met",
            },
        }
        for size in sizes
    ]
    return {"machine_info": machine.about(["cpu"]), "benchmarks": [{"name": "test_other[1]", "params": {}}, *found]}


def test_rules(tmp_path):
    axes = plot.draw_rules(cases([10**5, 10**3]), tmp_path / "x.png")
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    wanted = {"built-in": 1.0, "own rule, machine": 2.0, "limit of the memory": 0.5}
    assert drawn == {name: pytest.approx(np.array([[1e3, y], [1e5, y]])) for name, y in wanted.items()}
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert sorted(heights, key=heights.get) == sorted(wanted, key=wanted.get)  # names stand in the order of the ends


def test_names_of_ends_keep_their_distance():
    axes = blank(4).subplots()
    for i, y in enumerate((1.0, 1.001, 1.002, 5.0)):
        axes.plot([0, 1], [0, y], label=str(i))
    name_ends(axes, gap=0.1)
    heights = [text.get_position()[1] for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2", "3"]
    assert np.diff(heights).min() == pytest.approx(0.1, abs=1e-3)


def test_rules_of_a_record_without_them(tmp_path, capsys):
    path, output = tmp_path / "record.json", tmp_path / "x.png"
    path.write_text(json.dumps(cases([1000])))
    assert main(["plot", "rules", str(path), "--output", str(output)]) == 2
    assert "plot rules: the record has no test_against_others of several sizes" in capsys.readouterr().err
    path.write_text(json.dumps(cases([1000, 10_000])))
    assert main(["plot", "rules", str(path), "--output", str(output)]) == 0
    assert output.exists()


@pytest.mark.parametrize("picture", ["throughput", "ratios", "roofline", "small"])
def test_what_a_record_lacks_is_named(tmp_path, capsys, picture):
    path, output = tmp_path / "record.json", tmp_path / "x.png"
    write(Record(machine.about(["cpu"]), {}, [Measured(Case(), 0, [Row("fusedstep", [1.0])])]), path)
    assert main(["plot", picture, str(path), "--output", str(output)]) == 2
    assert f"plot {picture}: the record has no " in capsys.readouterr().err
    assert not output.exists()
