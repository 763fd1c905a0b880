"""A step whose gradients are sums of several arrays has the bits of a step with the sums, which are never written."""

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu
from fusedstep.core.parts import squares_of_updates
from fusedstep.tools.verify import difference

BFLOAT16 = ml_dtypes.bfloat16
SIZES = {"w": 5000, "b": 3, "none": 0, "v": 4096, "u": 1025}
OPTIONS = {
    "plain": {},
    "clip_norm": {"clip_norm": 0.7},
    "clip_global_norm": {"clip_global_norm": 1.5, "overrides": {"b": {"lr": 0.1}}},
    "around": {"ema": 0.9, "l1": 0.01, "weight_decay": 0.1, "bounds": (-1.0, 1.5), "clip_value": 1.0},
    "measure": {"measure": "update", "clip_global_norm": 2.0},
    "frozen": {"overrides": {"w": {"frozen": True}}, "ema": 0.5},
}
TYPES = {  # of a parameter, and of the arrays that are added up
    "float32": (np.float32, [np.float32]),
    "float64": (np.float64, [np.float64]),
    "bfloat16": (BFLOAT16, [BFLOAT16]),
    "mixed": (np.float32, [BFLOAT16, np.float32, np.float16]),
}


def gradients(rng, types, count):
    numbers = {key: rng.standard_normal((count, size)) * 10.0 ** rng.integers(-3, 2) for key, size in SIZES.items()}
    return [{key: some[i].astype(types[i % len(types)]) for key, some in numbers.items()} for i in range(count)]


def sums_of(parts, key, dtype, unit=1.0):
    return _cpu.sum_of_sums(_cpu.sums_of_blocks([part[key] for part in parts], dtype, unit))


def summed(parts, key, dtype):
    out = np.empty(SIZES[key], np.float64 if dtype == np.float64 else np.float32)
    _cpu.sum_parts([part[key] for part in parts], out)
    return out


class Pair:
    """An optimizer that adds up gradients in its steps, and one that is given the sums."""

    def __init__(self, dtype, **options):
        rng = np.random.default_rng(5)
        self.params = [{key: rng.standard_normal(size).astype(dtype) for key, size in SIZES.items()}]
        self.params.append({key: p.copy() for key, p in self.params[0].items()})
        self.opts = [fs.AdamW(lr=0.1, **options) for _ in range(2)]
        self.dtype = dtype

    def step(self, parts, **options):
        inside, outside = self.opts
        sums = [(sums_of(parts, key, self.dtype), 1.0) for key in SIZES]
        results = [
            inside._step_parts(
                self.params[0],
                parts[0],
                origins=dict.fromkeys(SIZES, 0),
                wholes=self.params[0],
                sums=np.array(sums),
                others={key: [part[key] for part in parts[1:]] for key in SIZES},
                **options,
            ),
            outside.step(self.params[1], {key: summed(parts, key, self.dtype) for key in SIZES}, **options),
        ]
        squares = squares_of_updates(inside._progress)
        assert {key: s.tobytes() for key, s in squares.items()} == {
            key: s.tobytes() for key, s in squares_of_updates(outside._progress).items()
        }
        assert results[0].grad_norm == results[1].grad_norm
        assert results[0].skipped == results[1].skipped
        kept = [[*p.values(), *[a for some in o.state.values() for a in some.values()]] for p, o in self]
        assert difference(*kept) == 0

    def __iter__(self):
        return zip(self.params, self.opts, strict=True)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("types", TYPES.values(), ids=TYPES)
def test_sums_are_those_of_arrays(types, options, isa):
    rng = np.random.default_rng(3)
    pair = Pair(types[0], **options)
    for count in (2, 1, 3, 9):
        pair.step(gradients(rng, types[1], count), grad_scale=1 / count)


@pytest.mark.parametrize("cls", fs.optimizers.classes())
def test_every_class(cls):
    rng = np.random.default_rng(4)
    pair = Pair(np.float32)
    pair.opts = [cls(), cls()]
    for count in (2, 3):
        pair.step(gradients(rng, [np.float32], count))


def test_threads_have_the_bits_of_one():
    rng = np.random.default_rng(6)
    before = _cpu.num_threads()
    n, found = 300_000, []
    parts = rng.standard_normal((3, n)).astype(np.float32)
    try:
        for threads in (1, 3):
            _cpu.set_num_threads(threads)
            p, opt = np.ones(n, np.float32), fs.Adam(clip_global_norm=1.0)
            sums = _cpu.sums_of_blocks(list(parts))
            opt._step_parts(
                {"p": p},
                {"p": parts[0]},
                origins={"p": 0},
                sums=np.array([[_cpu.sum_of_sums(sums), 1.0]]),
                others={"p": [*parts[1:]]},
            )
            found.append((p.tobytes(), sums.tobytes()))
    finally:
        _cpu.set_num_threads(before)
    assert found[0] == found[1]


def test_large_doubles_are_measured_in_another_unit():
    parts = [np.full(3000, 1e200), np.full(3000, 2e200)]
    total = np.empty(3000)
    _cpu.sum_parts(parts, total)
    for unit in (1.0, 2.0**600):
        assert (_cpu.sums_of_blocks(parts, None, unit) == _cpu.sums_of_blocks(total, None, unit)).all()


# What is refused, before anything is written.


def refused(error, match, others, first=None, opt=None, sums=None):
    p = np.ones(4, np.float32)
    opt = fs.SGD() if opt is None else opt
    first = np.ones(4, np.float32) if first is None else first
    others = others(p) if callable(others) else others
    with pytest.raises(error, match=match):
        opt._step_parts({"p": p}, {"p": first}, origins={"p": 0}, others=others, sums=sums)
    assert (p == 1).all()
    assert not opt.t


def test_arrays_that_cannot_be_added_are_refused():
    one = np.ones(4, np.float32)
    refused(ValueError, r"others\['p'\] has shape \(3,\)", {"p": [one[:3]]})
    refused(TypeError, r"others\['p'\] is float64, expected float32", {"p": [np.ones(4)]})
    refused(ValueError, r"others\['p'\] is not contiguous", {"p": [np.ones(8, np.float32)[::2]]})
    refused(ValueError, r"others\['p'\] overlaps params\['p'\] in memory", lambda p: {"p": [p]})
    refused(ValueError, r"grads\['p'\] does not lie in memory like", {"p": [one]}, np.ones(8, np.float32)[::2])
    refused(TypeError, r"grads\['p'\] has another type", {"p": [one]}, np.ones(4))
    refused(ValueError, r"grads\['p'\] is the sum of several arrays", {"p": [one]}, opt=fs.SGD(zero_grad=True))
    with pytest.raises(ValueError, match="array is empty"):
        _cpu.sums_of_blocks([])
    with pytest.raises(TypeError, match=r"array\[1\] is float64, expected float32"):
        _cpu.sums_of_blocks([one, np.ones(4)])


def test_a_plain_step_after_a_sum():
    p, q = np.ones(5000, np.float32), np.ones(5000, np.float32)
    g = [np.full(5000, k, np.float32) for k in (1, 2, 3)]
    opt, plain = fs.Adam(), fs.Adam()
    for k in range(3):
        opt._step_parts({"p": p}, {"p": g[0]}, origins={"p": 0}, others={"p": [g[1], g[2]]} if k == 1 else None)
        plain.step({"p": q}, {"p": g[0] + g[1] + g[2] if k == 1 else g[0]})
        assert p.tobytes() == q.tobytes()
