"""A class that is made of a function is a class of optimizers like the others."""

import copy
import inspect
import pickle

import numpy as np
import pytest

import fusedstep as fs


@fs.rule(states="m s", weight_decay=0.01)
def adabelief(g, m, s, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-16):
    """AdaBelief (Zhuang et al. 2020)."""
    m = beta1 * m + (1 - beta1) * g
    d = g - m
    s = beta2 * s + (1 - beta2) * (d * d) + eps
    step = lr * fs.sqrt(1 - beta2**t) / (1 - beta1**t)
    return step * m / (fs.sqrt(s) + eps), m, s


@fs.rule(states={"a": 0.5}, memory={"k": 1.0})
def counted(p, g, a, *, t, k, rate=0.1):
    a = a + np.abs(g)
    return rate * k * g / a + 0.0 * p, a, 0.5 * k + t


def params_and_grads():
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((3, 4)), "layers": [rng.standard_normal(5), rng.standard_normal(2)]}
    grads = {"w": rng.standard_normal((4, 3)).T, "layers": [rng.standard_normal(5), None]}
    return params, grads


def test_what_the_class_says_of_itself():
    assert adabelief.__doc__ == "AdaBelief (Zhuang et al. 2020)."
    assert list(inspect.signature(adabelief).parameters)[:4] == ["lr", "beta1", "beta2", "eps"]
    assert repr(adabelief(lr=0.5)) == "adabelief(lr=0.5, beta1=0.9, beta2=0.999, eps=1e-16)"
    assert isinstance(adabelief(), fs.Optimizer)
    assert adabelief().weight_decay == 0.01
    with pytest.raises(TypeError, match=r"^learning_rate is no hyperparameter of adabelief, expected lr"):
        adabelief(learning_rate=0.1)
    with pytest.raises(ValueError, match=r"^beta1 is 1.0, expected 0 <= beta1 < 1"):
        adabelief(beta1=1.0)
    assert adabelief.program.show().splitlines()[-1] == "13 operations on each element, 2 of them divisions or roots"


def test_everything_around_it():
    params, grads = params_and_grads()
    twins, options = copy.deepcopy(params), {"clip_global_norm": 1.0, "ema": 0.9, "zero_grad": False}
    schedule = fs.schedules.cosine(0.1, 10)
    own = {"w": {"lr": 0.5}, fs.where(lambda key, p: p.ndim < 2): {"weight_decay": 0.0}}
    opt, twin = (
        adabelief(lr=schedule, overrides=own, **options),
        fs.AdaBelief(lr=schedule, weight_decay=0.01, overrides=own, **options),
    )
    for _ in range(4):
        result = opt.step(params, grads)
        assert result.grad_norm == twin.step(twins, grads).grad_norm
    assert dict(opt.t) == {"w": 4, "layers/0": 4, "layers/1": 0}
    for key in ("w", "layers/0"):
        np.testing.assert_allclose(opt.state[key]["s"], twin.state[key]["s"], rtol=1e-12)
        assert opt.ema[key].shape == opt.state[key]["m"].shape
    np.testing.assert_allclose(params["w"], twins["w"], rtol=1e-9)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
@pytest.mark.parametrize("cls", [adabelief, counted])
def test_copies_go_on(cls, copied):
    p = np.ones(7)
    opt = cls()
    opt.step(p, np.cos(p))
    other, q = copied(opt), p.copy()
    for _ in range(3):
        opt.step(p, np.cos(p))
        other.step(q, np.cos(q))
    assert (p == q).all()


def test_state_dicts_and_files(tmp_path):
    p = np.ones(7)
    opt = counted()
    for _ in range(3):
        opt.step(p, np.cos(p))
    fs.save(tmp_path / "run.npz", opt, p)
    again, q = counted(), np.zeros(7)
    fs.load(tmp_path / "run.npz", again, q)
    other = counted()
    other.load_state_dict(opt.state_dict())
    r = p.copy()
    for each, x in ((opt, p), (again, q), (other, r)):
        each.step(x, np.cos(p * 0 + 1))
    assert (p == q).all()
    assert (p == r).all()
    assert opt.state_dict()["memory"] == again.state_dict()["memory"]


def test_what_another_program_saved_is_refused(tmp_path):
    def define(factor):
        @fs.rule(states="m")
        def mine(g, m, *, lr=0.1, halved=False):
            m = m + (factor * g if halved else g)
            return lr * m, m

        return mine

    p = np.ones(3)
    for options in ({}, {"halved": True}):
        opt = define(0.5)(**options)
        opt.step(p, np.ones(3))
        fs.save(tmp_path / "run.npz", opt, p)
        fs.load(tmp_path / "run.npz", define(0.5)(), p)  # also where the choices differ, which come from the file
    other = define(0.25)()
    with pytest.raises(
        ValueError, match=r"^optimizer is 'mine:\w+', expected 'mine:\w+': the function of the rule comp"
    ):
        fs.load(tmp_path / "run.npz", other, p)
    with pytest.raises(
        ValueError, match=r"^optimizer is 'mine:\w+', expected 'mine:\w+': the function of the rule comp"
    ):
        other.load_state_dict(opt.state_dict())
    assert dict(other.t) == {}
    other.load_state_dict({"state": opt.state_dict()["state"], "t": {0: 1}})
    assert dict(other.t) == {0: 1}


def test_states_begin_where_they_are_told():
    p = np.ones(2)
    opt = counted(rate=0.0)
    opt.step(p, np.array([1.0, 2.0]))
    assert opt.state[0]["a"].tolist() == [1.5, 2.5]
    assert opt.state_dict()["memory"][0] == {"k": 1.5}
    opt.step(p, np.zeros(2))
    assert opt.state_dict()["memory"][0] == {"k": 2.75}


def test_a_function_for_callers_who_own_all_state():
    p, q = np.ones(5, np.float32), np.ones(5, np.float32)
    m, s = np.zeros_like(p), np.zeros_like(p)
    opt = adabelief()
    for t in range(1, 4):
        g = np.cos(p)
        assert adabelief.functional(p, g, m, s, t=t, lr=1e-3) is None  # decays by 0.01 too, like the class
        opt.step(q, g)
    assert (p == q).all()
    assert (m == opt.state[0]["m"]).all()
    assert (s == opt.state[0]["s"]).all()
    a = np.full(5, 0.5, np.float32)
    assert counted.functional(p, np.cos(p), a, t=1, k=7.0, rate=0.1) == 1.5
    with pytest.raises(TypeError, match=r"missing 1 required keyword-only argument: 'lr'"):
        adabelief.functional(p, g, m, s, t=1)


def test_without_a_learning_rate():
    """Decoupled decay is that of a rate of 1 where a rule has none."""

    @fs.rule()
    def still(g):
        return 0.0 * g

    p = np.ones(3)
    still(weight_decay=0.25, decoupled=True).step(p, np.ones(3))
    assert p.tolist() == [0.75] * 3
    q = np.ones(3)
    still.reference(weight_decay=0.25, decoupled=True).step([q], [np.ones(3)])
    assert q.tolist() == [0.75] * 3


def test_a_hyperparameter_without_a_default():
    @fs.rule()
    def scaled(g, *, factor, lr=0.5):
        return lr * factor * g

    with pytest.raises(TypeError, match="factor"):
        scaled()
    p = np.zeros(2)
    scaled(3.0).step(p, np.ones(2))
    assert p.tolist() == [-1.5, -1.5]


def test_equal_programs_are_one_rule_and_others_are_not():
    def define(factor):
        @fs.rule()
        def mine(g, *, lr=0.1):
            return factor * lr * g

        return mine

    assert define(2.0).rule == define(2.0).rule
    assert define(2.0).rule != define(3.0).rule
    assert define(0.0).rule != define(-0.0).rule
