"""Averages of the parameters."""

import copy
import pickle
from collections import UserDict
from itertools import count

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import reference
from fusedstep.tools import verify
from tests.formulas.arrays import BOTH, F32, INF, MODULES, NAN, bits, copies, normal, same
from tests.interrupts import interrupted


@BOTH
@MODULES
def test_the_first_average_is_a_copy(module, dtype):
    p, g = np.array([-0.0, 0.0, NAN, INF, 3.0], dtype), np.array([0.0, -0.0, 1.0, 1.0, 1.0], dtype)
    optimizer = module.SGD(lr=1.0, ema=0.5)
    optimizer.step(p, g)
    assert same([optimizer.ema[0]], [p])
    assert np.signbit(p[0])
    optimizer.step(p, g)
    assert same([optimizer.ema[0][4:]], [np.array([1.5], dtype)])


def test_averages_off_and_on_again():
    p, g = normal(50), normal(50, seed=1)
    optimizer = fs.SGD(lr=0.1)
    optimizer.step(p, g)
    assert not optimizer.ema
    optimizer.ema = 0.75
    optimizer.step(p, g)
    e = p.copy()
    assert same([optimizer.ema[0]], [e])
    optimizer.ema = None
    optimizer.step(p, g)
    assert same([optimizer.ema[0]], [e])
    optimizer.ema = 0.25
    optimizer.step(p, g)
    assert same([optimizer.ema[0]], [F32(0.25) * e + F32(0.75) * p])
    again = pickle.loads(pickle.dumps(optimizer))
    q = p.copy()
    optimizer.step(p, g)
    again.step(q, g)
    assert same([p, optimizer.ema[0]], [q, again.ema[0]])


def test_averages_that_began_at_different_times():
    start = [normal(20, seed=i) for i in range(4)]
    params, alone = copies(start), copies(start)
    optimizer = fs.SGD(lr=0.5)
    for ema, present in ((None, (0, 2)), (0.75, (1, 3)), (0.75, range(4)), (0.75, range(4))):
        optimizer.ema = ema
        optimizer.step(params, [start[i] if i in present else None for i in range(4)])
    expected = []
    for i, p in enumerate(alone):
        p -= F32(0.5) * start[i]  # in the first step, or in the second, which is the first one with averages
        e = p.copy()
        for _ in range(2):
            p -= F32(0.5) * start[i]
            e = F32(0.75) * e + F32(0.25) * p
        expected.append(e)
    assert same(params, alone)
    assert same([optimizer.ema[i] for i in range(4)], expected)


def test_the_mapping_of_averages():
    p, g = np.ones(4, F32), np.ones(4, F32)
    optimizer = fs.SGD(lr=1.0, ema=0.5)
    assert dict(optimizer.ema) == {}
    assert optimizer.ema.decay == 0.5
    optimizer.step({"w": p}, {"w": g})
    with pytest.raises(TypeError):
        optimizer.ema["w"] = p
    with pytest.raises(TypeError):
        del optimizer.ema["w"]
    optimizer.ema["w"][:] = 8
    optimizer.step({"w": p}, {"w": g})
    assert (optimizer.ema["w"] == 0.5 * 8 - 0.5).all()
    assert list(optimizer.ema) == ["w"]
    for bad in (optimizer.ema["w"], optimizer.ema["w"][1:3]):
        with pytest.raises(ValueError, match=r"^ema\['w'\] overlaps params\['v'\]|^params\['v'\] overlaps ema\['w'\]"):
            optimizer.step({"w": p, "v": bad}, {"w": g, "v": np.ones(bad.size, F32)})
        with pytest.raises(ValueError, match=r"ema\['w'\]"):
            optimizer.step({"w": p}, {"w": optimizer.ema["w"]})
    optimizer.ema = lambda done: 0.25
    assert optimizer.ema.decay(3) == 0.25


def test_the_decay_of_the_averages_is_not_set_in_vain():
    optimizer = fs.SGD(ema=0.5)
    with pytest.raises(AttributeError):  # `optimizer.ema` can be set, its attribute cannot
        optimizer.ema.decay = 0.25


@MODULES
def test_averages_of_some_tensors(module):
    params, grads = {k: normal(9, seed=i) for i, k in enumerate("abc")}, {k: normal(9, seed=5) for k in "abc"}
    optimizer = module.Adam(ema=0.5, overrides={"b": {"ema": None}, "c": {"ema": lambda done: 0.1 * done}})
    for gone in (None, "a", "c", None):
        kept = optimizer.ema[gone].copy() if gone else None
        optimizer.step(params, {k: g for k, g in grads.items() if k != gone})
        d = {"a": 0.5, "c": 0.2}.get(gone)  # c has been updated twice
        assert gone is None or same([optimizer.ema[gone]], [F32(d) * kept + F32(1 - d) * params[gone]])
    assert sorted(optimizer.ema) == ["a", "c"]


# Parameters without a gradient are averaged too.


@MODULES
def test_an_average_follows_a_parameter_that_gets_no_more_gradients(module):
    p, g = np.zeros(3), np.ones(3)
    optimizer = module.SGD(lr=1.0, maximize=True, ema=0.9)
    optimizer.step({"w": p, "never": p + 5}, {"w": g})
    p[...] = 1.0
    for _ in range(200):
        optimizer.step({"w": p, "never": p + 5}, {})
    assert np.allclose(optimizer.ema["w"], 1.0, rtol=1e-8)
    assert np.allclose(optimizer.ema["never"], 6.0, rtol=1e-8)
    assert dict(optimizer.t).get("never", 0) == 0
    assert optimizer.t["w"] == 1


TYPES = {
    "float32": (F32, {}),
    "float64": (np.float64, {}),
    "bfloat16": (ml_dtypes.bfloat16, {"state_dtype": "same"}),
    "float16, float32 averages": (np.float16, {}),
    "bfloat16, master": (ml_dtypes.bfloat16, {"master_weights": True}),
    "bfloat16, split": (ml_dtypes.bfloat16, {"master_weights": "split", "state_dtype": "same"}),
    "float16, stochastic": (np.float16, {"rounding": "stochastic", "state_dtype": "same", "seed": 3}),
}


@pytest.mark.parametrize(("dtype", "options"), TYPES.values(), ids=TYPES)
def test_averages_without_gradients_have_the_bits_of_the_reference(dtype, options, isa):
    sizes, rng = (1, 300, 1025, 7), np.random.default_rng(3)
    optimizer, specification = (module.Adam(lr=0.1, ema=0.9, **options) for module in (fs, reference))
    params = verify.Guarded([verify.values(rng, n, dtype) for n in sizes])
    twins = copies(params.arrays)
    for present in ((0, 1), (2,), (0, 1, 2), (), (1,)):
        grads = [verify.values(rng, n, dtype) if i in present else None for i, n in enumerate(sizes)]
        for one, arrays in ((optimizer, params.arrays), (specification, twins)):
            one.step(arrays, grads)
        assert verify.difference(params.arrays, twins) == 0
        ours, theirs = ([one.ema[i] for i in range(4)] for one in (optimizer, specification))
        assert verify.difference(ours, theirs) == 0
    assert params.intact()
    assert optimizer.t == {0: 2, 1: 3, 2: 2, 3: 0}


def test_many_threads_average_what_has_no_gradient():
    params = {"a": normal(400_001), "b": normal(300_000, seed=1)}
    alone, optimizer = fs.SGD(ema=0.5), fs.SGD(ema=0.5)
    for _ in range(3):
        fs.set_num_threads(1)
        alone.step(params, {})
        fs.set_num_threads(3)
        optimizer.step(params, {})
        params["b"] *= F32(0.9)
    assert same(optimizer.ema.values(), alone.ema.values())


def test_a_skipped_step_leaves_all_averages():
    params = {"a": np.ones(3), "b": np.ones(3)}
    optimizer = fs.SGD(ema=0.5, skip_nonfinite=True)
    optimizer.step(params, {"a": np.ones(3)})
    kept = bits(dict(optimizer.ema))
    params["b"][:] = 7
    assert optimizer.step(params, {"a": np.full(3, NAN)}).skipped
    assert bits(dict(optimizer.ema)) == kept


def test_what_cannot_be_a_parameter_has_no_average():
    params = {"w": np.ones(3), "count": np.arange(3), "nothing": None}
    optimizer = fs.SGD(ema=0.5)
    for _ in range(2):
        optimizer.step(params, {"w": np.ones(3)})
    assert list(optimizer.ema) == ["w"]


def test_averages_without_gradients_are_saved():
    params = {"w": np.ones(3), "frozen": np.ones(3)}
    optimizer, again = fs.Adam(ema=0.5, overrides={"frozen": {"frozen": True}}), fs.Adam()
    optimizer.step(params, {"w": np.ones(3), "frozen": np.ones(3)})
    again.load_state_dict(optimizer.state_dict())
    params["frozen"] *= 3
    for one in (optimizer, again):
        one.step(copy.deepcopy(params), {"w": np.ones(3)})
        assert (one.ema["frozen"] == 2.0).all()


# Parameters that are their averages for a while.


def averaging(**options):
    opt = fs.Adam(lr=0.1, ema=0.5, **options)
    params = {"enc": [{"W": normal(6).reshape(2, 3), "b": None}, (normal(4), np.arange(3))], "x": np.array(2.0)}
    for k in range(3):
        opt.step(params, {"enc": [{"W": normal(6, seed=k).reshape(2, 3)}, (normal(4, seed=k), None)], "x": 1.0})
    return opt, params


def leaves(params):
    return [params["enc"][0]["W"], params["enc"][1][0], params["x"], params["enc"][1][1]]


def test_parameters_are_their_averages_for_a_while():
    opt, params = averaging()
    before, arrays = copies(leaves(params)), leaves(params)
    averages = copies([opt.ema[key] for key in ("enc/0/W", "enc/1/0", "x")])
    with opt.averaged(params):
        assert same(leaves(params)[:3], averages)
        assert not same(leaves(params)[:3], before[:3])
        assert same([opt.ema["x"]], averages[2:])
        params["x"][...] = 7  # is lost
    assert same(leaves(params), before)
    assert all(a is b for a, b in zip(leaves(params), arrays, strict=True))
    assert same([opt.ema[key] for key in ("enc/0/W", "enc/1/0", "x")], averages)
    with opt.averaged({"x": params["x"]}):
        assert same(leaves(params)[:2], before[:2])
        assert params["x"] == averages[2]
    with pytest.raises(ZeroDivisionError), opt.averaged(params):
        raise ZeroDivisionError
    assert same(leaves(params), before)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_while_in_half_precision(dtype):
    """An average of float32 is rounded to be the parameter, and keeps all its bits."""
    opt, p = fs.SGD(ema=0.5), normal(50).astype(dtype)
    for k in range(3):
        opt.step([p], [normal(50, seed=k)])
    before, average = p.copy(), opt.ema[0].copy()
    with opt.averaged([p]):
        assert same([p], [average.astype(dtype)])
    assert same([p, opt.ema[0]], [before, average])


def test_no_step_while_parameters_are_their_averages(tmp_path):
    opt, params = averaging()
    message = "^the parameters are their averages at present, expected the end of the block of `averaged` first$"
    calls = [
        lambda: opt.step(params, params),
        lambda: fs.save(tmp_path / "x.npz", opt, params),
        lambda: opt.averaged(params).__enter__(),
        lambda: opt.reset("x"),
        lambda: copy.deepcopy(opt),
    ]
    with opt.averaged(params):
        for call in calls:
            with pytest.raises(RuntimeError, match=message):
                call()
        fs.save(tmp_path / "x.npz", None, {"x": params["x"]})
    assert pickle.loads(pickle.dumps(opt)).t == opt.t
    opt.step({"x": params["x"]}, {"x": 1.0})
    assert opt.t["x"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda params: {**params, "y": np.ones(2)}, r"params\['y'\] has no average, expected one of a step with ema="),
        (lambda params: {**params, "x": np.ones(2)}, r"params\['x'\] has shape \(2,\), expected \(\) like its average"),
        (lambda params: {**params, "x": np.broadcast_to(1.0, ())}, r"params\['x'\] is read-only, expected a writable"),
        (lambda params: Anew(params), r"params\['x'\] is a new array each time it is asked for, expected the same one"),
    ],
)
def test_parameters_that_cannot_be_their_averages(change, message):
    opt, params = averaging()
    before = copies(leaves(params))
    with pytest.raises(ValueError, match=message):
        opt.averaged(change(params)).__enter__()
    assert same(leaves(params), before)
    opt.step({"x": params["x"]}, {"x": 1.0})


class Anew(UserDict):
    def __getitem__(self, key):
        value = super().__getitem__(key)
        return value.copy() if key == "x" else value


def test_an_interrupt_leaves_no_average_behind():
    opt, params = averaging()
    before = copies(leaves(params))

    def evaluate():
        with opt.averaged(params):
            pass

    for number in count(1):
        if not interrupted(evaluate, number):
            break
        assert same(leaves(params), before), number
        evaluate()
    assert number > 50  # lines
