"""Tables of timings: each page shows what its records say, and wrong marks are refused."""

import json
from pathlib import Path

import pytest

from fusedstep.__main__ import main
from fusedstep.tools.bench.tables import rewritten

ROOT = Path(__file__).parents[2]
PAGES = [page for folder in (".", "benchmarks", "docs", "docs/*") for page in sorted(ROOT.glob(f"{folder}/*.md"))]
RESULTS = ROOT / "benchmarks" / "results"
BENCH = "2026-11-26-10a446d-bench.json"
CASES = "2026-11-26-10a446d-cases.json"


def made(mark):
    """Return the lines that a mark of a page beside the records is replaced by."""
    first, *lines, last = rewritten(f"<!-- table: {mark} -->\nold\n<!-- end -->", RESULTS).split("\n")
    assert (first, last) == (f"<!-- table: {mark} -->", "<!-- end -->")
    assert (lines[0], lines[-1]) == ("", "")
    return lines[1:-1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_are_up_to_date(page):
    """Tables on a page are those of its records; `python -m fusedstep bench tables PAGE.md` makes them anew."""
    text = page.read_text()
    assert rewritten(text, page.parent) == text
    assert text.count("<!-- table: ") == text.count("<!-- end -->")


def test_axis():
    lines = made(f"axis {BENCH} size peers=numpy,torch_fused")
    assert lines[0] == "| size | time | GB/s | limit | numpy | torch fused |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    rows = {line.split(" | ")[0][2:]: line for line in lines[2:]}
    assert list(rows) == ["1,000", "10,000", "100,000", "1,000,000", "10,000,000", "100,000,000"]
    record = json.loads((RESULTS / BENCH).read_text())
    ours, limit = (record["cases"][4]["rows"][i]["seconds"] for i in (0, 1))
    time = sorted(ours)[len(ours) // 2]
    share = sorted(y / x for x, y in zip(ours, limit, strict=True))[len(ours) // 2]
    start = f"| 10,000,000 | {1e3 * time:.2f} ms | {28e7 / time / 1e9:.1f} | {share:.2f} | "
    assert rows["10,000,000"].startswith(start)


def test_axis_at_another_size():
    rows = [line.split(" | ") for line in made(f"axis {BENCH} rule size=1e7")]
    assert [row[0] for row in rows[2:5]] == ["| adam", "| sgd", "| momentum"]
    assert rows[0][-1] == "thinc |"
    assert rows[3][-1].strip() == "|"  # nadam, which thinc does not have


def test_tests():
    lines = made(f"tests {CASES} test_step test_functional_sgd")
    assert lines[0] == "| test | time | plain |"
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| step: plain", "| step: clip_global_norm"]
    assert lines[-1].startswith("| functional sgd | 712 ns |")
    lines = made(f"tests {CASES} test_threads rule=adam")
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        f"| threads: adam, {size}" for size in ("10,000", "100,000", "1,000,000", "30,000,000")
    ]


def test_grid():
    lines = made(f"grid {CASES} test_over_float32 kind isa f32 size=30000000")
    assert lines[0] == "| kind | avx2 | avx512 |"
    assert "| bf16 | 1.22 | 1.56 |" in lines
    lines = made(f"grid {CASES} test_option_over_plain options size plain also=by_bytes")
    assert lines[0] == "| options | 100,000 | 1,000,000 | 30,000,000 | by_bytes |"
    assert "| ema | 1.50 | 1.54 | 1.25 | 1.29 |" in lines


def test_machine():
    (said, record) = made(f"machine {CASES}")
    assert said.startswith("Measured on 2026-11-26 at commit 10a446d41b18: AMD EPYC")
    assert record == f"Record: `{CASES}`."


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (f"picture {BENCH}", "table is 'picture', expected one of machine, axis, tests, grid, searches"),
        ("machine nothing.json", "nothing.json cannot be read"),
        (f"machine {BENCH} cpu", "table machine has the words 'cpu', expected none"),
        (f"axis {CASES} size", "format is missing"),
        (f"axis {BENCH} size rule=lion dtype=float64", "has no case like"),
        (f"tests {CASES} test_nothing", "has no test_nothing, expected the name of a test"),
        (f"tests {CASES} test_threads rule=lion", "has no test with 'test_threads rule=lion'"),
        (f"grid {CASES} test_over_float32 kind isa f64", "has no f64 of test_over_float32"),
    ],
)
def test_wrong_marks(mark, message):
    with pytest.raises(ValueError, match=message):
        made(mark)


def test_command(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"Text.\n\n<!-- table: machine {RESULTS / BENCH} -->\n<!-- end -->\n")
    assert main(["bench", "tables", str(page)]) == 0
    assert main(["bench", "tables", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}: written\n{page}: up to date\n"
    assert "Measured on 2026-11-26" in page.read_text()
    page.write_text("<!-- table: machine nothing.json -->\n<!-- end -->\n")
    assert main(["bench", "tables", str(page)]) == 2
    assert "nothing.json cannot be read" in capsys.readouterr().err
    assert main(["bench", "tables", str(tmp_path / "no.md")]) == 2
