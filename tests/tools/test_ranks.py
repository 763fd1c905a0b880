"""Records of many ranks: what is read, drawn and tabled is what was measured."""

import json

import pytest

from fusedstep.__main__ import main
from fusedstep.tools import plot
from fusedstep.tools.bench.ranks import ranks
from fusedstep.tools.bench.tables import rewritten


def side(name, *seconds, **about):
    return {"name": name, "memory": 24.25, "parameters": "equal bits", "seconds": list(seconds)} | about


RECORD = {
    "machine": {
        "date": "2026-11-29",
        "cpu": "some CPU",
        "cores": 2,
        "packages": {"mpi4py": "4.1.2"},
        "fusedstep": {"commit": "d85c74d67d8c", "isa": "avx2"},
    },
    "settings": {"rounds": 2},
    "computing": {"1": {"adam": 2e10}, "2": {"adam": 1e10}},
    "messages": {"latency": 1e-5, "bandwidth": 4e9},
    "start": {"python": [0.2, 0.1], "run --ranks 2": [0.5, 0.6]},
    "link": {"bits_per_second": 10**9, "overlap": {"seconds": {"wire": [0.02, 0.03]}, "absent": {}, "bytes": 8}},
    "races": [
        {"size": 10**6, "ranks": 2, "absent": {}, "sides": [
            side("one process, 1 thread", 0.25, 0.5),
            side("Synchronous", 2e-3, 3e-3, sent=4.0),
            side("Allreduce, Adam", 5e-3, 6e-3, parameters="near"),
        ]},
        {"size": 10**6, "ranks": 1, "absent": {"Synchronous": "some reason"}, "sides": [
            side("one process, 1 thread", 1e-3, 2e-3),
        ]},
        {"size": 10**7, "ranks": 1, "absent": {}, "sides": [side("Synchronous", 7e-3, 9e-3)]},
    ],
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(RECORD))
    return path


def table(path, words):
    return rewritten(f"<!-- table: {words.format(path.name)} -->\n<!-- end -->", path.parent).split("\n")[2:-2]


def test_reading(path):
    found = ranks(path)
    assert found.sizes == [10**6, 10**7]
    assert [race.ranks for race in found.of(10**6)] == [1, 2]
    assert found.of(10**6)[1].sides["Synchronous"].least == 2e-3
    assert found.computing == {1: {"adam": 2e10}, 2: {"adam": 1e10}}
    assert (found.link, found.overlap) == (10**9, {"wire": [0.02, 0.03]})
    with pytest.raises(ValueError, match="size is 1000, expected one of the record: 1e\\+06, 1e\\+07"):
        found.of(1000)


def test_a_record_without_a_link(path):
    path.write_text(json.dumps(RECORD | {"link": {"absent": {"link": "network namespaces need root"}}}))
    assert (ranks(path).link, ranks(path).overlap) == (None, {})


@pytest.mark.parametrize("broken", ["[]", "{}", json.dumps(RECORD | {"races": [{"size": 1}]})])
def test_what_is_no_record(path, broken):
    path.write_text(broken)
    with pytest.raises(ValueError, match="has no races, expected a record of benchmarks/ranks"):
        ranks(path)


def test_table(path):
    lines = table(path, "ranks {} size=1e6")
    assert lines[0] == "| step | 1 rank | 2 ranks | sent by 1 of 2 | held by all 2 |"
    assert lines[2:] == [
        "| one process, 1 thread | 1.00 ms | 250 ms |  | 24.2 |",
        "| Synchronous |  | 2.00 ms | 4.00 | 24.2 |",
        "| Allreduce, Adam |  | 5.00 ms |  | 24.2 |",
    ]
    assert table(path, "seconds {} start")[2:] == ["| python | 100 ms |", "| run --ranks 2 | 500 ms |"]
    assert table(path, "seconds {} overlap") == ["| overlap | time |", "| --- | ---: |", "| wire | 20.0 ms |"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ranks {}", "table ranks has the words '', expected size=N"),
        ("ranks {} size=1e6 odd=1", "has the words 'size=1e6 odd=1', expected size=N"),
        ("ranks {} size=1e5", "size is 100000, expected one of the record"),
        ("seconds {}", "has no '', expected one of start, overlap"),
        ("seconds {} races", "has no 'races', expected one of start, overlap"),
    ],
)
def test_wrong_tables(path, words, message):
    with pytest.raises(ValueError, match=message):
        table(path, words)


def test_picture(path, tmp_path):
    panels = plot.draw_ranks(ranks(path), tmp_path / "x.svg")
    assert list(panels) == [10**6, 10**7]
    lines = {line.get_label(): line.get_xydata().tolist() for line in panels[10**6].lines}
    assert lines == {
        "one process, 1 thread": [[1, 1.0], [2, 250.0]],
        "Synchronous": [[2, 2.0]],
        "Allreduce, Adam": [[2, 5.0]],
    }
    assert [line.get_xydata().tolist() for line in panels[10**7].lines] == [[[1, 7.0]]]
    assert [label.get_text() for label in panels[10**7].get_xticklabels()] == ["1", "2"]
    figure = panels[10**6].figure
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines)
    looks = {line.get_label(): (line.get_marker(), str(line._dash_pattern)) for line in panels[10**6].lines}
    assert len(set(looks.values())) == len(looks)


def test_command(path, tmp_path, capsys):
    output = tmp_path / "x.png"
    assert main(["plot", "ranks", str(path), "--output", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    path.write_text(json.dumps(RECORD | {"races": RECORD["races"][1:]}))
    assert main(["plot", "ranks", str(path)]) == 2
    assert capsys.readouterr().err == "plot ranks: the record has races of 1 numbers of ranks, expected at least 2\n"
