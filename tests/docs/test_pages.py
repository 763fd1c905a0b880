"""Every example of every page runs as it stands, every command exists, and every link leads somewhere."""

import argparse
import doctest
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.__main__ import main

ROOT = Path(__file__).parents[2]
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/scale.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]
OPTIONAL = (
    "autograd",
    "gymnasium",
    "jax",
    "optuna",
    "torch",
)  # libraries that an example may use and the extra `test` lacks
_BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def named(page):
    """Return the name of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def missing(text):
    """Return the libraries that a code block names and that are not installed."""
    return [name for name in OPTIONAL if re.search(rf"\b{name}\b", text) and not find_spec(name)]


def examples(page):
    """Return the code blocks of a page that can run here, in order: pairs of "python" or "pycon", and text.

    A block needs the libraries that it names, and a page throughout those that its first block names.
    """
    found = _BLOCK.findall(page.read_text())
    return [(kind, text) for kind, text in found if not missing(found[0][1] + text)]


def uses_gpu(page):
    """Return whether the examples of a page need CuPy."""
    return any("import cupy" in text for _, text in examples(page))


def run(page):
    """Run the examples of a page, in order and in one namespace, and return the namespace."""
    names = {"__name__": page.stem}
    for number, (kind, text) in enumerate(examples(page)):
        title = f"{named(page)}, block {number}"
        if kind == "python":
            exec(compile(text, title, "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(text, {}, title, str(page), 0)
        test.globs = names  # the namespace itself: the parser has made a copy of its argument
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, clear_globs=False).failed == 0, title
    return names


def commands(page):
    """Return what stands after "python -m fusedstep" on a page, in code and in text."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^[ $]*(?:.*&& )?python -m fusedstep(?: (.*))?$", text, re.MULTILINE)
    lines += re.findall(r"`python -m fusedstep ([^`]*)`", text)
    return [line.partition("#")[0].partition("`")[0].split() for line in lines if "|" not in line]


WITH_EXAMPLES = [page for page in PAGES if _BLOCK.search(page.read_text())]


@pytest.mark.parametrize("page", [page for page in WITH_EXAMPLES if not uses_gpu(page)], ids=named)
def test_examples(page, tmp_path, monkeypatch):
    if not examples(page):
        pytest.skip(f"{named(page)} needs a library that is not installed")
    monkeypatch.chdir(tmp_path)
    run(page)


@pytest.mark.parametrize("page", [page for page in WITH_EXAMPLES if uses_gpu(page)], ids=named)
def test_examples_on_a_gpu(page, cupy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page)


def test_examples_are_found():
    assert {named(page) for page in WITH_EXAMPLES} >= {"README.md", "docs/guide/options.md", "docs/guide/gpu.md"}


def test_an_extra_has_what_pages_may_need():
    """The second environment of `.ci/run` installs this extra, so no page is skipped in both."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {re.match(r"\w+", need)[0] for need in extras["compare"]} >= set(OPTIONAL)


def test_the_example_of_the_readme():
    names = run(ROOT / "README.md")
    assert names["result"].grad_norm == pytest.approx(np.sqrt(7840 * 0.01 + 10))
    assert names["opt"].t == {"w": 1, "b": 1}


def test_the_training_loop_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run(ROOT / "docs" / "guide" / "training-loop.md")
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.01 * losses[0]
    assert names["opt"].t == names["again"].t == {"w": 640, "b": 640}
    assert names["batches"].done == 640
    assert (names["params"]["w"] == names["opt"].ema["w"]).all()
    assert names["again"].weight_decay == 0.01


def test_the_readme_has_the_learning_rates_of_the_classes():
    rows = re.findall(r"^\| `(\w+)\(lr=(.*?)\)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {name: float(lr) for name, lr in rows} == {name: getattr(fs, name)().lr for name, _ in rows}
    assert len(rows) >= 11


def test_the_api_has_everything_public():
    """Whole modules are documented by automodule, all else by name."""
    text = "".join(page.read_text() for page in PAGES if page.parent.name == "api")
    documented = set(re.findall(r"^\.\. auto\w+:: fusedstep\.(\w+)", text, re.MULTILINE))
    assert documented >= set(fs.__all__) - set(fs.optimizers.__all__)
    assert "optimizers" in documented


class AcceptedError(Exception):
    """The command line has been understood."""


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=named)
def test_commands_exist(page, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser, arguments=None, namespace=None):
        parse(parser, arguments, namespace)
        raise AcceptedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        if words in ([], ["info"], ["--version"]):
            continue  # no arguments to parse
        with pytest.raises((AcceptedError, SystemExit)) as found:
            assert main(words if len(words) > 1 else [*words, "--help"]) == 0, words
        assert found.type is AcceptedError or found.value.code == 0, words


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_pages_point_to_is_there(page):
    text = page.read_text()
    targets = [page.parent / target for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    targets += [ROOT / path for path in re.findall(r"benchmarks/(?:results|pictures)/[\w.-]+\.\w+", text)]
    targets += [ROOT / path for path in re.findall(r"`((?:benchmarks|docs)/[\w./-]+)`", text)]
    for target in targets:
        assert target.exists(), target
