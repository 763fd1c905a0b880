"""The demo and the command line."""

import subprocess
import sys

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import demo, verify

QUADRATIC = {
    "SGD": 1.0737418240000003,
    "Momentum": 0.04399870600000133,
    "Adagrad": 5.537312004775913,
    "RMSprop": 8.3205241519636,
    "Adam": 9.003496535489624,
}

NAMES = [cls.__name__ for cls in verify.classes()]


@pytest.fixture(scope="module")
def digits():
    return demo.load()


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "fusedstep", *arguments], capture_output=True, text=True, check=False)


def test_quadratic():
    assert demo.quadratic() == pytest.approx(QUADRATIC, rel=1e-12, abs=0)


def test_quadratic_is_printed_exactly(capsys):
    assert demo.main(["--quadratic"]) == 0
    printed = capsys.readouterr().out
    assert all(repr(x) in printed for x in demo.quadratic().values())


@pytest.mark.parametrize("count", [1, 5, demo.BATCH])
def test_gradients(digits, count):
    rng = np.random.default_rng(0)
    params = {key: p.astype(np.float64) for key, p in demo._initial_params().items()}
    direction = {key: rng.standard_normal(p.shape) for key, p in params.items()}
    x, y = digits.x[:count].astype(np.float64), digits.y[:count]
    ahead, behind = (demo._loss({k: params[k] + h * direction[k] for k in params}, x, y) for h in (1e-5, -1e-5))
    grads = demo.gradients(params, x, y)
    slope = sum(np.vdot(grads[key], direction[key]) for key in params)
    assert slope == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_training(digits, name):
    epochs = []
    fused, plain = (
        demo.train(getattr(package, name)(lr=demo._rate(name)), digits, 2, lambda: epochs.append(1))
        for package in (fs, fs.reference)
    )
    assert demo.same_bits(fused.params, plain.params)
    assert fused[1:4] == plain[1:4]
    assert len(epochs) == 4
    assert len(fused.losses) == 3
    assert fused.losses[-1] < fused.losses[0]
    assert min(fused.train_accuracy, fused.test_accuracy) > 0.2  # chance is 0.1


def test_main(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # rich cuts names in a narrow terminal
    output = tmp_path / "curves.png"
    assert demo.main(["--epochs", "1", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    assert "NO" not in printed
    assert output.read_bytes().startswith(b"\x89PNG")
    assert output.stat().st_size > 10_000


def test_other_bits_are_exit_code_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "classes", lambda: [fs.SGD])
    monkeypatch.setattr(fs.reference.SGD, "elem", lambda self, k, g: k.lr * g * np.float32(1.000001))
    assert demo.main(["--epochs", "1", "--output", str(tmp_path / "curves.png")]) == 1
    assert "NO" in capsys.readouterr().out


@pytest.mark.parametrize(("module", "package"), [("sklearn", "scikit-learn"), ("rich", "rich")])
def test_missing_package(tmp_path, capsys, monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    assert demo.main(["--output", str(tmp_path / "curves.png")]) == 2
    assert f'{package}: python -m pip install "fusedstep[demo]"' in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--output", "no-such-folder/x.png"], ["--output", "x.txt"]])
def test_wrong_arguments(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        demo.main(arguments)
    assert f"{arguments[0]} is {arguments[1]}, expected" in capsys.readouterr().err


def test_info():
    result = run("info")
    assert result.returncode == 0
    keys = [line.split(": ", 1)[0] for line in result.stdout.splitlines()]
    assert keys == list(fs.info())
    assert f"isa: {fs.info()['isa']}\n" in result.stdout


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_usage(arguments):
    result = run(*arguments)
    assert result.returncode == 0
    assert all(f"  {command} " in result.stdout for command in ("info", "verify", "demo", "plot"))


def test_unknown_command():
    result = run("dmeo")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "command is 'dmeo', expected one of info, verify, demo, plot\n"


def test_command_gets_its_arguments():
    result = run("demo", "--quadratic")
    assert result.returncode == 0
    assert repr(demo.quadratic()["SGD"]) in result.stdout
