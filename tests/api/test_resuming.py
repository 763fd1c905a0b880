"""Resuming under other circumstances than those of the save: what differs is told, and the caller decides."""

import copy
import warnings

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import schedules
from tests.api.runs import rich_adam, snapshot, trained


@pytest.fixture(params=["file", "state dict"])
def resume(request, tmp_path):
    """Return a function that loads into an optimizer what another one knows, and the word for what was saved."""

    def load(saved, opt, **options):
        if request.param == "file":
            fs.save(tmp_path / "x.npz", saved)
            fs.load(tmp_path / "x.npz", opt, **options)
        else:
            opt.load_state_dict(saved.state_dict(), **options)

    return load, "file" if request.param == "file" else "saved"


# Hyperparameters.


def test_replaced_hyperparameters_are_told(resume):
    load, word = resume
    saved, _ = trained(lambda: fs.Adam(0.25))
    opt = fs.Adam(schedules.cosine(0.5, 9), clip_norm=1.0, beta1=0.5, overrides={"w": {"lr": 3}})
    with pytest.warns(UserWarning, match="replace") as caught:
        load(saved, opt)
    assert [str(each.message) for each in caught] == [
        "hyperparameters that were saved replace those of this Adam: clip_norm 1.0 by None, overrides {'w': {'lr': "
        "3.0}} by {}, lr cosine(lr=0.5, steps=9, alpha=0.0, after='hold') by 0.25, beta1 0.5 by 0.9; say "
        f"hyperparameters='{word}' to agree, or 'mine' to keep those of this optimizer"
    ]
    assert caught[0].filename == __file__
    assert snapshot(opt) == snapshot(saved)


def test_a_warning_that_is_an_error_changes_nothing(resume):
    load, _ = resume
    saved, _ = trained(lambda: fs.Adam(0.25))
    opt = fs.Adam(0.5)
    before = snapshot(opt)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"lr 0\.5 by 0\.25;"):
            load(saved, opt)
    assert snapshot(opt) == before


def test_nothing_is_told_where_nothing_was_asked_for(resume):
    load, word = resume
    saved, _ = trained()
    for opt in (fs.Adam(), rich_adam()):
        load(saved, opt)
        assert snapshot(opt) == snapshot(saved)
    opt = fs.Adam(0.5)
    load(saved, opt, hyperparameters=word)
    assert snapshot(opt) == snapshot(saved)


def test_the_hyperparameters_of_the_optimizer_may_stay(resume):
    load, _ = resume
    plateau = schedules.plateau(1.0, 0.5, patience=0)
    saved, _ = trained(lambda: fs.Adam(plateau, beta1=lambda done: 0.5, ema=0.9, overrides={"w": {"lr": 1}}))
    for x in (1, 2):
        plateau.observe(x)
    mine = schedules.plateau(1.0, 0.5, patience=0)
    opt = fs.Adam(mine, clip_norm=1.0, eps=0.25)
    load(saved, opt, hyperparameters="mine")
    assert (opt.lr is mine, opt.clip_norm, opt.eps, opt.beta1, opt.ema.decay) == (True, 1.0, 0.25, 0.9, None)
    assert not opt.overrides
    assert mine.rate == plateau.rate < 1.0  # what a plateau has seen is progress, which goes on
    one, other = (copy.deepcopy(each.state_dict()) for each in (opt, saved))
    assert all((one["state"][k][n] == a).all() for k, some in other["state"].items() for n, a in some.items())
    assert one["t"] == other["t"]
    with pytest.raises(ValueError, match=r"state\['w'\] lacks w, expected m, v, w"):
        load(saved, fs.Adam(amsgrad=True), hyperparameters="mine")


def test_another_word_is_refused(resume):
    load, word = resume
    for wrong in ("theirs", True, 3, "saved" if word == "file" else "file"):
        with pytest.raises(ValueError, match=f"hyperparameters is {wrong!r}, expected '{word}' or 'mine'"):
            load(fs.Adam(), fs.Adam(), hyperparameters=wrong)


# Keys.


def test_states_that_no_step_would_use_are_an_error(resume):
    load, _ = resume
    params = [np.ones(2), np.ones(3)]
    saved = fs.Adam()
    saved.step(params, copy.deepcopy(params))
    named = dict(zip("wb", params, strict=True))
    opt = fs.Adam()
    load(saved, opt)
    before = snapshot(opt, named)
    message = (
        "^params has the keys 'w', 'b', expected some of 0, 1, whose states were loaded: rename them by keys= of load "
        "or load_state_dict, or make a new optimizer$"
    )
    for each in (opt, copy.deepcopy(opt)):
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                each.step(named, copy.deepcopy(named))
            assert snapshot(each, named) == before
    opt.step(params[:1], copy.deepcopy(params[:1]))
    opt.step(named, copy.deepcopy(named))  # the states have been used, so others may come
    assert dict(opt.t) == {0: 2, 1: 1, "w": 1, "b": 1}


def test_a_step_that_is_skipped_uses_what_was_loaded(resume):
    load, _ = resume
    saved, params = fs.Adam(skip_nonfinite=True), {"a": np.ones(2)}
    saved.step(params, {"a": np.ones(2)})
    opt = fs.Adam(skip_nonfinite=True)
    load(saved, opt)
    assert opt.step(params | {"b": np.ones(2)}, {"a": np.full(2, np.inf), "b": np.ones(2)}).skipped
    opt.step({"c": np.ones(2)}, {"c": np.ones(2)})
    assert dict(opt.t) == {"a": 1, "c": 1}


def test_a_state_without_updates_asks_for_no_use(resume):
    load, _ = resume
    saved = fs.Adam(skip_nonfinite=True)
    saved.step([np.ones(2)], [None])
    opt = fs.Adam()
    load(saved, opt)
    opt.step({"w": np.ones(2)}, {"w": np.ones(2)})


@pytest.mark.parametrize("keys", [{0: "w", 1: "b"}, lambda key: "wb"[key]], ids=["mapping", "function"])
def test_keys_are_renamed(resume, keys):
    load, _ = resume
    params = [np.ones(2), np.ones(3)]
    saved = fs.Nadam(ema=0.5, overrides={0: {"lr": 0.5}, 1: {"eps": 0.1}})
    expected = fs.Nadam(ema=0.5, overrides={"w": {"lr": 0.5}, "b": {"eps": 0.1}})
    named = copy.deepcopy(dict(zip("wb", params, strict=True)))
    saved.step(params, copy.deepcopy(params))
    expected.step(named, copy.deepcopy(named))
    opt = fs.Nadam()
    load(saved, opt, keys=keys)
    assert snapshot(opt) == snapshot(expected)


def test_keys_of_parameters_are_renamed_too(tmp_path):
    params, opt = {"a": np.ones(2), "b": np.full(2, 3.0)}, fs.Adam()
    opt.step(params, {"a": np.ones(2)})
    fs.save(tmp_path / "x.npz", opt, {**params, "c": np.full(2, 5.0)})
    loaded = {key: np.zeros(2) for key in ("a", 1, "c")}
    other = fs.Adam()
    fs.load(tmp_path / "x.npz", other, loaded, keys={"b": 1})
    assert [array[0] for array in loaded.values()] == [params["a"][0], 3, 5]
    assert dict(other.t) == {"a": 1, 1: 0}


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"x": 1}, ValueError, "keys has 'x', expected some of .*'w'.*, which were saved$"),
        (lambda key: 0, ValueError, "keys makes 0 of 'w' and of 'layer/b', expected different keys"),
        ({"w": "layer/b"}, ValueError, "keys makes 'layer/b' of 'w' and of 'layer/b', expected different keys"),
        ({"w": []}, TypeError, r"keys makes \[\] of 'w', expected something hashable"),
        (["w"], TypeError, "keys is of type list, expected a mapping or a function: old key -> new key"),
    ],
)
def test_wrong_keys_change_nothing(resume, keys, error, message):
    load, _ = resume
    saved, opt = trained()[0], fs.Adam()
    before = snapshot(opt)
    with pytest.raises(error, match=message):
        load(saved, opt, keys=keys)
    assert snapshot(opt) == before


def test_states_of_torch_are_renamed():
    theirs = {0: {"step": 3, "exp_avg": np.ones(2), "exp_avg_sq": np.ones(2)}}
    opt = fs.Adam()
    opt.load_state_dict({"state": theirs}, names="torch", keys={0: "w"})
    assert dict(opt.t) == {"w": 3}


# Less, or more, than what was saved.


def ones_like(params):
    return {key: np.ones_like(p) for key, p in params.items()}


@pytest.fixture
def body_and_head(path):
    params = {"body": np.full(2, 1.0), "head": np.full(3, 2.0)}
    opt = fs.Nadam(ema=0.5, overrides={"body": {"eps": 0.5}, "head": {"lr": 0.25}})
    opt.step(params, ones_like(params))
    opt.step(params, ones_like(params))
    fs.save(path, opt, params)
    return opt, params


def test_a_part_of_a_file_is_loaded(path, body_and_head):
    saved, values = body_and_head
    params = {"body": np.zeros(2), "other": np.full(4, 7.0)}
    opt = fs.Nadam()
    fs.load(path, opt, params, strict=False)
    assert params["body"].tolist() == values["body"].tolist()
    assert params["other"].tolist() == [7] * 4
    assert dict(opt.t) == {"body": 2}
    assert [list(some) for some in (opt.state, opt.ema, opt.overrides)] == [["body"]] * 3
    opt.step(params, ones_like(params))
    saved.step(values, ones_like(values))
    assert params["body"].tolist() == values["body"].tolist()
    assert dict(opt.t) == {"body": 3, "other": 1}


def test_what_a_partial_file_lacks_stays(path, body_and_head):
    saved, values = body_and_head
    params = {"other": np.full(4, 7.0), "head": np.zeros(3)}
    opt = fs.Nadam(ema=0.5, overrides={"head": {"lr": 0.25}})
    opt.step(params, ones_like(params))
    kept = {name: array.copy() for name, array in opt.state["other"].items()}
    average = opt.ema["other"].copy()
    for given in (params, None):
        fs.load(path, opt, given, strict=False, hyperparameters="mine")
        assert dict(opt.t) == {"other": 1, "head": 2}
        assert opt.state_dict()["memory"]["head"] == saved.state_dict()["memory"]["head"]
        assert all((opt.state["other"][name] == array).all() for name, array in kept.items())
        assert all((opt.state["head"][name] == array).all() for name, array in saved.state["head"].items())
        assert (opt.ema["other"] == average).all()
        assert (opt.ema["head"] == saved.ema["head"]).all()
    assert params["head"].tolist() == values["head"].tolist()


def test_an_optimizer_that_has_begun_takes_a_part_under_new_keys(path, body_and_head):
    saved, values = body_and_head
    params, opt = {"x": np.ones(2)}, fs.Nadam()
    opt.step(params, ones_like(params))
    fs.load(path, opt, {"body": (body := np.zeros(2))}, strict=False)
    assert dict(opt.t) == {"x": 1, "body": 2}
    assert (body == values["body"]).all()
    assert (opt.state["body"]["m"] == saved.state["body"]["m"]).all()


def test_a_partial_load_needs_something_that_fits(path, body_and_head):
    began = fs.Nadam()
    began.step({"x": np.ones(2)}, {"x": np.ones(2)})
    none = "^the file has the keys 'body', 'head', expected some of 'x'$"
    for opt, params, error, message in (
        (fs.Nadam(), {"x": np.ones(2)}, ValueError, none),
        (None, {"x": np.ones(2)}, ValueError, none),
        (began, None, ValueError, none),
        (
            fs.Nadam(),
            {"body": np.ones(3)},
            ValueError,
            r"params\['body'\] has shape \(3,\), expected \(2,\) like the file",
        ),
        (fs.Nadam(), {"body": np.ones(2, np.float32)}, TypeError, "expected float64 like the file"),
    ):
        before = None if opt is None else snapshot(opt, params)
        with pytest.raises(error, match=message):
            fs.load(path, opt, params, strict=False)
        assert opt is None or snapshot(opt, params) == before


def test_parameters_without_an_optimizer(path, body_and_head):
    _, values = body_and_head
    for _ in range(2):  # from a file that holds an optimizer, and from one that does not
        params = {key: np.zeros_like(p) for key, p in values.items()}
        fs.load(path, None, params)
        assert all((params[key] == p).all() for key, p in values.items())
        fs.load(path, None, {"x": (body := np.zeros(2))}, keys={"body": "x"}, strict=False)
        assert (body == values["body"]).all()
        fs.save(path, None, values, extra=3)
    assert fs.load(path, None) == 3
    with pytest.raises(ValueError, match="holds no optimizer, expected a file that was saved with one"):
        fs.load(path, fs.Nadam(), values)
    with pytest.raises(ValueError, match=r"^opt and params are None, expected something to save"):
        fs.save(path, None)
    with pytest.raises(ValueError, match="expected keys that differ as text"):
        fs.save(path, None, {"0": np.ones(1), 0: np.ones(1)})
    for call in (fs.save, fs.load):
        with pytest.raises(TypeError, match=r"^opt is of type dict, expected an optimizer or None"):
            call(path, values)


def test_parameters_that_have_left(path, body_and_head):
    opt, values = body_and_head
    data = path.read_bytes()
    message = (
        r"^params lacks 'head', expected all parameters .*: opt.forget\(key\) drops what it knows of one that has left$"
    )
    with pytest.raises(ValueError, match=message):
        fs.save(path, opt, {"body": values["body"]})
    assert path.read_bytes() == data


def test_parameters_that_are_none(path):
    """A step takes None in place of a parameter without a gradient, and a file holds what is there."""
    params, opt = {"a": None, "b": np.ones(2)}, fs.Adam()
    opt.step(params, {"b": np.ones(2)})
    fs.save(path, opt, params)
    again, loaded = fs.Adam(), {"a": None, "b": np.zeros(2)}
    fs.load(path, again, loaded)
    assert loaded["a"] is None
    assert (loaded["b"] == params["b"]).all()
    assert dict(again.t) == {"a": 0, "b": 1}
    with pytest.raises(ValueError, match=r"^params lacks 'b', expected all parameters of the optimizer: opt.forget"):
        fs.save(path, opt, {"a": None, "b": None})
