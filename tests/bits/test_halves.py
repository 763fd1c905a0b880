"""Half precision: what is stored, how it is rounded, and what masters and noise are worth."""

import datetime
import itertools
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import functional, reference
from fusedstep.tools import verify

BF16 = np.dtype(ml_dtypes.bfloat16)
F16, F32 = np.dtype(np.float16), np.dtype(np.float32)
HALVES = pytest.mark.parametrize("half", [F16, BF16], ids=str)
PATTERNS = np.arange(2**16, dtype=np.uint32).astype(np.uint16)


@pytest.fixture(autouse=True)
def _quiet():
    """Casts of infinities and signaling NaN warn, and these tests cast them all the time."""
    with np.errstate(all="ignore"):
        yield


def same(found, expected):
    assert verify.difference([found], [expected]) == 0


def flushed(x):
    """Return float32 numbers as arithmetic sees them."""
    return np.where(abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def minus(x):
    """Return 0 - x, as a step makes it of an update."""
    return flushed(np.float32(0) - flushed(x))


# Conversions: a step of SGD with a rate of 0 or 1 widens, computes p - u, and narrows.


@HALVES
def test_every_pattern_survives_loading_and_storing(half, isa):
    p = PATTERNS.view(half).copy()
    functional.sgd(p, np.zeros(p.size, half), lr=0.0)
    wide = flushed(PATTERNS.view(half).astype(np.float32))
    same(p, wide.astype(half))
    finite = np.isfinite(wide)
    assert (p.view(np.uint16) == PATTERNS)[finite & (wide != 0)].all()  # subnormal numbers of float16 are kept too


@HALVES
@pytest.mark.parametrize("param", [F32, None], ids=["float32", "half"])
def test_every_pattern_as_a_gradient(half, param, isa):
    g = PATTERNS.view(half)
    p, q = (np.zeros(g.size, param or half) for _ in range(2))
    functional.sgd(p, g.copy(), lr=0.75)
    reference.SGD(lr=0.75).step(q, g)
    same(p, q)
    same(p, minus(np.float32(0.75) * flushed(g.astype(np.float32))).astype(p.dtype))


@HALVES
def test_every_pattern_as_a_state(half, isa):
    b = PATTERNS.view(half).copy()
    p = np.zeros(b.size, half)
    functional.momentum(p, np.zeros(b.size, half), b, t=2, lr=1.0, momentum=0.5)
    halved = flushed(np.float32(0.5) * flushed(PATTERNS.view(half).astype(np.float32)))
    same(b, (halved + np.float32(0)).astype(half))


def around_each_number(half):
    """Return the float32 numbers on both sides of every point where rounding to a half may change."""
    numbers = np.unique(abs(PATTERNS.view(half).astype(np.float64)))
    numbers = numbers[np.isfinite(numbers)]
    ends = np.append(numbers, 2 * numbers[-1] - numbers[-2])  # and the point from which numbers overflow
    points = np.concatenate([ends, (ends[1:] + ends[:-1]) / 2]).astype(np.float32)
    near = np.concatenate([np.nextafter(points, F32.type(0)), points, np.nextafter(points, F32.type(np.inf))])
    return np.concatenate([near, -near, F32.type([np.inf, -np.inf, np.nan, 3e38, 1e-45, 1e-40])])


@HALVES
def test_rounding_is_to_nearest_even_everywhere(half, isa):
    x = around_each_number(half)
    p = np.zeros(x.size, half)
    functional.sgd(p, -x, lr=1.0)
    same(p, minus(-x).astype(half))
    assert np.isinf(p[abs(x) == np.float32(3e38)].astype(np.float32)).all() == (half == F16)
    assert np.isnan(p[np.isnan(x)].astype(np.float32)).all()


def test_conversions_are_those_of_numpy_and_ml_dtypes():
    x = around_each_number(F16)
    ours = reference.storage.rounded(x, F16)
    assert (ours[x == 65519] == 65504).all()
    assert np.isinf(ours[x == 65520]).all()
    assert reference.storage.rounded(F32.type([2.0**-24 * 1.5, 2.0**-24 * 2.5, 2.0**-25]), F16).tolist() == [
        2.0**-23,
        2.0**-23,
        0.0,
    ]
    assert reference.storage.rounded(F32.type([1 + 2**-8, 1 + 3 * 2**-8]), BF16).tolist() == [1.0, 1 + 2**-6]


def test_a_split_loses_nothing(isa):
    """Upper and lower bits together are the number; the parameter alone is the nearest one, away from 0 in a tie."""
    high = PATTERNS.astype(np.uint32) << 16
    for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (high | np.uint32(low)).view(np.float32)
        p, r = np.zeros(x.size, BF16), np.zeros(x.size, np.uint16)
        opt = fs.SGD(lr=1.0, master_weights="split")
        opt.step(p, -x)
        r = opt.state[0]["remainder"]
        x = minus(-x)
        same(reference.storage.joined(p, r), x)
        usual = x.astype(BF16)
        tie = (low == 0x8000) & (x != 0)
        assert ((p == usual) | np.isnan(x) | tie).all()
        opt.step(p, np.zeros(x.size, np.float32))
        same(reference.storage.joined(p, r), x)  # the kernel has read both pieces and written them again


# The random bits of stochastic rounding.


def test_philox_has_the_published_vectors():
    vectors = [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    for counter, key, words in vectors:
        assert reference.storage.philox(np.array(counter).reshape(4, 1), key)[:, 0].tolist() == words


def noise(n, half, seed=0, steps=1, key=0, value=None):
    """Return, for each element, whether a number in the middle between two halves went up by chance."""
    unit = {F16: 2.0**-10, BF16: 2.0**-7}[half]
    value = 1 + unit / 2 if value is None else value
    opt = fs.SGD(lr=1.0, rounding="stochastic", seed=seed)
    for _ in range(steps):
        p = np.zeros(n, half)
        opt.step({key: p}, {key: np.full(n, -value, np.float32)})
    return (p.astype(np.float64) > np.floor(value / unit) * unit).astype(float)


@HALVES
@pytest.mark.parametrize("share", [1 / 64, 0.25, 0.5, 0.9])
def test_stochastic_rounding_keeps_the_mean(half, share, isa):
    unit = {F16: 2.0**-10, BF16: 2.0**-7}[half]
    n = 400_000
    for low, scale in ((1.0, 1.0), (1.5, -(2.0**-10)), (1.0, 2.0**12)):
        value = scale * (low + share * unit)
        p = np.zeros(n, half)
        functional.sgd(p, np.full(n, -value, np.float32), lr=1.0, rounding="stochastic", seed=3)
        up = p.astype(np.float64) != scale * low
        assert set(np.unique(p.astype(np.float64)) / scale) == {low, low + unit}
        assert abs(up.mean() - share) < 5 * np.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize("share", [1 / 512, 0.3, 0.5, 0.99])
def test_stochastic_rounding_keeps_the_mean_of_subnormals(share, isa):
    n, unit = 400_000, 2.0**-24
    for low in (0, 1, 5, 1023):
        p = np.zeros(n, F16)
        functional.sgd(p, np.full(n, -(low + share) * unit, np.float32), lr=1.0, rounding="stochastic")
        assert set(np.unique(p.astype(np.float64)) / unit) == {low, low + 1}
        assert abs((p.astype(np.float64) / unit - low).mean() - share) < 5 * np.sqrt(share * (1 - share) / n)


@HALVES
def test_what_a_half_can_hold_is_never_moved_by_chance(half, isa):
    wide = PATTERNS.view(half).astype(np.float32)
    finite = np.isfinite(wide) & (wide == flushed(wide))
    for seed in range(5):
        p = np.zeros(2**16, half)
        functional.sgd(p, -wide, lr=1.0, rounding="stochastic", seed=seed)
        assert (p.view(np.uint16) & 0x7FFF == PATTERNS & 0x7FFF)[finite].all()
        assert np.isinf(p.astype(np.float32))[np.isinf(wide)].all()
        assert np.isnan(p.astype(np.float32))[np.isnan(wide)].all()


@HALVES
def test_stochastic_rounding_of_every_border_has_the_bits_of_the_reference(half, isa):
    x = around_each_number(half)
    p, q = np.zeros(x.size, half), np.zeros(x.size, half)
    functional.sgd(p, x.copy(), lr=1.0, rounding="stochastic", seed=11)
    reference.SGD(lr=1.0, rounding="stochastic", seed=11).step(q, x)
    same(p, q)


@HALVES
def test_noise_is_random_in_every_direction(half):
    n = 100_000
    base = noise(n, half)
    others = [noise(n, half, seed=1), noise(n, half, steps=2), noise(n, half, key=1), noise(n, half, key="w")]
    others += [np.roll(base, shift) for shift in (1, 2, 31, 32, 64, 128, 256)]  # other elements
    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / np.sqrt(n)
    assert (noise(n, half) == base).all()


def test_each_array_has_noise_of_its_own():
    n, share = 100_000, 0.5
    opt = fs.Adam(lr=1.0, beta1=0.0, beta2=0.0, eps=0.0, rounding="stochastic", state_dtype="same", ema=0.0)
    p = np.full(n, 1 + 2.0**-7, BF16)
    g = np.full(n, 1 + share * 2.0**-7, np.float32)
    opt.step(p, g)
    opt.step(p, g)
    state = opt.state[0]
    seen = [a.astype(np.float32) > np.median(np.unique(a.astype(np.float32))) for a in (state["m"], state["v"])]
    assert 0.4 < seen[0].mean() < 0.6
    assert abs(np.corrcoef(*seen)[0, 1]) < 5 / np.sqrt(n)


def test_order_and_company_change_no_noise():
    def run(keys):
        params = {key: np.ones(1000, BF16) for key in keys}
        opt = fs.Adam(rounding="stochastic", seed=4)
        for _ in range(3):
            opt.step(params, {key: np.full(1000, 0.1, BF16) for key in keys})
        return params

    a, b, c = run("xyz"), run("zx"), run("y")
    for key, other in (("x", b), ("z", b), ("y", c)):
        same(a[key], other[key])
    assert verify.difference([a["x"]], [a["y"]]) > 100


def test_keys_that_are_equal_have_equal_noise():
    def run(key, module=fs):
        p = np.ones(1000, BF16)
        module.SGD(lr=1e-3, rounding="stochastic").step({key: p}, {key: p.copy()})
        return p

    for key in (True, np.int64(1)):
        same(run(key), run(1))
    assert verify.difference([run(-1)], [run(-2)]) > 100
    same(run(np.str_("w")), run("w"))
    for key in (("block", 3, "w"), -1, 2**70, None, 1.5, "\udc80"):
        same(run(key), run(key, reference))


def test_keys_whose_text_does_not_last_have_no_noise():
    class Failing:
        def __repr__(self):
            raise ValueError

    def always(key, p):
        return True

    for key in (object(), len.__call__, Failing(), ("a", object()), frozenset("abc"), lambda: 0):
        p, g = {key: np.ones(20, BF16)}, {key: np.ones(20, BF16)}
        for opt in (fs.SGD(rounding="stochastic"), fs.SGD(overrides={fs.where(always): {"rounding": "stochastic"}})):
            with pytest.raises(
                TypeError, match=r"^params has a key of type \w.*, whose text is another in every process"
            ):
                opt.step(p, g)
            assert (p[key] == 1).all()
        opt = fs.SGD()
        opt.step(p, g)
        before = p[key].copy()
        opt.rounding = "stochastic"
        for _ in range(2):
            with pytest.raises(TypeError, match="is another in every process"):
                opt.step(p, g)
        same(p[key], before)
        opt.rounding = "nearest"
        opt.step(p, g)


def test_the_last_elements_have_noise_wherever_threads_cut():
    """Arrays begin off the vector boundary, so that parts and tiles end in the middle of a vector."""
    for half in (F16, BF16):
        owner = np.ones(300_040, half)
        p, q = owner[1:300_001], np.ones(300_000, half)
        g = np.random.default_rng(0).standard_normal(300_000).astype(half)
        options = {"ema": 0.9, "state_dtype": "same", "rounding": "stochastic"}
        fs.set_num_threads(3)
        opt, ref = fs.Adam(**options), reference.Adam(**options)
        for _ in range(2):
            opt.step(p, g)
            ref.step(q, g)
        same(p, q)
        same(opt.ema[0], ref.ema[0])


def test_large_step_numbers_and_far_elements_have_noise():
    opt, ref = fs.SGD(lr=1e-3, rounding="stochastic"), reference.SGD(lr=1e-3, rounding="stochastic")
    p = np.ones(500, BF16)
    q = p.copy()
    opt.load_state_dict({"t": {0: 2**40}, "state": {}})
    ref.t[0], ref.state[0] = 2**40, {}
    for _ in range(2):
        opt.step(p, p.copy())
        ref.step(q, q.copy())
        same(p, q)


# Tensors of several dtypes, and every optimizer.


def test_eps_never_vanishes():
    """The default eps of 1e-8 is 0 in float16, but scalars are float32: a gradient of 0 divides nothing by 0."""
    for cls in fs.optimizers.classes():
        for half in (F16, BF16):
            p = np.ones(20, half)
            opt = cls(state_dtype="same")
            for _ in range(3):
                opt.step(p, np.zeros(20, half))
            assert np.isfinite(p.astype(np.float32)).all()
            assert all(np.isfinite(a.astype(np.float32)).all() for a in opt.state[0].values())


def test_step_numbers_beyond_what_bfloat16_counts():
    p, q = np.ones(40, BF16), np.ones(40, BF16)
    m, v = np.full(40, 0.1, BF16), np.full(40, 0.2, BF16)
    for t in (256, 257, 2**24 + 1):
        ref = reference.Adam(lr=0.1, state_dtype="same")
        ref.t[0], ref.state[0] = t - 1, {"m": m.copy(), "v": v.copy()}
        g = np.linspace(-1, 1, 40).astype(BF16)
        ref.step(q, g)
        functional.adam(p, g, m, v, t=t, lr=0.1)
        same(p, q)
        same(m, ref.state[0]["m"])


def test_a_list_of_all_dtypes_in_one_step():
    rng = np.random.default_rng(1)
    pairs = [pair for pair in itertools.product((F32, F16, BF16), repeat=2) if F32 in pair or len(set(pair)) == 1]
    pairs.append((np.dtype(np.float64),) * 2)
    found = [verify.values(rng, 70, p) for p, _ in pairs]
    wanted = [p.copy() for p in found]
    opt, ref = (module.Adam(rounding="stochastic", clip_global_norm=1.0) for module in (fs, reference))
    for _ in range(3):
        grads = [rng.standard_normal(70).astype(g) for _, g in pairs]
        assert opt.step(found, grads).grad_norm == ref.step(wanted, grads).grad_norm
    assert verify.difference(found, wanted) == 0


@pytest.mark.parametrize("half", [F16, BF16], ids=str)
def test_norms_of_halves(half, isa):
    for n in (0, 1, 31, 32, 33, 1023, 1024, 1025, 40_000):
        g = verify.values(np.random.default_rng(n), n, half)
        g[~np.isfinite(g.astype(np.float32))] = 1
        opt, ref = (module.SGD(clip_global_norm=1.0) for module in (fs, reference))
        norms = [some.step(np.ones(n, half), g).grad_norm for some in (opt, ref)]
        assert norms[0] == norms[1]


def test_functions_take_halves():
    rng = np.random.default_rng(2)
    for states in (F32, BF16):
        p, q = np.ones(300, BF16), np.ones(300, BF16)
        m, v = np.zeros(300, states), np.zeros(300, states)
        ref = reference.Adam(state_dtype="same" if states == BF16 else "float32", rounding="stochastic", seed=9)
        for t in (1, 2, 3):
            g = rng.standard_normal(300).astype(BF16)
            functional.adam(p, g, m, v, t=t, lr=1e-3, rounding="stochastic", seed=9)
            ref.step(q, g)
        assert verify.difference([p, m, v], [q, ref.state[0]["m"], ref.state[0]["v"]]) == 0


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_from_what_on_float16_is_infinite(rounding, isa):
    x = np.arange(65505, 65632, 0.5, dtype=np.float32).repeat(300)  # the largest number, and twice the unit beyond 2^16
    for sign in (1, -1):
        p, q = np.zeros(x.size, F16), np.zeros(x.size, F16)
        functional.sgd(p, sign * -x, lr=1.0, rounding=rounding)
        reference.SGD(lr=1.0, rounding=rounding).step(q, sign * -x)
        assert np.isinf(p[x >= 65536]).all()
        same(p, q)


@pytest.mark.parametrize(
    "dtype", [np.int16, np.uint16, "V2", F16.newbyteorder(), BF16.newbyteorder(), ml_dtypes.float8_e5m2], ids=repr
)
def test_states_of_a_wrong_dtype_are_refused_where_they_agree(dtype):
    """States of one dtype agree with each other, so only the dtype itself can be refused."""
    state = {name: np.zeros(3, dtype) for name in "mv"}
    wanted = "expected float32, float64, float16 or bfloat16, complex64 or complex128$"
    with pytest.raises(TypeError, match=rf"^state\[0\]\['m'\] is .*, {wanted}"):
        fs.Adam().load_state_dict({"t": {0: 1}, "state": {0: state}})


@pytest.mark.parametrize("key", [datetime.date(2024, 1, 1), pathlib.PurePosixPath("w")], ids=repr)
def test_keys_whose_repr_is_not_their_text_have_the_noise_of_the_reference(key):
    p, q = np.ones(1000, BF16), np.ones(1000, BF16)
    for module, array in ((fs, p), (reference, q)):
        module.SGD(lr=1e-3, rounding="stochastic").step({key: array}, {key: np.ones(1000, BF16)})
    same(p, q)


def test_a_bfloat16_of_another_size_is_none():
    code = """
import sys, types
import ml_dtypes, numpy as np, fusedstep as fs
sys.modules["ml_dtypes"] = types.SimpleNamespace(bfloat16=ml_dtypes.float8_e4m3fn)
p = np.ones(64, ml_dtypes.float8_e4m3fn)
for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16):
    p = np.ones(64, dtype)
    try:
        fs.SGD().step(p, p.copy())
    except TypeError as error:
        assert "expected float32" in str(error)
    else:
        raise AssertionError(dtype)
    assert (p == 1).all()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@HALVES
def test_a_gradient_that_stays_is_looked_at_again_with_a_new_parameter(half):
    g = np.full(64, 0.25, np.float32)
    opt, ref = fs.SGD(lr=1.0), reference.SGD(lr=1.0)
    for dtype in (half, F32, half):
        p, q = np.ones(64, dtype), np.ones(64, dtype)
        opt.step([p], [g])
        ref.step([q], [g])
        same(p, q)
    wrong = np.ones(16, half)
    with pytest.raises(ValueError, match=r"^grads\[0\] has shape \(64,\), expected \(16,\) like params\[0\]$"):
        opt.step([wrong], [g])
    assert (wrong == 1).all()


@pytest.mark.parametrize("first", [np.float32, np.float64, F16, BF16], ids=str)
def test_tensors_of_one_step_have_each_the_floating_point_mode_of_its_dtype(first, isa):
    """Subnormal numbers are flushed, except in float64; a subnormal float16 is a normal float32."""
    dtypes = [first, np.float64, np.float32, np.float64, BF16, np.float64, F16, np.float64]
    tiny = {np.dtype(t): np.finfo(t).smallest_normal / t(2) for t in (np.float64, np.float32)}
    tiny |= {BF16: tiny[F32], F16: 2.0**-24}
    params = [np.full(5, tiny[np.dtype(dtype)], dtype) for dtype in dtypes]
    before = [p.copy() for p in params]
    fs.SGD().step(params, [np.zeros(5, p.dtype) for p in params])
    for p, start in zip(params, before, strict=True):
        same(p, np.zeros_like(p) if p.dtype in (F32, BF16) else start)


@HALVES
def test_functions_refuse_half_states_of_whole_parameters(half):
    arrays = {name: np.ones(8, np.float32) for name in "pgmv"}
    for name in "mv":
        wrong = arrays | {name: np.ones(8, half)}
        with pytest.raises(TypeError, match=rf"^{name} is {half}, expected float32 like [pm]$"):
            functional.adam(**wrong, t=1, lr=0.1)
        assert all((a == 1).all() for a in wrong.values())


def test_each_array_of_a_list_has_the_noise_of_its_place():
    def arrays():
        return [np.ones(1000, BF16) for _ in range(3)]

    found, wanted = arrays(), arrays()
    functional.sgd(found, arrays(), lr=1e-3, rounding="stochastic", seed=5)
    reference.SGD(lr=1e-3, rounding="stochastic", seed=5).step(wanted, arrays())
    assert verify.difference(found, wanted) == 0
    assert verify.difference(found[:1], found[1:2]) > 100


def test_a_seed_of_any_kind_becomes_an_int():
    opt = fs.SGD(seed=np.int64(5))
    assert type(opt.seed) is int
    assert opt.seed == 5


@HALVES
def test_an_average_alone_says_which_parameters_can_be_saved(half, tmp_path):
    opt, p = fs.SGD(ema=0.9, state_dtype="same"), np.ones(3, half)
    opt.step(p, p.copy())
    for wrong in (np.ones(3, np.float32), np.ones(4, half)):
        with pytest.raises(ValueError, match=r"^params\[0\] is .*, expected one that fits ema"):
            fs.save(tmp_path / "x.npz", opt, wrong)
    assert not list(tmp_path.iterdir())


# Refusals.


@pytest.mark.parametrize(
    ("param", "grad", "message"),
    [
        (BF16, np.uint16, "grad is uint16, expected float32, float64, float16 or bfloat16"),
        (BF16, "V2", "grad is |V2, expected float32"),
        (BF16, ml_dtypes.float8_e4m3fn, "grad is float8_e4m3fn, expected float32"),
        (BF16, np.complex64, "grad is complex64, expected real numbers like param"),
    ],
)
def test_dtypes_that_do_not_belong_together(param, grad, message):
    p = np.ones(8, param)
    opt = fs.Adam()
    with pytest.raises(TypeError) as caught:
        opt.step(p, np.zeros(8, grad))
    assert str(caught.value).startswith(message)
    assert (p == np.ones(8, param)).all()
    assert not opt.state


def test_functions_refuse_states_of_mixed_dtypes():
    p, g = np.ones(8, BF16), np.ones(8, BF16)
    with pytest.raises(TypeError, match=r"^v is float32, expected bfloat16 like m"):
        functional.adam(p, g, np.zeros(8, BF16), np.zeros(8, np.float32), t=1, lr=0.1)
    with pytest.raises(TypeError, match=r"^m is float16, expected bfloat16 like p"):
        functional.adam(p, g, np.zeros(8, F16), np.zeros(8, F16), t=1, lr=0.1)
    assert (p == 1).all()


def test_a_parameter_may_not_change_to_a_dtype_that_its_states_do_not_fit():
    for before, after, options in (
        (BF16, F16, {"state_dtype": "same"}),
        (BF16, np.float64, {}),
        (BF16, F32, {"master_weights": True}),
        (BF16, F16, {"master_weights": "split"}),
    ):
        opt = fs.Adam(**options)
        opt.step(np.ones(8, before), np.ones(8, before))
        kept = {name: a.copy() for name, a in opt.state[0].items()}
        p = np.ones(8, after)
        with pytest.raises(TypeError, match=r"^param is .*, expected (bfloat16|float32) like state"):
            opt.step(p, p.copy())
        assert (p == 1).all()
        assert opt.t[0] == 1
        assert all((opt.state[0][name] == a).all() for name, a in kept.items())


def test_a_parameter_may_change_to_a_dtype_that_its_states_fit():
    opt, ref = fs.Adam(), reference.Adam()
    for dtype in (BF16, F32, F16, BF16):
        p, q = np.ones(8, dtype), np.ones(8, dtype)
        opt.step(p, p.copy())
        ref.step(q, q.copy())
        same(p, q)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"state_dtype": "bfloat16"}, ValueError, "state_dtype is 'bfloat16', expected one of 'float32', 'same'"),
        ({"state_dtype": np.float32}, TypeError, "state_dtype is <class 'numpy.float32'>, expected one of"),
        ({"master_weights": "yes"}, ValueError, "master_weights is 'yes', expected one of False, True, 'split'"),
        ({"master_weights": 1}, TypeError, "master_weights is 1, expected one of False, True, 'split'"),
        ({"master_weights": None}, TypeError, "master_weights is None, expected one of False, True, 'split'"),
        ({"rounding": "up"}, ValueError, "rounding is 'up', expected one of 'nearest', 'stochastic'"),
        ({"seed": -1}, ValueError, "seed is -1, expected an integer >= 0"),
        ({"seed": 0.5}, TypeError, "seed is 0.5, expected an integer >= 0"),
        ({"seed": True}, TypeError, "seed is True, expected an integer >= 0"),
        ({"seed": 2**53}, ValueError, f"seed is {2**53}, expected an integer below 2**53"),
        ({"seed": lambda done: 1}, TypeError, "seed is <function"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error) as caught:
        fs.Adam(**options)
    assert str(caught.value).startswith(message)


def test_a_false_bfloat16_is_refused_and_halves_work_without_ml_dtypes():
    code = """
import sys, types
import numpy as np, fusedstep as fs
assert "ml_dtypes" not in sys.modules
p = np.ones(5, np.float16)
fs.Adam(master_weights=True, rounding="stochastic").step(p, p.copy())
assert "ml_dtypes" not in sys.modules
for false in (np.uint16, np.dtype("V2"), "float8", None, 7):
    sys.modules["ml_dtypes"] = types.SimpleNamespace(bfloat16=false)
    for dtype in ("V2", np.uint16, np.int16):
        try:
            fs.SGD().step(np.zeros(4, dtype), np.zeros(4, dtype))
        except TypeError as error:
            assert "expected float32" in str(error)
        else:
            raise AssertionError(dtype)
del sys.modules["ml_dtypes"]
import ml_dtypes
p = np.ones(5, ml_dtypes.bfloat16)
fs.SGD(lr=1.0).step(p, p.copy())
assert (p == 0).all()
fs.SGD(lr=1.0).step(p, np.ones(5, np.dtype(ml_dtypes.bfloat16, metadata={"a": 1})))
assert (p == -1).all()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
