"""Steps of several ranks: parameters, states and results have the bits of one process, whatever the options."""

import threading

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import distributed
from fusedstep.distributed import gradients
from fusedstep.distributed.tree import parts_of
from tests.distributed.synchronous_runs import PARTS, Run, adamw, assert_equal, parameters, values

BF16 = ml_dtypes.bfloat16
F32 = np.float32
OPTIONS = [
    {"clip_global_norm": 0.5},
    {"clip_norm": 0.1},
    {"clip_value": 0.01, "l1": 1e-3},
    {"ema": 0.9, "bounds": (-0.5, 0.5)},
    {"skip_nonfinite": True},
    {"maximize": True, "weight_decay": 0.1},
    {"lr": fs.schedules.cosine(1e-2, 3)},
    {"overrides": {"b": {"weight_decay": 0.0}, "V": {"lr": 0.5, "clip_norm": 0.2}}},
    {"overrides": {fs.where(lambda key, p: p.ndim < 2): {"lr": 0.5}}},
    {"overrides": {"W": {"frozen": True}}},
    {"measure": "update", "clip_norm": 0.2},
    {"measure": "update", "skip_nonfinite": True, "overrides": {"W": {"frozen": True}}, "ema": 0.5},
]


@pytest.mark.parametrize("size", range(1, 9))
def test_any_number_of_ranks(size):
    assert_equal(Run(adamw(clip_global_norm=1.0, ema=0.9)), size)


@pytest.mark.parametrize("cls", fs.optimizers.classes())
def test_every_class(cls):
    assert_equal(Run(cls), 3)


@pytest.mark.parametrize("options", OPTIONS, ids=map(str, range(len(OPTIONS))))
def test_options(options):
    assert_equal(Run(lambda: fs.AdamW(**{"lr": 1e-2, **options})), 3)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, BF16, np.complex64], ids=lambda dtype: np.dtype(dtype).name)
def test_types(dtype):
    assert_equal(Run(adamw(clip_global_norm=0.5), lambda: parameters(dtype)), 3)


@pytest.mark.parametrize(
    "options",
    [
        {"master_weights": True},
        {"master_weights": "split"},
        {"rounding": "stochastic", "seed": 5},
        {"state_dtype": "same"},
    ],
    ids=repr,
)
def test_options_of_half_precision(options):
    assert_equal(Run(adamw(**options), lambda: parameters(BF16)), 3)


def test_gradients_of_another_type_than_their_parameters():
    assert_equal(Run(adamw(), grad_dtype=BF16), 3)
    assert_equal(Run(adamw(), lambda: parameters(np.float64), grad_dtype=np.float64), 2)


@pytest.mark.parametrize("at", ["first", "last"])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_gradient_that_is_not_finite(bad, at):
    def change(grads, where):
        if where == (1, 5):
            grads["W"][0 if at == "first" else -1] = bad
        return grads

    assert_equal(Run(adamw(skip_nonfinite=True, clip_global_norm=1.0), change=change), 3)


def in_pairs(grads):
    """Return pairs in another order than that of the parameters, as a backward pass does."""
    return iter(sorted(grads.items(), key=lambda pair: hash(pair[1].tobytes()) if pair[1] is not None else 0))


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("options", [{}, {"grad_dtype": BF16}, {"exchange_dtype": "bfloat16"}], ids=repr)
def test_gradients_that_are_sent_while_they_come(size, options, monkeypatch):
    monkeypatch.setattr(gradients, "_BUCKET", 20_000)  # so that there are several
    assert_equal(Run(adamw(clip_global_norm=0.5, ema=0.9), given=in_pairs, **options), size)


def test_gradients_that_come_one_by_one_and_not_all(monkeypatch):
    monkeypatch.setattr(gradients, "_BUCKET", 1)

    def change(grads, where):
        return {key: g for key, g in grads.items() if key != "V" and not (key == "b" and where[0] != 2)}

    assert_equal(Run(adamw(), change=change, given=in_pairs), 3)


@pytest.mark.parametrize("types", [(F32, F32), (F32, BF16), (BF16, F32), (np.float64, np.float64)], ids=repr)
def test_gradients_that_are_rounded_for_the_way(types):
    run = Run(adamw(clip_norm=0.1), lambda: parameters(types[0]), grad_dtype=types[1], exchange_dtype="bfloat16")
    for size in (1, 3, 8):
        assert_equal(run, size)


def test_tensors_of_more_than_a_thousand_blocks():
    shapes = {"a": (1 << 20,), "big": (3, (1 << 20) - 5), "b": (1025,)}

    def params():
        return {key: np.full(shape, 0.5, F32) for key, shape in shapes.items()}

    class Large(Run):
        def gradient(self, params, step, part):
            return {key: values((p.size,), [k, part]).reshape(p.shape) for k, (key, p) in enumerate(params.items())}

    run = Large(adamw(clip_global_norm=1.0, measure="update"), params, steps=1, parts=3)
    for size in (2, 3):
        assert_equal(run, size)


def test_large_doubles_whose_squares_overflow():
    def change(grads, where):
        return {key: g * 1e300 for key, g in grads.items()}

    assert_equal(Run(adamw(clip_global_norm=1.0), lambda: parameters(np.float64), change=change), 3)


def test_parameters_without_gradients():
    def change(grads, where):
        return {key: None if key == "V" or (key == "b" and where[0] != 2) else g for key, g in grads.items()}

    assert_equal(Run(adamw(), change=change), 4)


def test_containers_in_containers_and_other_orders_of_axes():
    def params():
        made = parameters()
        return {"layer": {"W": np.asfortranarray(made["W"]), "b": made["b"]}, "rest": (made["V"].T, made["scale"])}

    def gradient(self, params, step, part):
        at = {"W": params["layer"]["W"], "b": params["layer"]["b"], "V": params["rest"][0], "scale": params["rest"][1]}
        g = {key: values(p.shape, [k, step, part]) for k, (key, p) in enumerate(at.items())}
        return {"layer": {"W": g["W"], "b": g["b"]}, "rest": (g["V"], g["scale"])}

    class Nested(Run):
        def gradient(self, params, step, part):
            return gradient(self, params, step, part)

        def sum(self, params, step):
            flat = Run.sum(_Flat(self), params, step)
            return {"layer": {"W": flat["layer/W"], "b": flat["layer/b"]}, "rest": (flat["rest/0"], flat["rest/1"])}

    class _Flat:
        def __init__(self, run):
            self.run, self.parts, self.options = run, run.parts, run.options

        def gradient(self, params, step, part):
            from fusedstep.core.containers import arrays_by_key

            return arrays_by_key(self.run.gradient(params, step, part))

    assert_equal(Nested(adamw(clip_global_norm=1.0, overrides={"*/b": {"lr": 0.1}}), params), 3)


# What ranks tell each other before a step.


def refused(size, act):
    """Return the errors of all ranks, of which each has tried `act(world, params)`; parameters are as they were."""

    def rank(world):
        params = parameters()
        try:
            act(world, params)
        except Exception as error:
            assert all((params[key] == p).all() for key, p in parameters().items())
            return error
        return None

    return distributed.on_threads(size, rank)


def step(world, params, opt, count=None):
    run = Run(adamw())
    own = list(parts_of(PARTS, world.rank, world.size))[:count]
    opt = distributed.Synchronous(opt, world, parts=PARTS)
    opt.step(params, [run.gradient(params, 0, part) for part in own])


def test_ranks_with_other_hyperparameters_are_refused():
    errors = refused(3, lambda world, params: step(world, params, fs.AdamW(lr=2e-2 if world.rank == 1 else 1e-2)))
    assert {str(error) for error in errors} == {
        "rank 1 has lr 0.02, and rank 0 0.01: expected the same on all ranks; no rank has written anything"
    }


def test_a_rank_with_too_few_gradients_stops_all():
    errors = refused(3, lambda world, params: step(world, params, fs.Adam(), 2))
    assert [type(error) for error in errors] == [RuntimeError, ValueError, ValueError] or all(errors)
    assert "expected 3, one for each part of this rank" in str(errors[2])
    assert "has raised ValueError: gradients are 2" in str(errors[0])


def test_a_gradient_that_raises_stops_all():
    def act(world, params):
        def gradients():
            yield from ()
            if world.rank == 2:
                raise ZeroDivisionError("in the backward pass")
            run = Run(adamw())
            yield from (run.gradient(params, 0, part) for part in parts_of(PARTS, world.rank, world.size))

        distributed.Synchronous(fs.Adam(), world, parts=PARTS).step(params, gradients())

    errors = refused(3, act)
    assert isinstance(errors[2], ZeroDivisionError)
    assert "rank 2 has raised ZeroDivisionError: in the backward pass" in str(errors[0])


def test_a_gradient_that_raises_while_others_have_been_sent(monkeypatch):
    monkeypatch.setattr(gradients, "_BUCKET", 1)
    made = parameters()

    def one(world, fails):
        params, opt = {key: p.copy() for key, p in made.items()}, distributed.Synchronous(fs.SGD(), world)

        def pairs():
            for k, key in enumerate(reversed(params)):
                if k == fails and world.rank == 1:
                    raise KeyError("no such layer")
                yield key, np.ones_like(params[key])

        with pytest.raises((KeyError, RuntimeError)) as caught:
            opt.step(params, [pairs()])
        assert all((params[key] == p).all() for key, p in made.items())
        fails = None
        opt.step(params, [pairs()])  # the ranks are together still
        return type(caught.value), str(caught.value), params

    for fails in range(len(made)):
        found = distributed.on_threads(3, lambda world, fails=fails: one(world, fails))
        assert [kind for kind, *_ in found] == [RuntimeError, KeyError, RuntimeError]
        assert "rank 1 has raised KeyError: 'no such layer'; no rank has written anything" in found[0][1]
        assert all((p[key] == found[0][2][key]).all() for *_, p in found for key in made)


def test_pairs_that_do_not_fit_are_refused():
    w = np.ones(3, np.float32)

    def one(world, given):
        opt = distributed.Synchronous(fs.SGD(), world, parts=2)
        with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
            opt.step({"w": w.copy()}, given(world))
        return str(caught.value)

    for given, words in [
        (lambda world: [iter([("w", w), ("w", w)])], r"grads['w'] comes twice in part 0"),
        (lambda world: [iter([("v", w)])], r"grads['v'] belongs to no parameter"),
        (lambda world: [iter([("w", w)] if world.rank else [])], "rank 1 has gradients [('w', 'float32')], and rank 0"),
        (lambda world: [iter([("w", w)]) if world.rank else {"w": w}], "rank 1 has "),
    ]:
        assert words in distributed.on_threads(2, lambda world, given=given: one(world, given))[0]
    with pytest.raises(TypeError, match="gradients are containers and iterators of pairs"):
        distributed.Synchronous(fs.SGD(), distributed.Alone(), parts=2).step({"w": w}, [iter([("w", w)]), {"w": w}])


def test_an_error_on_one_rank_in_the_step_itself_stops_all(monkeypatch):
    step_parts = fs.SGD._step_parts

    def step(self, *args, **options):
        if threading.current_thread().name == "rank 1":
            raise MemoryError("no room for a routine")
        return step_parts(self, *args, **options)

    monkeypatch.setattr(fs.SGD, "_step_parts", step)

    def one(world):
        params = parameters()
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            distributed.Synchronous(fs.SGD(), world).step(params, [parameters()])
        return type(caught.value), str(caught.value)

    found = distributed.on_threads(3, one)
    assert [kind for kind, _ in found] == [RuntimeError, MemoryError, RuntimeError]
    assert found[0][1] == "rank 1 has raised MemoryError: no room for a routine; other ranks have made the step"


def test_gradients_cannot_be_zeroed():
    for opt in (fs.SGD(zero_grad=True), fs.SGD(overrides={"W": {"zero_grad": True}})):
        with pytest.raises(ValueError, match="zero_grad is True, expected False"):
            distributed.Synchronous(opt, distributed.Alone()).step(parameters(), [parameters()])
    with pytest.raises(ValueError, match="exchange_dtype is 'float16', expected 'bfloat16' or None"):
        distributed.Synchronous(fs.SGD(), distributed.Alone(), exchange_dtype="float16")


def test_fewer_parts_than_ranks_are_refused():
    with pytest.raises(ValueError, match="parts is 2, expected at least one for each of the 3 ranks"):
        distributed.on_threads(3, lambda world: distributed.Synchronous(fs.Adam(), world, parts=2))


def test_rows_are_shared_in_parts_of_one_length():
    found = distributed.on_threads(
        3, lambda world: list(distributed.Synchronous(fs.Adam(), world, parts=8).share(np.arange(32)))
    )
    assert np.concatenate([rows for own in found for rows in own]).tolist() == list(range(32))
    assert {len(rows) for own in found for rows in own} == {4}
    opt = distributed.Synchronous(fs.Adam(), distributed.Alone(), parts=8)
    with pytest.raises(ValueError, match="rows has 30 rows, expected a multiple of the 8 parts"):
        list(opt.share(np.arange(30)))


def test_parameters_that_differ_are_told():
    def rank(world):
        params = parameters()
        distributed.same(params, world)
        if world.rank == 2:
            params["V"][3, 4] += 1
        with pytest.raises(ValueError, match=r"rank 2 has params\['V'\] float32 of shape \(70, 33\) with digest"):
            distributed.same(params, world)

    distributed.on_threads(3, rank)


# Files.


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (8, 1), (2, 8)])
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, before, after):
    run, path = Run(adamw(clip_global_norm=1.0, ema=0.9)), tmp_path / "run.npz"

    def begin(world):
        params = run.params()
        opt = distributed.Synchronous(run.make(), world, parts=PARTS)
        run.on(world, 2, opt, params)
        distributed.save(path, opt, params, extra={"done": 2})

    def go_on(world):
        params = run.params()
        opt = distributed.Synchronous(run.make(), world, parts=PARTS)
        done = distributed.load(path, opt, params)["done"]
        return run.on(world, None, opt, params, done)

    distributed.on_threads(before, begin)
    (bits, *numbers), _ = run.alone()
    for (found, *counts), _ in distributed.on_threads(after, go_on):
        assert found == bits
        assert counts == numbers


def test_the_file_is_that_of_one_process(tmp_path):
    run = Run(adamw())

    def rank(world):
        params = run.params()
        opt = distributed.Synchronous(run.make(), world, parts=PARTS)
        run.on(world, None, opt, params)
        distributed.save(tmp_path / "ranks.npz", opt, params, extra=1)

    distributed.on_threads(3, rank)
    params, opt = run.params(), run.make()
    for k in range(run.steps):
        opt.step(params, run.sum(params, k), grad_scale=1 / PARTS)
    fs.save(tmp_path / "one.npz", opt, params, extra=1)
    assert (tmp_path / "ranks.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
