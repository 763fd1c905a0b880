"""`demo --asynchronous`: workers train, and the log of their run makes it again."""

import pytest

from fusedstep.tools import asynchronous, demo, digits


@pytest.mark.parametrize(("words", "bound"), [([], "no bound on staleness"), (["--staleness", "0"], "staleness 0")])
def test_a_run_is_told_and_repeated(capsys, words, bound):
    assert demo.main(["--asynchronous", "3", "--epochs", "1", *words]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == f"AdamW, 1 epochs, 3 workers of 14 steps each, {bound}; workers are threads"
    ends = [line.split(", ")[1] for line in lines[:5]]
    assert ends == ["14% done", "36% done", "57% done", "79% done", "all done"]
    assert lines[5].startswith("Between pull and push others had made ")
    run, again = (line.partition("...")[0].split()[-1] for line in lines[6:8])
    assert run == again
    assert len(run) == 32
    assert lines[8:] == ["The bits are the same."]


def test_a_replay_with_other_gradients_is_told(capsys, monkeypatch):
    calls = []

    def gradients(*arguments):
        calls.append(None)
        return {key: g + len(calls) for key, g in digits.gradients(*arguments).items()}

    monkeypatch.setattr(asynchronous, "gradients", gradients)
    assert demo.main(["--asynchronous", "2", "--epochs", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4].startswith("shard 0 ends with other bits than in the run")
    assert lines[-1] == "The bits DIFFER."


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--asynchronous", "0"], "--asynchronous is 0, expected 1 to 64"),
        (["--asynchronous", "65"], "--asynchronous is 65, expected 1 to 64"),
        (["--asynchronous", "2", "--staleness", "-1"], "--staleness is -1, expected at least 0"),
        (["--asynchronous", "2", "--ranks", "2"], "--ranks and --asynchronous are both given, expected one of them"),
        (["--staleness", "2"], "--staleness is given without --asynchronous, expected both"),
    ],
)
def test_arguments(capsys, words, error):
    with pytest.raises(SystemExit) as code:
        demo.main(words)
    assert code.value.code == 2
    assert error in capsys.readouterr().err
