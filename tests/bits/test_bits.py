"""The promise of equal bits: reference = every instruction set = every number of threads, layout and grouping."""

import itertools
from functools import cache

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu, functional, reference
from fusedstep.tools import verify
from tests.rules import BY_RULE

CLASSES = fs.optimizers.classes()
GRID = [(cls, tuple(options.items())) for cls in CLASSES for options in verify.dialects(cls)]
IDS = [f"{cls.__name__}-{'-'.join(f'{name}={value}' for name, value in options)}" for cls, options in GRID]


HALVES = [(cls, tuple(options.items()), *dtypes) for cls in CLASSES for options, *dtypes in verify.halves(cls)]
THREADED = [
    (),
    (("state_dtype", "same"), ("clip_global_norm", 20.0)),
    (("state_dtype", "same"), ("rounding", "stochastic"), ("ema", 0.9)),
    (("master_weights", True), ("zero_grad", True)),
]
GENERAL = (("weight_decay", 0.3), ("maximize", True))


def in_turn(first, *others):
    """Return all combinations; for each choice of `first`, all are marked exhaustive but one, each time the next."""
    combinations = list(itertools.product(*others))
    return [
        pytest.param(choice, *chosen, marks=[] if i % len(combinations) == j else pytest.mark.exhaustive)
        for i, choice in enumerate(first)
        for j, chosen in enumerate(combinations)
    ]


def name_of(half):
    cls, options, *dtypes = half
    names = "-".join(np.dtype(dtype).name for dtype in dtypes)
    return f"{cls.__name__}-{names}-{'-'.join(f'{name}={value}' for name, value in options)}"


@cache
def expected(cls, options, dtype, sizes, grad_dtype=None):
    return verify.outcome(getattr(reference, cls.__name__)(**dict(options)), dtype, sizes, grad_dtype)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("dtype", verify.DTYPES)
@pytest.mark.parametrize(("cls", "options"), GRID, ids=IDS)
def test_every_dialect_has_the_bits_of_the_reference(cls, options, dtype, isa):
    found = verify.outcome(cls(**dict(options)), dtype, verify.SMALL)
    assert verify.difference(found, expected(cls, options, dtype, verify.SMALL)) == 0


@pytest.mark.sampled(7)
@pytest.mark.parametrize(("cls", "options", "dtype", "grad_dtype"), HALVES, ids=map(name_of, HALVES))
def test_halves_have_the_bits_of_the_reference(cls, options, dtype, grad_dtype, isa):
    found = verify.outcome(cls(**dict(options)), dtype, verify.SMALL, grad_dtype)
    assert verify.difference(found, expected(cls, options, dtype, verify.SMALL, grad_dtype)) == 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("options", "threads"), in_turn(THREADED, verify.THREADS))
@pytest.mark.parametrize("cls", [fs.SGD, fs.Momentum, fs.AdamW])
def test_threads_change_no_bit_of_halves(cls, options, threads, isa):
    fs.set_num_threads(threads)
    for half in verify.HALVES:
        found = verify.outcome(cls(**dict(options)), half, verify.LARGE)
        assert verify.difference(found, expected(cls, options, half, verify.LARGE)) == 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", verify.DTYPES)
@pytest.mark.parametrize(("cls", "options", "threads"), in_turn(CLASSES, [(), GENERAL], verify.THREADS))
def test_threads_change_no_bit(cls, options, dtype, threads, isa):
    fs.set_num_threads(threads)
    found = verify.outcome(cls(**dict(options)), dtype, verify.LARGE)
    assert verify.difference(found, expected(cls, options, dtype, verify.LARGE)) == 0


def test_the_grid_reaches_every_rule():
    reached = {cls(**dict(options))._settings_with().rule for cls, options in GRID}
    assert reached == {name for name in _cpu.rules if name.isidentifier() and not name.startswith("limit")}


def test_difference_sees_a_single_bit():
    a = np.ones(5, np.float32)
    b = a.copy()
    b[3] = np.nextafter(b[3], 2)
    assert verify.difference([a], [b]) == 1
    assert verify.difference([np.float32([0.0])], [np.float32([-0.0])]) == 1
    assert verify.difference([np.float32([np.nan])], [np.float32([-np.nan])]) == 0


@pytest.mark.parametrize("dtype", verify.DTYPES)
def test_grouping_changes_no_bit(dtype):
    rng = np.random.default_rng(3)
    sizes = (100_003, 0, 5, 0, 16, 1, 40_000, 0)
    start = [verify.values(rng, n, dtype) for n in sizes]
    grads = [verify.values(rng, n, dtype) for n in sizes]
    together = [p.copy() for p in start]
    fs.Adam(weight_decay=0.1).step(together, grads)
    alone = [p.copy() for p in start]
    for p, g in zip(alone, grads, strict=True):
        fs.Adam(weight_decay=0.1).step(p, g)
    backwards = {i: start[i].copy() for i in reversed(range(len(sizes)))}
    fs.Adam(weight_decay=0.1).step(backwards, dict(enumerate(grads)))
    assert verify.difference(together, alone) == 0
    assert verify.difference(together, [backwards[i] for i in range(len(sizes))]) == 0


@pytest.mark.parametrize("count", [0, 1, 23, 24, 25, 36, 48, 64, 110, 255, 256, 257, 320, 770, 1000])
def test_any_number_of_tensors(count):
    sizes = [i % 5 for i in range(count)]
    found, wanted = ([np.ones(n, np.float32) for n in sizes] for _ in range(2))
    grads = [np.full(n, 0.5 + i, np.float32) for i, n in enumerate(sizes)]
    optimizer, specification = fs.Adam(), reference.Adam()
    for _ in range(2):
        optimizer.step(found, grads)
        specification.step(wanted, grads)
    assert verify.difference(found, wanted) == 0


@pytest.mark.parametrize("shift", range(17))
def test_the_place_of_an_element_changes_no_bit(shift, isa):
    rng = np.random.default_rng(5)
    p, g = verify.values(rng, 80, np.float32), verify.values(rng, 80, np.float32)
    whole, part = p.copy(), p.copy()
    fs.RMSprop().step(whole, g)
    fs.RMSprop().step(part[shift : 80 - shift], g[shift : 80 - shift])
    assert verify.difference([whole[shift : 80 - shift]], [part[shift : 80 - shift]]) == 0


def test_both_dtypes_in_one_step():
    rng = np.random.default_rng(6)
    found = [verify.values(rng, 50, dtype) for dtype in (np.float32, np.float64, np.float32)]
    grads = [verify.values(rng, 50, p.dtype) for p in found]
    wanted = [p.copy() for p in found]
    optimizer, specification = fs.Adam(), reference.Adam()
    for _ in range(3):
        optimizer.step(found, grads)
        specification.step(wanted, grads)
    assert verify.difference(found, wanted) == 0


RULES = [name for name in functional.__all__ if name in BY_RULE]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("dtype", verify.DTYPES)
@pytest.mark.parametrize("name", RULES)
def test_functional_has_the_bits_of_the_reference(name, dtype, many, own_state, own_memory):
    function = getattr(functional, name)
    options = {"weight_decay": 0.3, "maximize": True}
    cls, extra = BY_RULE[name]
    specification = getattr(reference, cls)(lr=0.07, **options, **extra)
    rng = np.random.default_rng(1)
    found, wanted = np.ones(67, dtype), np.ones(67, dtype)
    states = own_state(function, 67, dtype)
    memory = dict.fromkeys(_cpu.rules[name].memory, 0.0)
    for t in range(1, 6):
        g = verify.values(rng, 67, dtype)
        clock = memory | ({"t": t} if _cpu.rules[name].counts else {})
        arrays = [found, g, *states.values()]
        returned = function(*([a] for a in arrays) if many else arrays, lr=0.07, **options, **clock)
        memory = own_memory(function, returned)
        assert memory or returned is None
        specification.step(wanted, g)
    state = specification.state[0]
    assert verify.difference([found, *states.values()], [wanted, *(state[n] for n in states)]) == 0
    assert specification.memory[0] == memory


@pytest.mark.parametrize("t", [1, 256, 257, 2**24, 2**24 + 1, 10**6])
@pytest.mark.parametrize("dtype", verify.DTYPES)
def test_large_step_numbers(t, dtype):
    g = verify.values(np.random.default_rng(t), 40, dtype)
    found, wanted = np.ones(40, dtype), np.ones(40, dtype)
    m, v = np.full(40, 0.1, dtype), np.full(40, 0.2, dtype)
    specification = reference.Adam(lr=0.1)
    specification.t[0], specification.state[0] = t - 1, {"m": m.copy(), "v": v.copy()}
    specification.step(wanted, g)
    functional.adam(found, g, m, v, t=t, lr=0.1)
    assert verify.difference([found, m, v], [wanted, *specification.state[0].values()]) == 0


def test_hyperparameters_that_change_between_steps():
    rng = np.random.default_rng(7)
    pairs = [(cls(), getattr(reference, cls.__name__)(), np.ones(33, np.float32)) for cls in CLASSES]
    for optimizer, specification, p in pairs:
        q = p.copy()
        for lr, decay in [(0.1, 0.0), (0.3, 0.1), (0.3, 0.0), (0.0, 0.2), (1e-30, 1e-30)]:
            g = verify.values(rng, 33, np.float32)
            for o, x in ((optimizer, p), (specification, q)):
                o.lr, o.weight_decay = lr, decay
                o.step(x, g)
        assert verify.difference([p], [q]) == 0


EXTREMES = [
    {"lr": 1e300},
    {"lr": 1e-320},
    {"lr": -0.0},
    {"lr": np.float32(0.1)},
    {"weight_decay": 1e-320},
    {"weight_decay": 1e300},
    {"momentum": 1e-320},
    {"momentum": 1},
    {"eps": 0},
    {"eps": 1e-45},
    {"rho": 0},
    {"beta1": 1 - 2**-53, "beta2": 1 - 2**-53},
    {"initial_accumulator": 1e300},
    {"schedule_decay": 1e5},
]


@pytest.mark.parametrize("dtype", verify.DTYPES)
@pytest.mark.parametrize("options", EXTREMES, ids=map(str, EXTREMES))
@pytest.mark.parametrize("cls", CLASSES)
def test_extreme_hyperparameters(cls, options, dtype):
    if not all(hasattr(cls(), name) for name in options):
        return
    found = verify.outcome(cls(**options), dtype, (67,))
    wanted = verify.outcome(getattr(reference, cls.__name__)(**options), dtype, (67,))
    assert verify.difference(found, wanted) == 0


def test_tensors_with_different_step_numbers():
    rng = np.random.default_rng(8)
    for cls in CLASSES:
        found = {k: np.ones(20, np.float32) for k in "abcd"}
        wanted = {k: np.ones(20, np.float32) for k in "abcd"}
        optimizer, specification = cls(lr=lambda done: 0.1 / (1 + done)), getattr(reference, cls.__name__)()
        specification.lr = optimizer.lr
        for present in ("abcd", "ac", "bcd", "d", "", "abcd", "abcd"):
            grads = {k: verify.values(rng, 20, np.float32) for k in present}
            optimizer.step(found, grads)
            specification.step(wanted, grads)
        assert dict(optimizer.t) == specification.t == {"a": 4, "b": 4, "c": 5, "d": 5}
        assert verify.difference(list(found.values()), list(wanted.values())) == 0


def test_overrides_have_the_bits_of_the_reference():
    rng = np.random.default_rng(9)
    overrides = {
        "*.bias": {"weight_decay": 0.0, "lr": 0.5},
        "head.*": {"maximize": True},
        "head.weight": {"maximize": False, "lr": lambda done: 0.2 / (1 + done)},
        fs.where(lambda key, p: key[:4] == "head" and p.size == 35): {"l1": 0.25, "maximize": False},
        fs.where("head.bias", optional=True): {"l1": 0.5},
    }
    for cls in CLASSES:
        keys = ["body.weight", "body.bias", "head.weight", "head.bias"]
        found, wanted = ({k: np.ones(35, np.float32) for k in keys} for _ in range(2))
        optimizer = cls(weight_decay=0.1, overrides=overrides)
        specification = getattr(reference, cls.__name__)(weight_decay=0.1, overrides=overrides)
        for _ in range(4):
            grads = {k: verify.values(rng, 35, np.float32) for k in keys}
            optimizer.step(found, grads)
            specification.step(wanted, grads)
        assert verify.difference(list(found.values()), list(wanted.values())) == 0
        assert verify.difference([found["body.weight"]], [found["body.bias"]]) > 0


@pytest.mark.parametrize("scale", [np.float32(0.1), np.float16(0.3), np.int64(3), np.float64(0.7)])
def test_grad_scale_of_any_type_has_the_bits_of_the_reference(scale):
    found, wanted, g = (np.linspace(-1, 2, 50, dtype=np.float32) for _ in range(3))
    one, other = (module.SGD(lr=0.3, grad_scale=0.7, clip_global_norm=0.9) for module in (fs, reference))
    one.step(found, g, grad_scale=scale)
    other.step(wanted, g, grad_scale=scale)
    assert verify.difference([found], [wanted]) == 0


def test_results_around_the_smallest_normal_number(isa):
    # The product a*b lies just below 2^-126 and rounds up to it: tininess is judged after rounding. The next smaller
    # product is flushed.
    a, b = np.float32((1 + 2**-13) * 2.0**-63), np.float32((1 - 2**-13) * 2.0**-63)
    p = np.zeros(40, np.float32)
    functional.sgd(p, np.full(40, a), lr=float(b))
    assert (p == -np.float32(2.0**-126)).all()
    p = np.zeros(40, np.float32)
    functional.sgd(p, np.full(40, np.nextafter(a, np.float32(0))), lr=float(b))
    assert (p == 0).all()
    # Divisions too are judged after rounding: u = (lr g) / (sqrt(a + g^2) + eps) is a quotient just below 2^-126.
    p, s, g = np.zeros(40, np.float32), np.zeros(40, np.float32), np.full(40, 1, np.float32)
    q, r = np.zeros(40, np.float32), reference.Adagrad(lr=2.0**-126 * (1 - 2**-24), eps=0.0)
    functional.adagrad(p, g, s, lr=2.0**-126 * (1 - 2**-24), eps=0.0)
    r.step(q, g)
    assert verify.difference([p], [q]) == 0


def test_a_subnormal_parameter_becomes_zero_in_float32_and_stays_in_float64():
    for dtype, stays in ((np.float32, False), (np.float64, True)):
        p = np.full(20, np.finfo(dtype).smallest_normal / 2, dtype)
        fs.SGD().step(p, np.zeros(20, dtype))
        assert (p != 0).all() == stays


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("dtype", verify.DTYPES)
def test_the_callers_floating_point_mode_is_neither_relied_on_nor_changed(dtype, flush, float_word):
    calm = verify.outcome(fs.Adam(), dtype, verify.SMALL)
    big = verify.outcome(fs.Adam(), dtype, (100_003,))
    p, g = np.ones(30, dtype), np.ones(30, dtype)
    with reference.float_mode(np.float32 if flush else np.float64):
        before = float_word()
        optimizer = fs.Adam()
        for _ in range(3):
            optimizer.step(p, g)
        with pytest.raises(ValueError, match="shape"):
            optimizer.step(p, g[1:])
        assert float_word() == before
    mode_free = [np.ones(30, dtype)]
    again = fs.Adam()
    for _ in range(3):
        again.step(mode_free[0], g)
    assert verify.difference([p], mode_free) == 0
    assert verify.difference(verify.outcome(fs.Adam(), dtype, verify.SMALL), calm) == 0
    assert verify.difference(verify.outcome(fs.Adam(), dtype, (100_003,)), big) == 0


def test_zero_gradients_let_moments_reach_zero_not_stick_as_subnormals():
    p, g = np.ones(64, np.float32), np.ones(64, np.float32)
    optimizer = fs.Adam()
    optimizer.step(p, g)
    g[:] = 0
    for _ in range(2000):
        optimizer.step(p, g)
    m = optimizer.state[0]["m"]
    assert (m == 0).all()


def test_runs_repeat():
    runs = [verify.outcome(fs.Nadam(weight_decay=0.1), np.float32, verify.LARGE) for _ in range(2)]
    assert verify.difference(*runs) == 0


@pytest.mark.exhaustive
def test_verify_reports_a_difference(monkeypatch, capsys):
    monkeypatch.setattr(verify, "classes", lambda: [fs.SGD])
    monkeypatch.setattr(verify, "LARGE", (5_001, 3))
    assert verify.main([]) == 0
    assert "all bits are equal" in capsys.readouterr().out
    monkeypatch.setattr(reference.SGD, "elem", lambda self, k, g: k.lr * g * k.lr)
    assert verify.main([]) == 1
    assert "elements differ" in capsys.readouterr().out
