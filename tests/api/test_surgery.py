"""Parameters that begin anew, leave, lose rows or get more of them, while all others train on."""

import copy

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import reference
from fusedstep.tools import verify
from tests.api.runs import snapshot

F32 = np.float32


def same(a, b):
    a, b = (np.ascontiguousarray(x).view(x.real.dtype if x.dtype.kind == "c" else x.dtype) for x in (a, b))
    return verify.difference([a], [b]) == 0


def agree(opt, ref, params, expected):
    """Assert that parameters and all that optimizer and reference know of them are equal, bit for bit."""
    for key, p in params.items():
        assert same(p, expected[key]), key
        assert opt.t.get(key, 0) == ref.t.get(key, 0)
        for name, array in ref.state.get(key, {}).items():
            assert same(opt.state[key][name], array), (key, name)
        assert (key in opt.ema) == (key in ref.ema)
        if key in ref.ema:
            assert same(opt.ema[key], ref.ema[key]), key


def both(cls, **options):
    return getattr(fs, cls)(**options), getattr(reference, cls)(**options)


def begun(opt, steps=2, **params):
    """Return parameters after some steps with an optimizer."""
    params = params or {"a": np.linspace(-1, 1, 12, dtype=F32).reshape(4, 3), "b": np.ones(2, F32)}
    for k in range(steps):
        opt.step(params, {key: (p * 0.5 + (k + 1)).astype(p.dtype) for key, p in params.items()})
    return params


# A cloud of points that is densified and pruned, as in Gaussian splatting.


def cloud(n, rng):
    shapes = {"positions": (n, 3), "scales": (n, 3), "colors": (n, 4, 3)}
    return {key: rng.standard_normal(shape).astype(F32) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        ("Adam", {"overrides": {"colors": {"lr": 0.02}}}),
        ("Adagrad", {"initial_accumulator": 0.1, "overrides": {"scales": {"initial_accumulator": 0.5}}}),
        ("Nadam", {"ema": 0.9}),
    ],
)
def test_a_cloud_of_points_that_grows_and_is_pruned(cls, options):
    rng = np.random.default_rng(0)
    opt, ref = both(cls, lr=0.01, **options)
    params = cloud(50, rng)
    expected = copy.deepcopy(params)
    target = {key: rng.standard_normal(p.shape[1:]).astype(F32) for key, p in params.items()}
    for k in range(200):
        if k % 40 == 25:  # densify: points split
            parents = rng.integers(0, len(params["positions"]), 12)
            for key, p in params.items():
                new = p[parents] * F32(0.9)
                params[key] = np.concatenate([p, new])
                opt.grow(key, len(new), average=new if "ema" in options else None)
                expected[key] = np.concatenate([expected[key], new])
                for name, state in ref.state[key].items():
                    start = 0
                    if cls == "Adagrad":
                        start = 0.5 if key == "scales" else 0.1
                    rows = np.full((len(new), *state.shape[1:]), start, F32)
                    ref.state[key][name] = np.concatenate([state, rows])
                if "ema" in options:
                    ref.ema[key] = np.concatenate([ref.ema[key], new])
        if k % 40 == 35:  # prune: what has become small goes
            keep = rng.random(len(params["positions"])) > 0.2
            for key in params:
                params[key], expected[key] = params[key][keep], expected[key][keep]
                opt.take(key, keep)
                ref.state[key] = {name: state[keep] for name, state in ref.state[key].items()}
                if "ema" in options:
                    ref.ema[key] = ref.ema[key][keep]
        grads = {key: p - target[key] for key, p in params.items()}
        opt.step(params, grads)
        ref.step(expected, {key: p - target[key] for key, p in expected.items()})
    assert len(params["positions"]) != 50
    agree(opt, ref, params, expected)
    assert dict(opt.t) == dict.fromkeys(params, 200)


# Rows.


@pytest.mark.parametrize(
    "index",
    [
        [2, 0, 0],
        np.array([3, -1], np.int8),
        [],
        np.array([True, False, True, True]),
        [False, True, False, True],
        slice(None, None, -1),
        slice(1, 3),
        range(3),
        (1, 2),
    ],
    ids=str,
)
def test_rows_are_taken_as_by_indexing(index):
    opt, ref = both("Adam", ema=0.5)
    params = begun(opt)
    expected = begun(ref)
    rows = list(index) if isinstance(index, tuple) else index
    if isinstance(index, list) and not index:
        rows = slice(0)
    opt.take("a", index)
    params["a"] = params["a"][rows]
    expected["a"] = expected["a"][rows]
    ref.state["a"] = {name: state[rows] for name, state in ref.state["a"].items()}
    ref.ema["a"] = ref.ema["a"][rows]
    agree(opt, ref, params, expected)
    params["a"], expected["a"] = (np.ascontiguousarray(p["a"]) for p in (params, expected))
    begun(opt, **params)
    begun(ref, **expected)
    agree(opt, ref, params, expected)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("axes", [(2, 0, 1), (1, 2, 0), (0, 2, 1)])
def test_rows_of_any_dtype_in_any_order(dtype, axes):
    """States go on to lie in memory like their parameter."""
    options = {"initial_accumulator": 0.1, "master_weights": dtype == ml_dtypes.bfloat16}
    opt, ref = both("Adagrad", **options)
    rng = np.random.default_rng(0)

    def ordered(array):
        return array.transpose(axes).copy().transpose(np.argsort(axes))

    start = rng.standard_normal((5, 3, 4)).astype(dtype) * dtype(1 + 1j if np.dtype(dtype).kind == "c" else 1)
    p, q = begun(opt, a=ordered(start))["a"], begun(ref, a=ordered(start))["a"]
    rows = [4, 1, 1, 0]
    opt.take("a", rows)
    opt.grow("a", 2)
    assert opt.state["a"]["a"].shape == (6, 3, 4)
    for state in opt.state["a"].values():
        assert state.strides == ordered(np.zeros((6, 3, 4), state.dtype)).strides
    p, q = (ordered(np.concatenate([x[rows], np.ones((2, 3, 4), dtype)])) for x in (p, q))
    for name, state in ref.state["a"].items():
        begin = 0 if name == "master" else 0.1
        new = np.full((2, 3, 4), complex(begin, begin) if state.dtype.kind == "c" else begin, state.dtype)
        ref.state["a"][name] = ordered(np.concatenate([state[rows], new]))
    begun(opt, a=p)
    begun(ref, a=q)
    agree(opt, ref, {"a": p}, {"a": q})


def test_a_split_master_goes_on():
    opt, ref = both("SGD", master_weights="split", lr=0.01)
    start = np.linspace(1, 2, 6).astype(ml_dtypes.bfloat16)
    p, q = begun(opt, a=start.copy())["a"], begun(ref, a=start.copy())["a"]
    opt.grow("a", 1)
    opt.take("a", [6, 3, 2])
    p, q = (np.array([1.5, x[3], x[2]], x.dtype) for x in (p, q))
    ref.state["a"]["remainder"] = np.array([0, *ref.state["a"]["remainder"][[3, 2]]], np.uint16)
    agree(opt, ref, {"a": begun(opt, a=p)["a"]}, {"a": begun(ref, a=q)["a"]})


def test_an_accumulator_of_a_parameter_that_has_not_been_stepped_lately():
    opt = fs.Adagrad(initial_accumulator=0.1, overrides={"b": {"initial_accumulator": 0.5}})
    params = begun(opt)
    opt.step({"a": params["a"]}, {"a": params["a"].copy()})
    opt.grow("b", 1)
    assert opt.state["b"]["a"][-1] == F32(0.5)
    opt.initial_accumulator = lambda done: 0.25 * done
    opt.grow("a", 1)
    assert (opt.state["a"]["a"][-1] == F32(0.75)).all()


def test_a_rule_without_states_has_no_rows():
    opt = fs.SGD()
    params = begun(opt)
    opt.take("a", [0])
    opt.grow("a", 7)
    begun(opt, a=params["a"][:1].copy())
    assert opt.t["a"] == 4


def test_the_average_of_new_rows():
    opt = fs.Adam(ema=0.5)
    begun(opt)
    before = opt.ema["a"].copy()
    opt.grow("a", 2, average=7)
    assert (opt.ema["a"] == np.concatenate([before, np.full((2, 3), 7, F32)])).all()
    opt.ema = None
    opt.grow("a", 1, average=np.arange(3))  # an average that is switched off may be switched on again
    assert (opt.ema["a"][-1] == [0, 1, 2]).all()


# Parameters that begin anew or leave.


@pytest.mark.parametrize("cls", ["Nadam", "Adagrad", "RAdam"])
@pytest.mark.parametrize("options", [{}, {"ema": 0.5, "lr": lambda done: 0.1 / (done + 1)}])
def test_a_parameter_begins_anew(cls, options):
    opt, ref = both(cls, **options)
    params, expected = begun(opt), begun(ref)
    opt.reset("a")
    assert dict(opt.t) == {"a": 0, "b": 2}
    assert "a" not in opt.state
    assert "a" not in opt.ema
    for known in (ref.state, ref.t, ref.ema, ref.memory):
        known.pop("a", None)
    begun(opt, **params)
    begun(ref, **expected)
    agree(opt, ref, params, expected)
    opt.reset("a")
    begun(opt, a=np.ones(5))  # of another shape and dtype
    assert opt.t["a"] == 2


def test_a_parameter_leaves(tmp_path):
    opt, ref = both("Nadam", ema=0.5)
    params, expected = begun(opt), begun(ref)
    params["c"], expected["c"] = np.ones(3), np.ones(3)
    begun(opt, **params)
    begun(ref, **expected)
    del params["a"], params["b"], expected["a"], expected["b"]
    opt.forget(*(opt.state.keys() - params.keys()))
    assert dict(opt.t) == {"c": 2}
    assert list(opt.state) == list(opt.ema) == ["c"]
    fs.save(tmp_path / "x.npz", opt, params)
    params["d"], expected["d"] = np.ones(3), np.ones(3)
    params["a"], expected["a"] = np.ones(1), np.ones(1)
    for known in (ref.state, ref.t, ref.ema, ref.memory):
        known.pop("a", None)
    begun(opt, **params)
    begun(ref, **expected)
    agree(opt, ref, params, expected)
    opt.forget()
    opt.forget(*opt.t)
    assert not opt.t
    assert not opt.state


def test_memory_and_counts_of_the_others_stay():
    """A clock of a parameter is found by its place among all, which changes when another one leaves."""
    opt, other = fs.Nadam(), fs.Nadam()
    params, alone = begun(opt, a=np.ones(2), b=np.ones(2), c=np.ones(2)), begun(other, c=np.ones(2))
    opt.forget("b")
    for k in range(3):
        opt.step({"c": params["c"], "a": params["a"]}, {"c": np.full(2, float(k)), "a": None})
        other.step(alone, {"c": np.full(2, float(k))})
    assert same(params["c"], alone["c"])
    assert dict(opt.t) == {"a": 2, "c": 5}


def test_what_was_loaded_may_be_operated_on(tmp_path):
    opt, other = fs.Adam(), fs.Adam()
    params = begun(opt)
    fs.save(tmp_path / "x.npz", opt, params)
    for load in (lambda: fs.load(tmp_path / "x.npz", other), lambda: other.load_state_dict(opt.state_dict())):
        load()
        other.take("a", [1, 2])
        with pytest.raises(ValueError, match="expected some of 'a', 'b', whose states were loaded"):
            begun(other, x=np.ones(2))
        other.forget("a", "b")
        begun(other, x=np.ones(2))
        assert dict(other.t) == {"x": 2}
        other.forget("x")


# What is refused changes nothing.


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (KeyError, lambda opt: opt.reset("x"), "this optimizer knows no parameter 'x', expected keys among 'a', 'b'"),
        (KeyError, lambda opt: opt.forget("a", "x", "y"), "knows no parameter 'x', 'y', expected"),
        (KeyError, lambda opt: opt.take("x", [0]), "this optimizer knows no parameter 'x'"),
        (KeyError, lambda opt: opt.grow("x", 1), "knows no parameter 'x'"),
        (IndexError, lambda opt: opt.take("a", [0, 4]), r"index has 4, expected rows from -4 to 3 like params\['a'\]"),
        (IndexError, lambda opt: opt.take("a", [0, -5]), "index has -5, expected rows from -4 to 3"),
        (
            IndexError,
            lambda opt: opt.take("a", [True]),
            r"index has 1 bools, expected 4, one for each row of",
        ),
        (TypeError, lambda opt: opt.take("a", np.zeros(4)), "index is of dtype float64, expected integers, bools or"),
        (TypeError, lambda opt: opt.take("a", 2), "index is of type int, expected an array"),
        (TypeError, lambda opt: opt.take("a", slice(0.5)), r"index is slice\(None, 0.5, None\), expected"),
        (ValueError, lambda opt: opt.take("a", [[0]]), r"index has shape \(1, 1\), expected one dimension"),
        (ValueError, lambda opt: opt.grow("a", -1, average=0), "n is -1, expected an integer >= 0"),
        (TypeError, lambda opt: opt.grow("a", 1.0, average=0), "n is 1.0, expected an integer >= 0"),
        (
            ValueError,
            lambda opt: opt.grow("a", 1),
            "average is None, expected what the average of the new",
        ),
        (
            ValueError,
            lambda opt: opt.grow("a", 2, np.ones((3, 3))),
            r"average has shape \(3, 3\), expected \(2, 3\), or",
        ),
        (TypeError, lambda opt: opt.grow("a", 1, 1j), "average is complex128, expected numbers that float32 can hold"),
    ],
)
def test_what_is_refused(error, call, message):
    opt = fs.Adam(ema=0.5)
    params = begun(opt)
    before = snapshot(opt, params)
    with pytest.raises(error, match=message):
        call(opt)
    assert snapshot(opt, params) == before


def test_a_number_has_no_rows():
    opt = fs.Adam()
    begun(opt, a=np.ones(()))
    for call in (lambda: opt.take("a", [0]), lambda: opt.grow("a", 1)):
        with pytest.raises(ValueError, match=r"params\['a'\] had no dimensions, expected rows"):
            call()
    begun(opt, b=np.ones(2))
    with pytest.raises(ValueError, match=r"average is given, expected None: params\['b'\] has no average"):
        opt.grow("b", 1, average=0)


def test_nothing_is_changed_during_a_step():
    opt, seen = fs.Adam(), []

    def inside(done):
        for method, *arguments in ((opt.reset,), (opt.forget,), (opt.take, [0]), (opt.grow, 1)):
            with pytest.raises(RuntimeError, match="already in a step"):
                method("a", *arguments)
        seen.append(done)
        return 0.1

    params = begun(opt)
    opt.lr = inside
    begun(opt, **params)
    assert len(seen) >= 2


def test_arrays_that_were_seen_before_are_looked_at_again():
    """A plan that knows the old states must not recognise the parameter of a later step."""
    opt, ref = both("Adam")
    params, expected = begun(opt), begun(ref)
    begun(opt, b=params["b"])  # by another plan
    begun(ref, b=expected["b"])
    opt.take("a", [0, 1, 2, 3])
    ref.state["a"] = {name: state.copy() for name, state in ref.state["a"].items()}
    opt.state["a"]["m"][...] = ref.state["a"]["m"][...] = 3
    begun(opt, **params)
    begun(ref, **expected)
    agree(opt, ref, params, expected)


def test_a_count_without_states_is_refused():
    """A file with a count but no states could not be loaded again."""
    opt = fs.Adam()
    opt.step({"a": np.ones(2), "b": np.ones(2)}, {"a": np.ones(2)})
    with pytest.raises(ValueError, match=r"^t\['b'\] is 5, expected 0: the parameter has no states yet"):
        opt.t["b"] = 5
    opt.t["b"] = 0
    opt.t["a"] = 7
    assert dict(opt.t) == {"a": 7, "b": 0}
