"""The demo and the command line."""

import io
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

import fusedstep as fs
from fusedstep.tools import demo, ranks
from fusedstep.tools.digits import BATCH, gradients, initial_params, load, loss, rate, same_bits, train
from tests.rules import entries

NAMES = [cls.__name__ for cls in fs.optimizers.classes()]
HALF = ["float16", "bfloat16"]


@pytest.fixture(scope="module")
def digits():
    return load()


@pytest.fixture
def few(monkeypatch):
    """The demo with fewer optimizers: half precision trains each in six ways."""
    monkeypatch.setattr(demo, "classes", lambda: [fs.SGD, fs.Adam])


@pytest.fixture(params=HALF)
def half(request):
    """Half-precision dtypes by name, bfloat16 where there is one."""
    if request.param == "bfloat16":
        pytest.importorskip("ml_dtypes")
    return request.param


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "fusedstep", *arguments], capture_output=True, text=True, check=False)


def test_quadratic():
    expected = {name: end for name, _, end in entries("PARABOLA")}
    assert list(demo.quadratic()) == ["SGD", "Momentum", "Adagrad", "RMSprop", "Adam"]
    assert demo.quadratic() == pytest.approx({name: expected[name] for name in demo.quadratic()}, rel=1e-12, abs=0)


def test_quadratic_is_printed_exactly(capsys):
    assert demo.main(["--quadratic"]) == 0
    printed = capsys.readouterr().out
    assert all(repr(x) in printed for x in demo.quadratic().values())


@pytest.mark.parametrize("count", [1, 5, BATCH])
def test_gradients(digits, count):
    rng = np.random.default_rng(0)
    params = {key: p.astype(np.float64) for key, p in initial_params().items()}
    direction = {key: rng.standard_normal(p.shape) for key, p in params.items()}
    x, y = digits.x[:count].astype(np.float64), digits.y[:count]
    ahead, behind = (loss({k: params[k] + h * direction[k] for k in params}, x, y) for h in (1e-5, -1e-5))
    grads = gradients(params, x, y)
    slope = sum(np.vdot(grads[key], direction[key]) for key in params)
    assert slope == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_training(digits, name):
    epochs = []
    fused, plain = (
        train(getattr(package, name)(lr=rate(name)), digits, 2, lambda: epochs.append(1))
        for package in (fs, fs.reference)
    )
    assert same_bits(fused.params, plain.params)
    assert fused[1:4] == plain[1:4]
    assert len(epochs) == 4
    assert len(fused.losses) == 3
    assert fused.losses[-1] < fused.losses[0]
    assert min(fused.train_accuracy, fused.test_accuracy) > 0.2  # chance is 0.1


def test_float32_is_not_compared_with_anything():
    assert [(storage.dtype, storage.options) for storage in demo.storages("float32")] == [(np.float32, {})]


def test_bytes_of_adam(half):
    kept = demo.storages(half)
    assert [storage.name for storage in kept] == ["float32", *["nearest"] * 2, *["stochastic"] * 2, "master"]
    assert [storage.states for storage in kept] == ["float32", "float32", half, "float32", half, "float32"]
    assert [storage.bytes for storage in kept] == [12, 10, 6, 10, 6, 12 if half == "bfloat16" else 14]


def test_training_keeps_numbers_in_the_dtype_of_the_storage(digits, half):
    for storage in demo.storages(half):
        fused, plain = demo._both("Adam", storage, digits, 1, lambda: None)
        assert same_bits(fused.params, plain.params)
        assert fused[1:4] == plain[1:4]
        assert {p.dtype for p in fused.params.values()} == {storage.dtype}


def test_gradients_have_the_dtype_of_the_parameters(digits, half):
    class Recorder:
        def step(self, params, grads):
            assert {a.dtype for a in [*params.values(), *grads.values()]} == {dtype}

    dtype = demo.storages(half)[-1].dtype
    ended = train(Recorder(), digits, 1, dtype=dtype)
    assert ended.losses[0] == ended.losses[1]
    exact = loss(initial_params(), digits.x, digits.y)
    assert ended.losses[0] == pytest.approx(exact, rel=1e-3)
    assert ended.losses[0] != exact


def test_nearest_bfloat16_loses_what_the_others_keep(digits):
    pytest.importorskip("ml_dtypes")
    single, *half = demo.storages("bfloat16")
    yardstick = train(fs.Momentum(lr=0.02), digits, 10, dtype=single.dtype).losses[-1]
    for storage in half:
        loss = train(fs.Momentum(lr=0.02, **storage.options), digits, 10, dtype=storage.dtype).losses[-1]
        assert loss > 1.2 * yardstick if storage.name == "nearest" else loss == pytest.approx(yardstick, rel=0.02)


def test_main(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # rich cuts names in a narrow terminal
    output = tmp_path / "curves.png"
    assert demo.main(["--epochs", "1", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    assert "NO" not in printed
    assert output.read_bytes().startswith(b"\x89PNG")
    assert output.stat().st_size > 10_000


@pytest.mark.sampled(2)
def test_main_in_half_precision(tmp_path, capsys, few, half):
    output = tmp_path / "curves.png"
    assert demo.main(["--dtype", half, "--epochs", "1", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert max(map(len, printed.splitlines())) <= 100
    assert ["params", "float32", *[half] * 5] in lines
    assert ["rounding", "nearest", "nearest", "stochastic", "stochastic", "master"] in lines
    assert ["states", "float32", "float32", half, "float32", half, "float32"] in lines
    for name in ("SGD", "Adam"):
        (row,) = (line for line in lines if line[:1] == [name])
        assert row[-1] == "yes"
        losses, accuracies = np.array(row[1:-1], float).reshape(6, 2).T
        assert losses == pytest.approx(losses[0], rel=0.1)  # after one epoch, rounding has changed little
        assert (accuracies > 50).all()
    assert f"master_weights={demo._master(half)!r}" in printed
    assert output.read_bytes().startswith(b"\x89PNG")
    assert output.stat().st_size > 10_000


def test_the_table_fits_80_columns(few):
    kept = demo.storages("float16")
    console = Console(width=80, file=io.StringIO())
    console.print(demo._table_of_storages(demo._train_all(1, kept), kept, 80))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["rounding", "nearest", "nearest", "stochastic", "stochastic", "master"] in lines
    assert ["optimizer", *["loss"] * 6, "bits"] in lines
    assert ["test"] * 6 in lines


def test_other_bits_are_exit_code_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "classes", lambda: [fs.SGD])
    monkeypatch.setattr(fs.reference.SGD, "elem", lambda self, k, g: k.lr * g * np.float32(1.000001))
    assert demo.main(["--epochs", "1", "--output", str(tmp_path / "curves.png")]) == 1
    assert "NO" in capsys.readouterr().out


@pytest.mark.parametrize("option", [{"rounding": "stochastic"}, {"master_weights": True}])
def test_other_bits_in_one_column_are_exit_code_1(tmp_path, capsys, monkeypatch, option):
    def elem(self, k, g):
        differs = all(getattr(self, name) == value for name, value in option.items())
        return k.lr * g * np.float32(1.01 if differs else 1)

    monkeypatch.setattr(demo, "classes", lambda: [fs.SGD])
    monkeypatch.setattr(fs.reference.SGD, "elem", elem)
    assert demo.main(["--dtype", "float16", "--epochs", "1", "--output", str(tmp_path / "curves.png")]) == 1
    assert "NO" in capsys.readouterr().out


@pytest.mark.parametrize(("module", "package"), [("sklearn", "scikit-learn"), ("rich", "rich")])
def test_missing_package(tmp_path, capsys, monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    assert demo.main(["--output", str(tmp_path / "curves.png")]) == 2
    assert f'{package}: python -m pip install "fusedstep[demo]"' in capsys.readouterr().err


def test_missing_ml_dtypes(tmp_path, capsys, monkeypatch, few):
    output = ["--output", str(tmp_path / "curves.png")]
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert demo.main(["--dtype", "bfloat16", *output]) == 2
    assert capsys.readouterr().err == 'demo needs ml_dtypes: python -m pip install "fusedstep[bf16]"\n'
    assert demo.main(["--dtype", "float16", "--epochs", "1", *output]) == 0  # NumPy itself has float16
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert demo.main(["--dtype", "bfloat16", *output]) == 2
    needed = 'demo needs rich, matplotlib, ml_dtypes: python -m pip install "fusedstep[demo,bf16]"\n'
    assert capsys.readouterr().err == needed


@pytest.mark.parametrize("dtype", ["float64", "float8", ""])
def test_other_dtypes_are_refused(capsys, dtype):
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--dtype", dtype])
    message = capsys.readouterr().err
    assert f"invalid choice: {dtype!r}" in message
    assert all(known in message for known in ["float32", *HALF])


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
    assert all(f"  {command} " in result.stdout for command in ("info", "verify", "bench", "demo", "plot"))


def test_unknown_command():
    result = run("dmeo")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "command is 'dmeo', expected one of info, verify, bench, demo, plot, run\n"


def test_command_gets_its_arguments():
    result = run("demo", "--quadratic")
    assert result.returncode == 0
    assert repr(demo.quadratic()["SGD"]) in result.stdout


def test_ranks_end_with_the_same_bits(capsys, monkeypatch):
    monkeypatch.setattr(ranks, "find_spec", lambda name: None)  # threads, also where there is MPI
    assert demo.main(["--ranks", "3", "--epochs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    assert len({line.rpartition(" ")[2] for line in lines[1:4]}) == 1
    assert lines[4] == "The bits are the same."
