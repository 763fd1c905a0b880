"""Masters of half-precision parameters, and the dtypes of states and averages."""

import copy

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import reference
from fusedstep.tools import verify

BF16 = np.dtype(ml_dtypes.bfloat16)
F16, F32 = np.dtype(np.float16), np.dtype(np.float32)
HALVES = pytest.mark.parametrize("half", [F16, BF16], ids=str)


@pytest.fixture(autouse=True)
def _quiet():
    """Casts of infinities and signaling NaN warn, and these tests cast them all the time."""
    with np.errstate(all="ignore"):
        yield


def same(found, expected):
    assert verify.difference([found], [expected]) == 0


def test_small_updates_are_lost_to_nearest_and_kept_by_chance_or_a_master():
    g = np.ones(10_000, BF16)
    ends = {}
    for name, options in {
        "nearest": {},
        "stochastic": {"rounding": "stochastic"},
        "master": {"master_weights": True},
        "split": {"master_weights": "split"},
    }.items():
        p = np.ones(10_000, BF16)
        opt = fs.SGD(lr=1e-4, **options)
        for _ in range(1000):
            opt.step(p, g)
        ends[name] = float(p.astype(np.float64).mean())
    assert ends["nearest"] == 1
    assert abs(ends["stochastic"] - 0.9) < 2e-3
    assert abs(ends["master"] - 0.9) < 2e-3
    assert ends["master"] == ends["split"]


@HALVES
@pytest.mark.parametrize("cls", fs.optimizers.classes())
def test_a_master_is_the_float32_run(cls, half):
    rng = np.random.default_rng(0)
    start = rng.standard_normal(700).astype(half)
    p, wide = start.copy(), start.astype(np.float32)
    opt, twin = cls(lr=0.01, master_weights=True), cls(lr=0.01)
    for _ in range(10):
        g = rng.standard_normal(700).astype(half)
        opt.step(p, g)
        twin.step(wide, g.astype(np.float32))
        same(opt.state[0]["master"], wide)
        same(p, wide.astype(half))


@pytest.mark.parametrize("cls", fs.optimizers.classes())
def test_parameter_and_remainder_are_the_float32_run(cls):
    rng = np.random.default_rng(0)
    start = rng.standard_normal(700).astype(BF16)
    p, wide = start.copy(), start.astype(np.float32)
    opt, twin = cls(lr=0.01, master_weights="split"), cls(lr=0.01)
    for _ in range(10):
        g = rng.standard_normal(700).astype(BF16)
        opt.step(p, g)
        twin.step(wide, g.astype(np.float32))
        same(reference.storage.joined(p, opt.state[0]["remainder"]), wide)
        near = wide.astype(BF16)
        assert (p == near)[wide.view(np.uint32) & 0xFFFF != 0x8000].all()


def test_what_a_caller_writes_into_a_parameter_counts(isa):
    for options in ({"master_weights": True}, {"master_weights": "split"}):
        p, g = np.ones(100, BF16), np.full(100, 1e-3, BF16)
        opt = fs.SGD(lr=1.0, **options)
        opt.step(p, g)
        p[:50] = 5
        p[50:60] = 0
        p[60:70] = -0.0
        opt.step(p, np.zeros(100, BF16))
        assert (p[:50] == 5).all()
        assert (p[50:70] == 0).all()
        master = opt.state[0].get("master")
        if master is None:
            master = reference.storage.joined(p, opt.state[0]["remainder"])
        assert (abs(master[:50] - 5) <= 5 * 2.0**-8).all()
        assert (abs(master[50:70]) < 1e-38).all()
        assert (master[70:] == np.float32(1) - np.float32(g[0])).all()


def test_an_infinity_or_a_zero_that_a_caller_writes_stays_one(isa):
    p = np.ones(64, BF16)
    opt = fs.SGD(lr=1e-3, master_weights="split")
    opt.step(p, np.linspace(-1, 1, 64).astype(BF16))
    assert len(np.unique(opt.state[0]["remainder"] >> 15)) == 2
    for value in (np.inf, -np.inf, 0.0):
        p[::2] = value
        opt.step(p, np.zeros(64, BF16))
        kept = p[::2].astype(np.float32)
        assert ((kept == value) | (abs(kept) > 3.38e38)).all()  # the largest numbers round up to infinity


SWITCHES = {
    "from the start": [("a", {"master_weights": True}), ("ab", {}), ("ab", {})],
    "on": [("ab", {}), ("a", {"master_weights": True}), ("ab", {}), ("ab", {})],
    "on in a step without gradients": [("ab", {}), ("", {"master_weights": "split"}), ("ab", {}), ("ab", {})],
    "off and on": [
        ("ab", {"master_weights": True}),
        ("ab", {}),
        ("a", {"master_weights": False}),
        ("ab", {}),
        ("ab", {"master_weights": True}),
        ("ab", {}),
    ],
    "by overrides": [
        ("ab", {"overrides": {"a": {"master_weights": True}}}),
        ("ab", {"overrides": {"b": {"master_weights": True}}}),
        ("ab", {"overrides": {"b": {"master_weights": "split"}}}),
        ("ab", {}),
    ],
}


@pytest.mark.parametrize("steps", SWITCHES.values(), ids=SWITCHES)
def test_every_parameter_has_the_master_that_it_should_have(steps):
    rng = np.random.default_rng(0)
    found, wanted = ({key: np.ones(50, BF16) for key in "ab"} for _ in range(2))
    opt, ref = fs.SGD(lr=1e-3), reference.SGD(lr=1e-3)
    for present, options in steps:
        for name, value in options.items():
            setattr(opt, name, value)
            setattr(ref, name, value)
        grads = {key: rng.standard_normal(50).astype(BF16) for key in present}
        opt.step(found, grads)
        ref.step(wanted, grads)
        assert verify.difference(list(found.values()), list(wanted.values())) == 0
        for key in present:
            assert opt.state[key].keys() == ref.state[key].keys()
            for name, array in opt.state[key].items():
                same(array, ref.state[key][name])


def test_a_parameter_that_becomes_half_precision_gets_its_master():
    opt = fs.Adam(master_weights=True)
    opt.step(np.ones(5, F32), np.ones(5, F32))
    p = np.ones(5, BF16)
    opt.step(p, p.copy())
    assert opt.state[0].keys() == {"m", "v", "master"}
    opt = fs.SGD()
    params = [np.ones(5, BF16), np.ones(5, F16)]
    opt.step(params, [params[0].copy(), None])
    opt.master_weights = "split"
    opt.step(params, [params[0].copy(), None])
    with pytest.raises(TypeError, match=r"^params\[1\] is float16, expected bfloat16 with"):
        opt.step(params, [p.copy() for p in params])


def test_masters_come_and_go():
    p, g = np.ones(64, BF16), np.full(64, 0.3, BF16)
    q = p.copy()
    opt, ref = fs.Adam(), reference.Adam()
    for masters in (False, True, "split", True, False, "split", "split"):
        for some, array in ((opt, p), (ref, q)):
            some.master_weights = masters
            some.step(array, g)
        same(p, q)
    opt.overrides = {0: {"master_weights": False}}
    ref.master_weights = False
    opt.step(p, g)
    ref.step(q, g)
    same(p, q)


def test_only_half_precision_has_masters():
    for dtype in (np.float32, np.float64):
        opt = fs.Adam(master_weights=True)
        opt.step(np.ones(5, dtype), np.ones(5, dtype))
        assert opt.state[0].keys() == {"m", "v"}
    opt = fs.Adam(master_weights="split")
    p = np.ones(5, F16)
    with pytest.raises(TypeError, match=r"^params\[0\] is float16, expected bfloat16 with master_weights='split'"):
        opt.step(p, p.copy())
    assert (p == 1).all()
    assert not opt.t


@HALVES
@pytest.mark.parametrize("cls", fs.optimizers.classes())
def test_state_dtypes(cls, half):
    for choice, expected in (("float32", F32), ("same", half)):
        opt = cls(state_dtype=choice, ema=0.9)
        opt.step(np.ones(5, half), np.ones(5, half))
        assert {a.dtype for a in (*opt.state[0].values(), opt.ema[0])} == {expected}
        for dtype in (F32, np.dtype(np.float64)):
            opt = cls(state_dtype=choice)
            opt.step(np.ones(5, dtype), np.ones(5, dtype))
            assert {a.dtype for a in opt.state[0].values()} <= {dtype}


def test_states_that_are_there_keep_their_dtype():
    p = np.ones(5, BF16)
    opt = fs.Adam(state_dtype="same")
    opt.step(p, p.copy())
    opt.state_dtype, opt.amsgrad, opt.ema = "float32", True, 0.9
    opt.step(p, p.copy())
    assert {a.dtype for a in (*opt.state[0].values(), opt.ema[0])} == {BF16}
    found, wanted = np.ones(40, BF16), np.ones(40, BF16)
    opt, ref = (module.SGD(ema=0.9, state_dtype="same") for module in (fs, reference))
    for choice in ("same", "float32", "same"):
        opt.state_dtype = ref.state_dtype = choice
        opt.step(found, np.full(40, 0.3, BF16))
        ref.step(wanted, np.full(40, 0.3, BF16))
        assert opt.ema[0].dtype == ref.ema[0].dtype == BF16
        same(opt.ema[0], ref.ema[0])


def test_accumulators_start_as_float32_does():
    for start in (0.1, 1e-9, 1e30):
        opt = fs.Adagrad(initial_accumulator=start, state_dtype="same")
        opt.step(np.ones(1, F16), np.zeros(1, F16))
        assert opt.state[0]["a"][0] == F16.type(np.float32(start))


@pytest.mark.parametrize(("master", "name"), [(True, "master"), ("split", "remainder")])
def test_overlap_with_a_master_is_refused(master, name):
    p = np.ones(8, BF16)
    opt = fs.SGD(master_weights=master)
    opt.step(p, p.copy())
    inside = opt.state[0][name].view(BF16)[:8]
    before = p.copy()
    with pytest.raises(ValueError, match=rf"^state\[0\]\['{name}'\] overlaps grad in memory"):
        opt.step(p, inside)
    with pytest.raises(ValueError, match=rf"^state\[0\]\['{name}'\] overlaps param in memory"):
        opt.step(inside, p.copy())
    same(p, before)
    assert opt.t[0] == 1


@HALVES
def test_a_parameter_that_was_changed_a_little_counts(half, isa):
    """Parameters are changed by their last bit, by their sign, and where parameter and master are 0."""
    p = np.array([1, 1.5, -2, 0, 300, 1e-4] * 20, half)
    g = (p.astype(np.float64) * 2.0**-14 + 1e-9).astype(np.float32)  # less than half a unit of p
    opt, ref = (module.SGD(lr=1.0, master_weights=True) for module in (fs, reference))
    q = p.copy()
    for some, array in ((opt, p), (ref, q)):
        some.step(array, g)
        bits = array.view(np.uint16)
        bits[:40] ^= 0x8000
        bits[40:80] ^= 1
        written = array.copy()
        some.step(array, np.zeros(array.size, half))
        same(array[:80], written[:80])
    same(p, q)
    same(opt.state[0]["master"], ref.state[0]["master"])
    same(opt.state[0]["master"][:80], p[:80].astype(np.float32))
    assert (opt.state[0]["master"][80:] != p[80:].astype(np.float32)).any()


@pytest.mark.parametrize(
    ("master", "name", "others"),
    [(True, "master", [F32, np.float64]), ("split", "remainder", [F32, np.float64, F16])],
)
def test_a_parameter_must_fit_its_master_as_soon_as_it_has_a_gradient(master, name, others):
    for other in others:
        opt = fs.SGD(master_weights=master)
        opt.step({"a": np.ones(8, BF16)}, {"a": np.ones(8, BF16)})
        kept = opt.state["a"][name].copy()
        params, b = {"a": np.ones(8, other), "b": np.ones(8, BF16)}, np.ones(8, BF16)
        opt.step(params, {"b": b})
        before = params["b"].copy()
        with pytest.raises(TypeError, match=r"^params\['a'\] is .*, expected (half precision|bfloat16) "):
            opt.step(params, {"a": np.ones(8, other), "b": b})
        assert (params["a"] == 1).all()
        same(params["b"], before)
        assert opt.t == {"a": 1, "b": 1}
        same(opt.state["a"][name], kept)


def test_states_are_of_the_dtype_of_an_average_that_is_there():
    p = np.ones(3, BF16)
    opt = fs.Adam(ema=0.9)
    opt.load_state_dict({"t": {0: 0}, "state": {}, "ema": {0: np.ones(3, BF16)}})
    opt.step(p, p.copy())
    assert {a.dtype for a in (*opt.state[0].values(), opt.ema[0])} == {BF16}


@pytest.mark.parametrize(("half", "tie"), [(F16, 1 + 2.0**-11), (BF16, 1 + 2.0**-8)], ids=str)
def test_accumulators_are_rounded_to_float32_first(half, tie):
    start = tie + 2.0**-40  # a tie once it is float32, so rounded to even; rounded directly, it would go up
    opts = [module.Adagrad(initial_accumulator=start, state_dtype="same") for module in (fs, reference)]
    for opt in opts:
        opt.step(np.ones(1, half), np.zeros(1, half))
    assert [opt.state[0]["a"].tolist() for opt in opts] == [[1.0], [1.0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("master", "name"), [(True, "master"), ("split", "remainder")])
def test_a_new_step_refuses_a_parameter_that_has_outgrown_its_master(master, name, dtype):
    opt = fs.SGD(master_weights=master)
    opt.step([np.ones(8, BF16)], [np.ones(8, BF16)])
    p, more = np.ones(8, dtype), np.ones(3, BF16)
    message = rf"^params\[0\] is {np.dtype(dtype)}, expected half precision like it had when its {name} was made$"
    with pytest.raises(TypeError, match=message):
        opt.step([p, more], [p.copy(), more.copy()])
    assert (p == 1).all()
    assert opt.t == {0: 1}


def test_accumulators_that_are_too_large_are_infinite_and_nobody_is_warned():
    with np.errstate(all="warn"):
        opt = fs.Adagrad(initial_accumulator=1e30, state_dtype="same")
        opt.step(np.ones(1, F16), np.zeros(1, F16))
    assert np.isinf(opt.state[0]["a"][0])


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("state_dtype", ["float32", "same"])
@pytest.mark.parametrize("master", [True, "split"])
def test_an_optimizer_with_masters_goes_back_to_where_it_was(master, state_dtype, ema):
    def steps():
        for i in range(3):
            opt.step(p, np.random.default_rng(i).standard_normal(20).astype(BF16))

    p = np.ones(20, BF16)
    opt = fs.Adam(0.01, master_weights=master, state_dtype=state_dtype, ema=ema)
    steps()
    saved, start = copy.deepcopy(opt.state_dict()), p.copy()
    ends = []
    for _ in range(2):
        opt.load_state_dict(saved)
        p[...] = start
        steps()
        ends.append([p.copy(), *(a.copy() for a in opt.state[0].values()), *(a.copy() for a in opt.ema.values())])
    assert [a.tobytes() for a in ends[0]] == [a.tobytes() for a in ends[1]]


@pytest.mark.parametrize("state_dtype", ["float32", "same"])
@pytest.mark.parametrize("master", [True, "split"])
def test_an_average_that_comes_later_has_not_the_dtype_of_the_master(master, state_dtype):
    p, q = np.ones(8, BF16), np.ones(8, BF16)
    opt, ref = (module.SGD(master_weights=master, state_dtype=state_dtype) for module in (fs, reference))
    for ema in (None, 0.5, 0.5):
        opt.ema = ref.ema_decay = ema
        for some, array in ((opt, p), (ref, q)):
            some.step(array, np.full(8, 0.3, np.float32))
    assert opt.ema[0].dtype == (F32 if state_dtype == "float32" else BF16)
    same(p, q)
    same(opt.ema[0], ref.ema[0])


def test_overrides_choose_masters_state_dtypes_and_rounding_by_parameter():
    overrides = {
        "b": {"master_weights": True},
        "c": {"master_weights": "split", "state_dtype": "same"},
        "d": {"master_weights": False, "rounding": "stochastic"},
        "e": {"master_weights": False, "rounding": "stochastic", "seed": 7},
    }
    for general in (False, True, "split"):
        opt, ref = (module.Adam(master_weights=general, overrides=overrides, ema=0.9) for module in (fs, reference))
        found, wanted = ({key: np.ones(100, BF16) for key in "abcde"} for _ in range(2))
        for i in range(3):
            g = np.random.default_rng(i).standard_normal(100).astype(BF16)
            opt.step(found, {key: g.copy() for key in "abcde"})
            ref.step(wanted, {key: g.copy() for key in "abcde"})
        assert verify.difference(list(found.values()), list(wanted.values())) == 0
        own = {False: set(), True: {"master"}, "split": {"remainder"}}
        choices = {"a": general, "b": True, "c": "split", "d": False, "e": False}
        assert {key: set(opt.state[key]) - {"m", "v"} for key in "abcde"} == {k: own[c] for k, c in choices.items()}
        assert {key: opt.state[key]["m"].dtype for key in "abcde"} == dict.fromkeys("abde", F32) | {"c": BF16}
        assert verify.difference([found["d"]], [found["e"]]) > 0


def test_masters_come_and_go_by_overrides():
    p, q = np.ones(64, BF16), np.ones(64, BF16)
    opt, ref = fs.Adam(), reference.Adam()
    g = np.full(64, 0.3, BF16)
    for master in (False, True, "split", True, False, "split"):
        opt.overrides = {0: {"master_weights": master}}
        ref.master_weights = master
        for some, array in ((opt, p), (ref, q)):
            some.step(array, g)
        same(p, q)
        assert set(opt.state[0]) - {"m", "v"} == {False: set(), True: {"master"}, "split": {"remainder"}}[master]
