"""Steps of ranks that have memory in common: the bits of one process, and nothing is sent that all ranks can read."""

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import distributed
from tests.distributed.synchronous_runs import Run, adamw, assert_equal, parameters, snapshot

BF16 = ml_dtypes.bfloat16
F32 = np.float32


class Common(Run):
    """A run whose parameters and gradients are in windows, or some of them."""

    is_shared = True
    is_read_in_place = True

    def on(self, world):
        params = distributed.shared(self.params(), world) if self.is_shared else self.params()
        grads = distributed.like(self.params(), world)
        if self.is_read_in_place:

            def given(made):
                for key, g in made.items():
                    if g is not None:
                        grads[key][...] = g
                return {key: None if g is None else grads[key] for key, g in made.items()}

            self = self.with_given(given)
        return super().on(world, params=params)

    def with_given(self, given):
        other = object.__new__(type(self))
        vars(other).update(vars(self), given=given)
        return other


class Sent(Common):
    is_shared = False


class Copied(Common):
    is_read_in_place = False


@pytest.mark.parametrize("parts", [8, 5])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_any_number_of_ranks(size, parts):
    assert_equal(Common(adamw(clip_global_norm=1.0, ema=0.9), parts=parts), size)


@pytest.mark.parametrize("kind", [Sent, Copied])
@pytest.mark.parametrize("parts", [8, 3])
def test_arrays_that_are_in_no_window(kind, parts):
    assert_equal(kind(adamw(clip_global_norm=1.0), parts=parts), 3)


@pytest.mark.parametrize("kind", [Common, Copied])
@pytest.mark.parametrize("dtype", [np.float64, np.float16, BF16, np.complex64], ids=lambda dtype: np.dtype(dtype).name)
def test_types(dtype, kind):
    for parts in (3, 5, 8):
        assert_equal(kind(adamw(clip_norm=0.5), lambda: parameters(dtype), parts=parts), 3)


def test_gradients_that_come_and_go():
    def change(grads, where):
        return {key: None if key == "V" or (key == "b" and where[0] != 2) else g for key, g in grads.items()}

    for kind in (Common, Copied):
        assert_equal(kind(adamw(), change=change), 3)


def test_gradients_that_come_one_by_one():
    assert_equal(Copied(adamw(), given=lambda grads: iter(grads.items())), 3)


def test_one_copy_is_written_in_place_and_nothing_large_is_sent():
    shape = (300, 700)

    def one(world):
        params = distributed.shared({"w": np.ones(shape, F32)}, world)
        grads = distributed.like(params, world)
        sent, start = [], world.start
        world.start = lambda sends, receives: (sent.extend(array.nbytes for _, array in sends), start(sends, receives))[
            1
        ]
        opt = distributed.Synchronous(fs.SGD(lr=1.0, clip_global_norm=1e9), world)
        for k in range(3):
            grads["w"][...] = world.rank + k
            opt.step(params, [grads])
        return params["w"].copy(), max(sent), snapshot(params, opt.state_dict(params))

    found = distributed.on_threads(2, one)
    for w, largest, _ in found:
        assert (w == 1 - (1 + 3 + 5)).all()
        assert largest < 2000
    assert found[0][2] == found[1][2]


def test_a_run_that_becomes_one_with_windows():
    def one(world):
        params, opt = {"w": np.ones(5, F32)}, distributed.Synchronous(fs.SGD(lr=1.0), world)
        opt.step(params, [{"w": np.ones(5, F32)}])
        common = distributed.shared(params, world)
        opt.step(common, [{"w": np.ones(5, F32)}])
        return common["w"].tolist()

    assert distributed.on_threads(2, one) == [[-3.0] * 5] * 2
