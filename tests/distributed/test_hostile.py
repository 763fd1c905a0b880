"""Messages in any order in time change no bit, and those that get lost, damaged or refused end all ranks."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedstep import distributed
from tests.distributed.hostile import Faulty, Unsteady, outcomes
from tests.distributed.synchronous_runs import Run, adamw

RUN = Run(adamw(clip_global_norm=1.0, ema=0.9), steps=3)
ALONE = RUN.alone()


@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_any_order_in_time(size, seed):
    expected, results = ALONE
    for found, seen in distributed.on_threads(size, lambda world: RUN.on(Unsteady(world, seed))):
        assert found == expected
        assert repr(seen) == repr(results)


@pytest.mark.exhaustive
@settings(max_examples=200, deadline=None)
@given(size=st.integers(2, 8), seed=st.integers(0, 2**32))
def test_many_orders_in_time(size, seed):
    test_any_order_in_time.hypothesis.inner_test(size, seed)


def test_files_in_any_order_in_time(tmp_path):
    def rank(world):
        world = Unsteady(world, 1)
        opt = distributed.Synchronous(RUN.make(), world, parts=RUN.parts)
        params = RUN.params()
        RUN.on(world, 2, opt, params)
        distributed.save(tmp_path / "run.npz", opt, params, extra=2)
        again, params = distributed.Synchronous(RUN.make(), world, parts=RUN.parts), RUN.params()
        distributed.same(params, world)
        return RUN.on(world, None, again, params, distributed.load(tmp_path / "run.npz", again, params))[0]

    assert distributed.on_threads(4, rank) == [ALONE[0]] * 4


@pytest.mark.parametrize(
    "number", [pytest.param(k, marks=[] if k in (1, 4, 6) else pytest.mark.exhaustive) for k in range(9)]
)
@pytest.mark.parametrize("fault", ["lose", "twice", "short", "long", "start", "wait"])
def test_all_ranks_end_with_an_error_that_names_a_rank(fault, number):
    """Three ranks make three steps; the fault is that of rank 1, in the first two of them."""

    def rank(world):
        RUN.on(Faulty(world, fault, number) if world.rank == 1 else world)

    for k, outcome in enumerate(outcomes(3, rank, 0.3)):
        assert isinstance(outcome, Exception), (k, outcome)
        assert re.search(r"rank \d", str(outcome)) or (k == 1 and isinstance(outcome, ConnectionError)), outcome
