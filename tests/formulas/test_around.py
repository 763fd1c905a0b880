"""What surrounds every rule: the order of operations, gradients that are not finite, skipped steps, zeroing."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedstep as fs
from fusedstep import _cpu, functional, reference
from fusedstep.tools import verify
from tests.formulas.arrays import BOTH, CLIPS, F32, F64, INF, MODULES, NAN, bits, copies, normal, same
from tests.formulas.norms import norm
from tests.rules import BY_RULE

# The order of the operations: what is right, and a neighbouring order that gives other bits. d is the dtype.


def l1(p, strength):
    return np.sign(p) * strength


def cut(g):
    return np.clip(g, -g.dtype.type(0.5), g.dtype.type(0.5))


DECOUPLED = {"weight_decay": 0.1, "decoupled": True, "lr": 0.7}
ORDER = [
    ({"grad_scale": 0.3, "clip_value": 0.5}, lambda d, p, g: p - cut(g * d(0.3)), lambda d, p, g: p - cut(g) * d(0.3)),
    (
        {"grad_scale": 0.3, "clip_norm": 0.7},
        lambda d, p, g: p - g * d(0.3 * (0.7 / (norm([g]) * 0.3))),
        lambda d, p, g: p - (g * d(0.3)) * d(0.7 / (norm([g]) * 0.3)),
    ),
    (
        {"grad_scale": 0.3, "weight_decay": 0.1},
        lambda d, p, g: p - (g * d(0.3) + d(0.1) * p),
        lambda d, p, g: p - (g + d(0.1) * p) * d(0.3),
    ),
    (
        {"maximize": True, "weight_decay": 0.1},
        lambda d, p, g: p - (-g + d(0.1) * p),
        lambda d, p, g: p + (g + d(0.1) * p),
    ),
    (
        {"clip_value": 0.5, "weight_decay": 0.1},
        lambda d, p, g: p - (cut(g) + d(0.1) * p),
        lambda d, p, g: p - cut(g + d(0.1) * p),
    ),
    (
        {"clip_norm": 0.5, "l1": 0.1},
        lambda d, p, g: p - (g * d(0.5 / norm([g])) + l1(p, d(0.1))),
        lambda d, p, g: p - (g + l1(p, d(0.1))) * d(0.5 / norm([g + l1(p, d(0.1))])),
    ),
    (
        {"weight_decay": 0.1, "l1": 0.1},
        lambda d, p, g: p - ((g + d(0.1) * p) + l1(p, d(0.1))),
        lambda d, p, g: p - ((g + l1(p, d(0.1))) + d(0.1) * p),
    ),
    (
        DECOUPLED,
        lambda d, p, g: p - (d(0.7) * g + d(0.7 * 0.1) * p),
        lambda d, p, g: (p - d(0.7) * g) - d(0.7 * 0.1) * p,
    ),
    (
        DECOUPLED,
        lambda d, p, g: p - (d(0.7) * g + d(0.7 * 0.1) * p),
        lambda d, p, g: p - (d(0.7) * g + d(0.7) * (d(0.1) * p)),
    ),
    (
        DECOUPLED,
        lambda d, p, g: p - (d(0.7) * g + d(0.7 * 0.1) * p),
        lambda d, p, g: (p - d(0.7) * g) * (d(1) - d(0.7 * 0.1)),
    ),
]


@MODULES
@BOTH
@pytest.mark.parametrize(("options", "right", "wrong"), ORDER)
def test_order(options, right, wrong, module, dtype):
    p, g = normal(300, dtype, 1), normal(300, dtype, 2)
    expected = right(dtype, p, g)
    assert verify.difference([wrong(dtype, p, g)], [expected]) > 0
    module.SGD(**({"lr": 1.0} | options)).step(p, g)
    assert expected.dtype == dtype
    assert same([p], [expected])


@MODULES
@BOTH
def test_the_rule_sees_the_decayed_gradient_and_the_average_the_decayed_parameter(module, dtype):
    p, g = normal(200, dtype, 1), normal(200, dtype, 2)
    b, e, old = np.zeros(200, dtype), None, p.copy()
    optimizer = module.Momentum(lr=0.7, momentum=0.9, weight_decay=0.1, l1=0.2, grad_scale=0.3, ema=0.6, maximize=True)
    for _ in range(3):
        seen = (-(g * dtype(0.3)) + dtype(0.1) * old) + l1(old, dtype(0.2))
        b = dtype(0.9) * b + dtype(1) * seen
        old = old - dtype(0.7) * b
        e = old.copy() if e is None else dtype(0.6) * e + dtype(1 - 0.6) * old
        optimizer.step(p, g)
        assert same([p, optimizer.state[0]["b"], optimizer.ema[0]], [old, b, e])


@MODULES
def test_what_is_off_is_not_a_multiplication_by_zero(module):
    p, g = np.array([np.nan, np.inf, -np.inf, 1.0], F32), np.array([1, 2, 3, 4], F32)
    off = {"l1": 0.0, "weight_decay": 0.0, "grad_scale": 1.0, "clip_value": None, "maximize": False}
    optimizer = module.Momentum(lr=1.0, ema=1.0, **off)
    optimizer.step(p, g)
    assert same([optimizer.state[0]["b"]], [g])
    assert same([p], [np.array([np.nan, np.inf, -np.inf, -3.0], F32)])
    zeros = np.array([-0.0, 0.0], F32)
    module.SGD(lr=1.0, l1=0.5).step(zeros, np.zeros(2, F32))
    assert (zeros == 0).all()  # sign(0) is 0


HELD = [1.0, INF, -INF, NAN, -2.0]
NONFINITE = [
    ({}, HELD, HELD, [3.0, 4.0]),
    ({"clip_value": 0.5}, HELD, [0.5, 0.5, -0.5, NAN, -0.5], [0.5, 0.5]),
    ({"clip_norm": 1.0}, [1.0, INF, -INF, 0.0, -2.0], [0.0, NAN, NAN, 0.0, 0.0], [0.6, 0.8]),
    ({"clip_norm": 1.0}, HELD, [NAN] * 5, [0.6, 0.8]),
    ({"clip_global_norm": 1.0}, [1.0, INF, 0.0, 0.0, 0.0], [NAN] * 5, [NAN] * 2),
    ({"clip_global_norm": 1.0}, [1.0, NAN, 0.0, 0.0, 0.0], [NAN] * 5, [NAN] * 2),
    ({"clip_global_norm": 1.0, "overrides": {1: {"clip_global_norm": None}}}, HELD, [NAN] * 5, [3.0, 4.0]),
    ({"clip_global_norm": 1.0, "overrides": {0: {"clip_global_norm": None}}}, HELD, HELD, [NAN] * 2),
]


@BOTH
@MODULES
@pytest.mark.parametrize("i", range(len(NONFINITE)))
def test_nonfinite_gradients(i, module, dtype, isa):
    options, bad, first, second = NONFINITE[i]
    params, grads = [np.zeros(5, dtype), np.zeros(2, dtype)], [np.array(bad, dtype), np.array([3.0, 4.0], dtype)]
    optimizer = module.Momentum(lr=1.0, **options)
    result = optimizer.step(params, grads)
    left = [np.array(first), np.array(second)]
    factor = dtype(1 / 5.0)  # clipping is one product, so 0.6 and 0.8 are 3 and 4 times it
    left = [np.where(np.isin(x, (0.6, 0.8)), g * factor, x).astype(dtype) for x, g in zip(left, grads, strict=True)]
    assert same([optimizer.state[i]["b"] for i in range(2)], left)
    assert same([p + dtype(0) for p in params], [dtype(0) - g for g in left])
    assert not result.skipped
    assert result.grad_norm is None or not math.isfinite(result.grad_norm)


# Skipped steps.


def skipping(cls=fs.Nadam, **options):
    return cls(skip_nonfinite=True, ema=0.9, **options)


@BOTH
@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("place", [0, -1, 1500])
@pytest.mark.parametrize("tensor", ["a", ("b", 1), 3])
def test_a_skipped_step_changes_nothing(tensor, place, value, dtype, isa):
    keys = ("a", ("b", 1), 3)
    params = {key: normal(2600, dtype, i) for i, key in enumerate(keys)}
    good = {key: normal(2600, dtype, 7 + i) for i, key in enumerate(keys)}
    bad = {key: g.copy() for key, g in good.items()}
    bad[tensor][place] = value
    bad[3][5] = NAN  # the first one is named
    asked = []
    optimizer = skipping(lr=lambda done: asked.append(done) or 0.1)
    free = skipping(lr=0.1)
    twin = {key: p.copy() for key, p in params.items()}
    for _ in range(3):
        before, count = bits([params, optimizer.state_dict()]), len(asked)
        for _ in range(2):
            result = optimizer.step(params, bad)
            assert result.skipped
            assert result.nonfinite == tensor
            assert type(result.nonfinite) is type(tensor)
            assert not math.isfinite(result.grad_norm)
            assert bits([params, optimizer.state_dict()]) == before
        assert not optimizer.step(params, good).skipped
        assert len(set(asked[count:])) == 1
        free.step(twin, good)
        seen = [{k: o.state_dict()[k] for k in ("t", "memory", "state", "ema")} for o in (optimizer, free)]
        assert bits([params, seen[0]]) == bits([twin, seen[1]])
    assert seen[0]["memory"].keys() == params.keys()


def test_squares_that_overflow_are_finite(isa):
    p, g = np.zeros(3), np.array([1.0, 1e200, -1e300])
    result = fs.SGD(lr=1.0, skip_nonfinite=True).step([p], [g])
    assert result == fs.Result(math.ldexp(norm([np.ldexp(g, -600)]), 600))
    assert same([p], [-g])
    assert fs.SGD(skip_nonfinite=True).step([p, p.copy()], [g, np.array([0, 0, INF])]).nonfinite == 1
    assert fs.SGD(skip_nonfinite=True).step([np.ones(1, F32)], [np.full(1, 3e38, F32)]).skipped is False


@BOTH
def test_a_skipped_step_zeroes_gradients_where_asked(dtype):
    params, grads = copies([np.ones(2100, dtype)] * 3), copies([np.full(2100, NAN, dtype)] * 3)
    optimizer = skipping(zero_grad=True, overrides={1: {"zero_grad": False}})
    assert optimizer.step(params, grads).skipped
    assert [bool((g.view(f"u{g.itemsize}") == 0).all()) for g in grads] == [True, False, True]
    assert np.isnan(grads[1]).all()
    assert not optimizer.state
    assert not optimizer.ema
    assert not optimizer.t
    assert optimizer.step(params, [grads[0], None, grads[2]]) == fs.Result(0.0)
    assert optimizer.t == {0: 1, 1: 0, 2: 1}


def test_results():
    p, g = np.ones(2, F32), np.array([3, 4], F32)
    assert fs.SGD(clip_value=1.0, zero_grad=True, ema=0.5).step(p, g.copy()) == fs.Result(None, False, None)
    for options in ({"clip_norm": 9.0}, {"clip_global_norm": 1.0}, {"skip_nonfinite": True}):
        assert fs.SGD(**options).step(p, g, grad_scale=-2.0) == fs.Result(10.0, False, None)
    with pytest.raises(TypeError, match=r"^overrides\['a'\]\['skip_nonfinite'\] is no hyperparameter of SGD"):
        fs.SGD(overrides={"a": {"skip_nonfinite": True}})
    with pytest.raises(AttributeError):
        fs.SGD().step(p, g).skipped = True


# Gradients that are zeroed.


@BOTH
@pytest.mark.parametrize("threads", [1, 3])
def test_zeroed_gradients(dtype, threads, isa):
    fs.set_num_threads(threads)
    sizes = (0, 1, 2047, 2048, 2049, 4097, 150_001)
    for options in ({}, {"clip_norm": 1.0, "ema": 0.5, "l1": 0.1}, {"clip_value": 1.0, "maximize": True}):
        grads = verify.Guarded([verify.values(np.random.default_rng(n), n, dtype) for n in sizes])
        params = verify.Guarded([np.ones(n, dtype) for n in sizes])
        fs.Adam(zero_grad=True, **options).step(params.arrays, grads.arrays)
        assert not any(g.view(np.uint8).any() for g in grads.arrays)
        assert grads.intact()
        assert params.intact()


def test_read_only_gradients_and_zeroing():
    params, grads = copies([np.ones(5, F32)] * 2), copies([np.ones(5, F32)] * 2)
    grads[1].flags.writeable = False
    optimizer = fs.Adam()
    optimizer.step(params, grads)
    for name, value in (("overrides", {1: {"zero_grad": True}}), ("zero_grad", True)):
        setattr(optimizer, name, value)
        before = bits([params, grads, optimizer.state, optimizer.t])
        with pytest.raises(ValueError, match=r"^grads\[1\] is read-only, expected a writable array"):
            optimizer.step(params, grads)
        assert bits([params, grads, optimizer.state, optimizer.t]) == before
    optimizer.overrides = {1: {"zero_grad": False}}
    optimizer.step(params, grads)
    assert not grads[0].any()
    assert grads[1].all()
    with pytest.raises(ValueError, match=r"^g is read-only"):
        functional.sgd(params[0], grads[1], lr=1.0, zero_grad=True)


@BOTH
def test_gradients_are_otherwise_only_read(dtype):
    g = verify.values(np.random.default_rng(1), 3000, dtype)
    kept = bits(g)
    for clip in (*CLIPS, None):
        options = {clip: 0.1} if clip else {}
        for skip in (False, True):
            optimizer = fs.Adam(grad_scale=3.0, maximize=True, l1=0.1, weight_decay=0.1, ema=0.5, **options)
            optimizer.skip_nonfinite = skip
            optimizer.step(np.ones(3000, dtype), g, grad_scale=0.3)
            assert bits(g) == kept


# The functions of `functional`.

OPTIONS = [
    {"grad_scale": -0.3},
    {"clip_value": 0.5},
    {"clip_norm": 0.5, "grad_scale": 3.0},
    {"clip_global_norm": 0.5, "weight_decay": 0.1, "grad_scale": 0.3},
    {"l1": 0.1, "maximize": True},
    {"zero_grad": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", [name for name in functional.__all__ if name in BY_RULE])
def test_functions_are_the_classes(name, options, own_state, own_memory):
    cls, extra = BY_RULE[name]
    step = {"grad_scale": options["grad_scale"]} if "grad_scale" in options else {}
    optimizer = getattr(fs, cls)(lr=0.1, **extra, **{k: v for k, v in options.items() if k not in step})
    function = getattr(functional, name)
    params, twins = ([normal(40), normal(2100, F64)] for _ in range(2))
    states = [own_state(function, p.size, p.dtype) for p in params]
    memory = dict.fromkeys(_cpu.rules[name].memory, 0.0)
    for t in (1, 2):
        grads = [normal(p.size, p.dtype, t) for p in params]
        others = copies(grads)
        optimizer.step(twins, others, **step)
        clock = memory | ({"t": t} if _cpu.rules[name].counts else {})
        arrays = map(list, zip(*(s.values() for s in states), strict=True))
        memory = own_memory(function, function(params, grads, *arrays, lr=0.1, **clock, **options))
        assert same(params + grads, twins + others)
        for i, some in enumerate(states):
            assert same(some.values(), [optimizer.state[i][n] for n in some])


def test_functions_have_no_memory():
    for name in ("ema", "skip_nonfinite", "nothing"):
        with pytest.raises(TypeError, match=rf"^{name} is no option of sgd, expected one of grad_scale, clip_value"):
            functional.sgd(normal(4), normal(4), lr=1.0, **{name: True})


# Random cases.


@st.composite
def cases(draw):
    kinds = draw(st.lists(st.tuples(st.sampled_from([0, 1, 7, 33, 1025]), st.sampled_from([F32, F64])), max_size=6))
    options = {"lr": 0.1, "weight_decay": draw(st.sampled_from([0.0, 0.3])), "ema": draw(st.sampled_from([None, 0.9]))}
    for name in ("zero_grad", "maximize", "skip_nonfinite"):
        options[name] = draw(st.booleans())
    if clip := draw(st.sampled_from([None, *CLIPS])):
        options[clip] = draw(st.floats(1e-3, 1e3))
    options["grad_scale"] = draw(st.floats(-1e3, 1e3))
    wild = draw(st.booleans())
    gone = draw(st.sets(st.integers(0, 5)))
    return kinds, options, wild, gone, draw(st.sampled_from(verify.THREADS)), draw(st.integers(0, 2**32))


def trail(optimizers, kinds, wild, gone, seed):
    """Return all that three steps leave; the tensors are shared among the optimizers, in order."""
    rng = np.random.default_rng(seed)
    params = [normal(n, dtype, i) for i, (n, dtype) in enumerate(kinds)]
    seen, norms = params, []
    for step in range(3):
        grads = [(verify.values(rng, n, d) if wild else rng.standard_normal(n).astype(d)) for n, d in kinds]
        grads = [None if step == 1 and i in gone else g for i, g in enumerate(grads)]
        cut = -(-len(params) // len(optimizers)) or 1
        for optimizer, at in zip(optimizers, itertools.count(0, cut), strict=False):
            result = optimizer.step(params[at : at + cut], grads[at : at + cut], grad_scale=1.0 - 2.0 * step)
            norms.append((repr(result.grad_norm), result.skipped, result.nonfinite))
        seen = seen + [g for g in grads if g is not None]
        seen = seen + [e.copy() for optimizer in optimizers for _, e in sorted(optimizer.ema.items())]
    return seen, norms


@settings(max_examples=80, deadline=None)
@given(cases())
def test_any_case_has_the_bits_of_the_reference(case):
    kinds, options, wild, gone, threads, seed = case
    fs.set_num_threads(threads)
    for name in _cpu.isas:
        fs.use_isa(name)
        found, norms = trail([fs.Adam(**options)], kinds, wild, gone, seed)
        expected, others = trail([reference.Adam(**options)], kinds, wild, gone, seed)
        assert same(found, expected)
        assert norms == others


@settings(max_examples=40, deadline=None)
@given(cases())
def test_two_optimizers_share_a_list(case):
    kinds, options, wild, gone, _, seed = case
    options |= {"clip_global_norm": None, "skip_nonfinite": False}
    together, _ = trail([fs.Adam(**options)], kinds, wild, gone, seed)
    shared, _ = trail([fs.Adam(**options), fs.Adam(**options)], kinds, wild, gone, seed)
    assert same(together, shared)
