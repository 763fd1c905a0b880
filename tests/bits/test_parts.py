"""A tensor that is cut into parts at multiples of 1024 elements has the bits of the whole: random bits and norms."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu
from fusedstep.core.progress import noise_id

CUTS = (0, 1024, 3072, 5000)
TYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def normal(seed, dtype):
    return np.random.default_rng(seed).standard_normal(CUTS[-1]).astype(dtype)


def parts(array):
    return {f"part {i}": array[begin:end].copy() for i, (begin, end) in enumerate(itertools.pairwise(CUTS))}


def joined(arrays):
    return b"".join(np.asarray(array).tobytes() for array in arrays)


class PartsOfOne(_cpu.Plan):
    """A plan whose tensors are the parts of a tensor with the key "whole"."""

    def bind(self, kept, clocks, clock_of, noise_ids):
        super().bind(kept, clocks, clock_of, np.full_like(noise_ids, noise_id("whole")), list(CUTS[:-1]))


def run(params, grads, **options):
    opt = fs.Adam(rounding="stochastic", ema=0.9, **options)
    for grad in grads:
        opt.step(params, grad)
    return opt


@pytest.mark.parametrize("state_dtype", ["float32", "same"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_random_bits_count_from_the_origin_of_a_part(monkeypatch, dtype, state_dtype, isa):
    p, grads = normal(0, dtype), [normal(seed, dtype) for seed in (1, 2, 3)]
    whole, cut = {"whole": p.copy()}, parts(p)
    one = run(whole, [{"whole": g} for g in grads], state_dtype=state_dtype)
    monkeypatch.setattr(_cpu, "Plan", PartsOfOne)
    several = run(cut, [parts(g) for g in grads], state_dtype=state_dtype)
    assert joined(cut.values()) == joined(whole.values())
    assert joined(several.ema.values()) == joined(one.ema.values())
    for name in ("m", "v"):
        assert joined(states[name] for states in several.state.values()) == joined([one.state["whole"][name]])


def test_random_bits_count_from_the_origin_on_a_gpu(monkeypatch, cupy):
    p, grads = normal(0, np.float16), [normal(seed, np.float16) for seed in (1, 2)]
    whole = {"whole": cupy.asarray(p)}
    cut = {key: cupy.asarray(part) for key, part in parts(p).items()}
    run(whole, [{"whole": cupy.asarray(g)} for g in grads])
    monkeypatch.setattr(_cpu, "Plan", PartsOfOne)
    run(cut, [{key: cupy.asarray(part) for key, part in parts(g).items()} for g in grads])
    assert joined(part.get() for part in cut.values()) == whole["whole"].get().tobytes()


@pytest.mark.parametrize("origin", [-1024, 1, 1023, 1536])
def test_an_origin_that_is_no_block_of_the_norm_is_refused(monkeypatch, origin):
    class Misplaced(_cpu.Plan):
        def bind(self, *args):
            super().bind(*args, [origin])

    monkeypatch.setattr(_cpu, "Plan", Misplaced)
    p = np.ones(3)
    with pytest.raises(ValueError, match=f"an origin is {origin}, expected a multiple of 1024 elements"):
        fs.SGD().step(p, p.copy())
    assert (p == 1).all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_norm_is_made_of_the_sums_of_all_blocks(dtype, threads, isa):
    fs.set_num_threads(threads)
    g = normal(5, dtype)
    sums = _cpu.sums_of_blocks(g)
    assert sums.shape == (5,)
    assert joined(map(_cpu.sums_of_blocks, parts(g).values())) == sums.tobytes()
    found = fs.SGD(clip_global_norm=1.0).step(np.zeros(g.size, dtype), g).grad_norm
    kept = sums.copy()
    assert np.sqrt(_cpu.sum_of_sums(sums)) == found
    assert sums.tobytes() == kept.tobytes()


def test_sums_of_nothing_and_of_many_levels():
    assert _cpu.sums_of_blocks(np.zeros((0, 3))).shape == (0,)
    assert _cpu.sum_of_sums(np.zeros(0)) == 0
    assert _cpu.sum_of_sums(np.ones(1024 * 1024 + 1)) == 1024 * 1024 + 1


def test_sums_are_those_of_the_elements_row_by_row():
    x = np.random.default_rng(3).standard_normal((70, 50))
    for strided in (x.T, x[::-1, ::2], np.broadcast_to(x[0], (60, 50)), x.astype(np.float32).T):
        assert (_cpu.sums_of_blocks(strided) == _cpu.sums_of_blocks(strided.copy())).all()


def test_sums_of_what_is_no_array_are_refused():
    for bad in (3, "g", None, np.ones(3, np.int64)):
        with pytest.raises((TypeError, ValueError), match=r"^array is "):
            _cpu.sums_of_blocks(bad)
