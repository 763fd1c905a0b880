"""Optimizers that each update parts of tensors have, together, the bits of one that updates the whole tensors."""

import copy

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu
from fusedstep.core.parts import measures, squares_of_updates
from fusedstep.tools.verify import DTYPES, HALVES, difference

BLOCK = 1024
SHAPES = {"w": (70, 60), "b": (3,), "s": (), "none": (0, 2), "v": (2 * BLOCK,), "u": (5, 1031)}
STEPS = 4
COSINE = fs.schedules.cosine(0.01, steps=6)
BFLOAT16 = ml_dtypes.bfloat16

OPTIONS = {
    "plain": {},
    "clip_norm": {"clip_norm": 0.7, "grad_scale": 0.5},
    "clip_global_norm": {"clip_global_norm": 1.5, "overrides": {"b": {"clip_global_norm": 0.1, "grad_scale": 3.0}}},
    "skip_nonfinite": {"skip_nonfinite": True, "zero_grad": True},
    "around": {
        "ema": 0.9,
        "l1": 0.01,
        "weight_decay": 0.1,
        "decoupled": True,
        "bounds": (-1.0, 1.5),
        "clip_value": 1.0,
    },
    "schedules": {"lr": COSINE, "ema": 0.5, "overrides": {"[bw]": {"lr": 0.3}}},
    "functions": {"overrides": {fs.where(lambda key, p: p.ndim == 2): {"weight_decay": 0.3}, "s": {"frozen": True}}},
    "measure": {"measure": "update", "clip_global_norm": 2.0, "ema": 0.9},
}
NARROW = {
    "chance": {"rounding": "stochastic", "ema": 0.9, "clip_norm": 2.0},
    "same": {"rounding": "stochastic", "state_dtype": "same", "measure": "update"},
    "master": {"master_weights": True, "clip_global_norm": 1.0},
    "split": {"master_weights": "split", "ema": 0.9, "skip_nonfinite": True},
}


def tensors(dtype, seed):
    rng = np.random.default_rng(seed)
    made = {key: rng.standard_normal(shape) for key, shape in SHAPES.items()}
    if np.dtype(dtype).kind == "c":
        made = {key: x + 1j * rng.standard_normal(x.shape) for key, x in made.items()}
    return {key: np.asarray(x, dtype) for key, x in made.items()}


def flat(array):
    """Return a view of the elements as they lie in memory."""
    return array.reshape(-1, order="A")


class Rank:
    """One of several optimizers: it has all keys, and some blocks of the row of all blocks of all tensors."""

    def __init__(self, opt, wholes, rank, size):
        self.opt, self.origins, self.spans = opt, {}, {}
        per_block = {key: BLOCK // (2 if w.dtype.kind == "c" else 1) for key, w in wholes.items()}
        counts = {key: -(-w.size // per_block[key]) for key, w in wholes.items()}
        total, begin = sum(counts.values()), 0
        for key, count in counts.items():
            first, last = (min(max(total * r // size - begin, 0), count) for r in (rank, rank + 1))
            begin += count
            self.origins[key] = first * BLOCK if first < last else 0
            self.spans[key] = slice(*(min(n * per_block[key], wholes[key].size) for n in (first, last)))

    def parts(self, wholes):
        return {key: None if w is None else flat(w)[self.spans[key]] for key, w in wholes.items()}


def blocks(ranks, grads, params, key, unit=1.0):
    """Return the sums of squares of all blocks of a gradient, as they come together from the ranks."""
    parts = [rank.parts(grads)[key] for rank in ranks]
    return np.concatenate([_cpu.sums_of_blocks(part, params[key].dtype, unit) for part in parts])


def sums_of(ranks, grads, params):
    found = []
    for key in params:
        sum_, unit = 0.0, 1.0
        if grads.get(key) is not None:
            sum_ = _cpu.sum_of_sums(blocks(ranks, grads, params, key))
            if np.isinf(sum_) and params[key].dtype in (np.float64, np.complex128):
                unit = 2.0**600
                sum_ = _cpu.sum_of_sums(blocks(ranks, grads, params, key, unit))
        found.append((sum_, unit))
    return np.array(found)


def step(ranks, params, grads, **options):
    """Make a step with all ranks, and return the result, which is the same on each."""
    sums = sums_of(ranks, grads, params) if measures(ranks[0].opt._settings_with()) else None
    results = [
        rank.opt._step_parts(
            rank.parts(params), rank.parts(grads), origins=rank.origins, wholes=params, sums=sums, **options
        )
        for rank in ranks
    ]
    assert len(set(map(repr, results))) == 1  # NaN is equal as text
    result = results[0]
    if ranks[0].opt.measure == "update" and not result.skipped:
        shares = [squares_of_updates(rank.opt._progress) for rank in ranks]
        of_tensors = [_cpu.sum_of_sums(np.concatenate([share[key] for share in shares])) for key in shares[0]]
        norm = float(np.sqrt(_cpu.sum_of_sums(np.array(of_tensors))))
        result = fs.Result(result.grad_norm, result.skipped, result.nonfinite, norm)
    return result


def joined(ranks, part):
    """Return whole arrays of one kind, by key and name, made of those of the ranks."""
    found = [part(rank.opt) for rank in ranks]
    assert all(some.keys() == found[0].keys() for some in found)
    return {key: np.concatenate([some[key] for some in found]) for key in found[0]}


def states(opt):
    return {(key, name): array for key, some in opt.state.items() for name, array in some.items()}


def check(cls, options, dtype, size, grads_of=tensors, order="C"):
    """Make steps with whole tensors and with their parts on so many ranks, and compare all bits."""
    one = cls(**options)
    params = {key: np.asarray(p, order=order) for key, p in tensors(dtype, 0).items()}
    shared = {key: p.copy(order="A") for key, p in params.items()}
    ranks = [Rank(cls(**options), params, rank, size) for rank in range(size)]
    for i in range(STEPS):
        grads = {key: None if g is None else np.asarray(g, order=order) for key, g in grads_of(dtype, i + 1).items()}
        others = {key: None if g is None else g.copy(order="A") for key, g in grads.items()}
        result = one.step(params, grads, grad_scale=0.5)
        assert repr(step(ranks, shared, others, grad_scale=0.5)) == repr(result)
        present = [key for key, g in grads.items() if g is not None]
        assert difference([real(grads[key]) for key in present], [real(others[key]) for key in present]) == 0
    assert difference(list(map(real, params.values())), list(map(real, shared.values()))) == 0
    assert all(dict(rank.opt.t) == dict(one.t) for rank in ranks)
    compare(joined(ranks, states), states(one))
    compare(joined(ranks, lambda opt: dict(opt.ema.items())), dict(one.ema.items()))
    return one, ranks, params


def real(array):
    return flat(array).view(array.real.dtype)


def compare(found, expected):
    assert found.keys() == expected.keys()
    assert difference([real(found[key]) for key in expected], [real(array) for array in expected.values()]) == 0


def with_nan(dtype, seed):
    """Return gradients of which some are missing, and in a step one is not finite, in a block in the middle."""
    grads = tensors(dtype, seed)
    grads[("b", "v")[seed % 2]] = None
    if seed == 2:
        flat(grads["u"])[3 * BLOCK + 5] = np.nan
    return grads


@pytest.mark.parametrize("size", [1, 2, 3, 8, 30])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_have_the_bits_of_the_whole(options, size):
    for dtype in DTYPES:
        check(fs.Adam, options, dtype, size, with_nan)


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("options", (OPTIONS | NARROW).values(), ids=OPTIONS | NARROW)
def test_options_of_halves_have_the_bits_of_the_whole(options, size):
    for dtype in HALVES:
        if options.get("master_weights") != "split" or dtype == BFLOAT16:
            check(fs.Adam, options, dtype, size, with_nan)


@pytest.mark.parametrize("options", [{"clip_global_norm": 1.0, "ema": 0.9}, NARROW["chance"]])
@pytest.mark.parametrize("cls", fs.optimizers.classes())
def test_every_class_has_the_bits_of_the_whole(cls, options):
    for dtype in (*DTYPES, BFLOAT16):
        check(cls, options, dtype, 3)


def test_every_instruction_set_has_the_bits_of_the_whole(isa):
    check(fs.AdamW, OPTIONS["measure"], np.float32, 3)
    check(fs.AdamW, NARROW["same"], BFLOAT16, 3)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_tensors_have_the_bits_of_the_whole(dtype):
    check(fs.Adam, OPTIONS["measure"], dtype, 4)


def test_tensors_in_the_order_of_columns_have_the_bits_of_the_whole():
    check(fs.Adam, OPTIONS["clip_norm"] | {"rounding": "stochastic"}, BFLOAT16, 4, order="F")


def test_gradients_of_another_type_have_the_bits_of_the_whole():
    def doubles(_, seed):
        return tensors(np.float64, seed)

    check(fs.Adam, OPTIONS["clip_global_norm"], np.float32, 3, doubles)
    check(fs.Adam, OPTIONS["measure"], BFLOAT16, 3, doubles)


def test_squares_that_overflow_have_the_bits_of_the_whole():
    def huge(dtype, seed):
        return {key: g * 1e200 for key, g in tensors(dtype, seed).items()}

    one, *_ = check(fs.Momentum, {"clip_global_norm": 1.0, "skip_nonfinite": True}, np.float64, 3, huge)
    assert set(one.t.values()) == {STEPS}


def test_a_rule_of_ones_own_has_the_bits_of_the_whole():
    @fs.rule(states="m")
    def drift(g, m, *, lr=0.1, beta=0.9):
        m = beta * m + g
        return lr * m, m

    check(drift, {"clip_norm": 1.0, "ema": 0.9}, np.float32, 3)


def test_hyperparameters_may_change_between_steps():
    one, several = fs.Adam(lr=0.1), [fs.Adam(lr=0.1) for _ in range(2)]
    params = tensors(np.float32, 0)
    shared = copy.deepcopy(params)
    ranks = [Rank(opt, params, i, 2) for i, opt in enumerate(several)]
    for i, clip in enumerate([None, 1.0, 0.5, None]):
        for opt in (one, *several):
            opt.clip_norm, opt.lr = clip, 0.1 / (i + 1)
        grads = tensors(np.float32, i + 1)
        assert one.step(params, grads) == step(ranks, shared, grads)
    assert difference(list(params.values()), list(shared.values())) == 0


def test_arrays_may_move_and_cuts_may_change_where_there_are_no_states():
    opt = fs.SGD(rounding="stochastic", seed=3)
    other = fs.SGD(rounding="stochastic", seed=3)
    whole = np.linspace(0, 1, 4 * BLOCK).astype(BFLOAT16)
    parts = whole.copy()
    for i, first in enumerate([1, 2, 2, 3]):
        g = np.random.default_rng(i).standard_normal(whole.size).astype(BFLOAT16)
        opt.step({"p": whole}, {"p": g})
        parts = parts.copy()
        here = slice(first * BLOCK, None)
        begin, rest = parts.copy()[: here.start], {"p": parts[here]}
        other._step_parts(rest, {"p": g[here]}, origins={"p": here.start})
        assert (parts[here] == whole[here]).all()
        parts = whole.copy()
        del begin


def test_a_step_with_whole_tensors_never_takes_a_plan_of_parts():
    opt, one = fs.SGD(rounding="stochastic"), fs.SGD(rounding="stochastic")
    p, g = np.linspace(0, 1, BLOCK).astype(BFLOAT16), np.full(BLOCK, 0.001, BFLOAT16)
    q, params = p.copy(), {"p": p}
    for i in range(4):
        before = p.copy()
        opt._step_parts(params, {"p": g}, origins={"p": BLOCK})
        opt.t["p"], p[:] = i, before
        opt.step(params, {"p": g})
        one.step({"p": q}, {"p": g})
        assert (p == q).all()


def test_whole_states_make_the_file_of_one_process(tmp_path):
    one, ranks, params = check(fs.AdamW, {"lr": COSINE, "ema": 0.9}, np.float32, 3)
    state, ema = (
        {},
        {key: a.reshape(SHAPES[key]) for key, a in joined(ranks, lambda opt: dict(opt.ema.items())).items()},
    )
    for (key, name), array in joined(ranks, states).items():
        state.setdefault(key, {})[name] = array.reshape(SHAPES[key])
    whole = ranks[0].opt._with_arrays(state, ema)
    fs.save(tmp_path / "one.npz", one, params, extra=3)
    fs.save(tmp_path / "parts.npz", whole, params, extra=3)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "parts.npz").read_bytes()
    assert states(ranks[0].opt)["w", "m"].ndim == 1


def test_saved_states_are_cut_for_other_ranks(tmp_path):
    one, _, params = check(fs.AdamW, {"lr": COSINE, "ema": 0.9}, np.float32, 3)
    fs.save(tmp_path / "a.npz", one, params)
    shared = copy.deepcopy(params)
    loaded = fs.AdamW(lr=COSINE, ema=0.9)
    fs.load(tmp_path / "a.npz", loaded, shared)
    known, ranks = loaded.state_dict(), [Rank(fs.AdamW(lr=COSINE, ema=0.9), params, i, 4) for i in range(4)]
    for rank in ranks:
        by_name = {key: {n: rank.parts({key: a})[key] for n, a in some.items()} for key, some in known["state"].items()}
        rank.opt.load_state_dict(known | {"state": by_name, "ema": rank.parts(known["ema"])}, hyperparameters="saved")
    for i in range(3):
        grads = tensors(np.float32, 90 + i)
        one.step(params, grads)
        step(ranks, shared, grads)
    assert difference(list(params.values()), list(shared.values())) == 0
    compare(joined(ranks, states), states(one))


P = np.zeros(2 * BLOCK, np.float32)


def refused(options, error, text, **arguments):
    opt, params = fs.Adam(**options), {"p": P[:BLOCK].copy()}
    given = {"origins": {"p": 0}, "wholes": {"p": P}} | arguments
    with pytest.raises(error, match=text):
        opt._step_parts(params, {"p": np.ones(BLOCK, np.float32)}, **given)
    assert not opt.t
    assert (params["p"] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"origins": {"p": 5}}, ValueError, r"^origins\['p'\] is 5, expected a multiple of 1024 elements$"),
        ({"origins": {"p": -1024}}, ValueError, r"^origins\['p'\] is -1024, expected an integer >= 0$"),
        ({"origins": {"p": 0.0}}, TypeError, r"^origins\['p'\] is 0.0, expected an integer >= 0$"),
        ({"origins": {}}, ValueError, "^origins lacks 'p', expected the first element of each of params$"),
        ({"origins": {"p": 0, "q": 0}}, ValueError, "^origins has 'q', expected keys of params: 'p'$"),
        ({"origins": {"p": 2 * BLOCK}}, ValueError, r"^params\['p'\] ends at element 3072 of 2048, expected an end"),
        (
            {"wholes": {"p": np.zeros(2000)}, "origins": {"p": 1024}},
            ValueError,
            r"^params\['p'\] ends at element 2048 of",
        ),
        ({"wholes": {"q": P}}, ValueError, "^wholes has the keys 'q', expected those of params in their order: 'p'$"),
        ({"grad_scale": np.nan}, ValueError, "^grad_scale is nan"),
    ],
)
def test_parts_of_nothing_are_refused(arguments, error, text):
    refused({}, error, text, **arguments)


def test_an_end_between_blocks_is_refused():
    opt, p = fs.SGD(), np.zeros(1000, np.float32)
    with pytest.raises(ValueError, match=r"^params\['p'\] ends at element 1000 of 2048, expected an end of the tensor"):
        opt._step_parts({"p": p}, {"p": p.copy()}, origins={"p": 0}, wholes={"p": P})


@pytest.mark.parametrize(
    "options", [{"clip_norm": 1.0}, {"skip_nonfinite": True}, {"overrides": {"p": {"clip_global_norm": 1}}}]
)
@pytest.mark.parametrize(
    ("sums", "error", "text"),
    [
        (None, ValueError, "^sums is None, expected the sums of squares of the gradients of whole tensors"),
        (np.ones(2), ValueError, r"^sums has shape \(2,\), expected \(1, 2\)"),
        (np.ones((2, 2)), ValueError, r"^sums has shape \(2, 2\), expected \(1, 2\)"),
        (np.ones((1, 2), np.float32), TypeError, "^sums is .*expected a float64 array"),
        ([[1.0, 1.0]], TypeError, "^sums is .*expected a float64 array"),
        (np.array([[-1.0, 1.0]]), ValueError, r"^sums\[0\] is \(-1.0, 1.0\), expected a sum of squares, not negative"),
        (np.array([[1.0, 2.0]]), ValueError, r"^sums\[0\] is \(1.0, 2.0\), expected .* 1.0 or 2.0\*\*600 as its unit"),
    ],
)
def test_sums_that_do_not_fit_are_refused(options, sums, error, text):
    refused(options, error, text, sums=sums)


def test_functions_need_whole_tensors():
    refused(
        OPTIONS["functions"], ValueError, "^wholes is None, expected whole tensors, of which the functions", wholes=None
    )


def test_whole_tensors_need_no_memory_of_their_own():
    opt, p = (
        fs.Adam(overrides={fs.where(lambda key, p: p.shape == (3, BLOCK)): {"lr": 1.0}}),
        np.zeros(BLOCK, np.float32),
    )
    stand_in = np.broadcast_to(np.float32(0), (3, BLOCK))
    opt._step_parts({"p": p}, {"p": p + 1}, origins={"p": BLOCK}, wholes={"p": stand_in})
    assert (p == -1).all()


def test_units_of_sums():
    x = np.full(BLOCK + 1, 1e200)
    assert np.isinf(_cpu.sums_of_blocks(x)).all()
    assert (_cpu.sums_of_blocks(x, unit=2.0**600) == _cpu.sums_of_blocks(x / 2.0**600)).all()
    assert (_cpu.sums_of_blocks(x / 1e190, np.float32) == _cpu.sums_of_blocks((x / 1e190).astype(np.float32))).all()
    for arguments in ({"unit": 2.0}, {"param": np.float32, "unit": 2.0**600}):
        with pytest.raises(
            ValueError, match=r"^unit is .*, expected 1.0, or 2.0\*\*600 where squares of float64 overflow"
        ):
            _cpu.sums_of_blocks(x, **arguments)
    with pytest.raises(TypeError, match=r"^param is int64, expected the dtype of a parameter"):
        _cpu.sums_of_blocks(x, np.int64)
