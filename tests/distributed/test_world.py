"""Worlds: what is refused, and ranks that are threads, with messages and delays at random."""

import threading
import time

import numpy as np
import pytest

from fusedstep import distributed
from fusedstep.distributed import Alone, gathered, on_threads, threads
from fusedstep.distributed.world import until
from tests.distributed import conversations

ARRAY = np.zeros(3)
READ_ONLY = np.zeros(3)
READ_ONLY.flags.writeable = False


def test_a_program_by_itself_is_one_rank(monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    distributed.world.cache_clear()
    world = distributed.world()
    assert (world.rank, world.size) == (0, 1)
    assert world is distributed.world()
    world.wait(world.start([], []))
    assert gathered(world, b"alone") == [b"alone"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(5))
def test_messages_arrive_whatever_the_order(size, seed):
    if size == 1:
        assert on_threads(1, lambda world: world.size) == [1]
        return
    counts = on_threads(size, lambda world: conversations.chatter(world, seed, delay=0.002 if seed % 2 else 0))
    assert len(set(counts)) == 1
    assert counts[0] > 0


@pytest.mark.parametrize("size", [1, 2, 4])
def test_gathered(size):
    on_threads(size, conversations.gather)
    on_threads(size, conversations.all_to_all)


def test_the_results_of_ranks_come_by_rank():
    def late_zero(world):
        time.sleep(0.05 * (world.rank == 0))
        return world.rank, world.size, threading.current_thread().name

    assert on_threads(3, late_zero) == [(0, 3, "rank 0"), (1, 3, "rank 1"), (2, 3, "rank 2")]


def test_messages_of_another_size_are_refused_at_both_ends():
    def speak(world):
        array = np.zeros(1 + world.rank, np.float32)
        handle = world.start([(1, array)], []) if world.rank == 0 else world.start([], [(0, array)])
        with pytest.raises(ValueError, match=r"^rank 0 has sent 4 bytes, and rank 1 expected 8$"):
            world.wait(handle)

    on_threads(2, speak)


def test_nothing_is_copied_before_both_ends_are_there():
    ours, theirs = threads(2)
    array, room = np.ones(4), np.zeros(4)
    sending = ours.start([(1, array)], [])
    array[:] = 2  # allowed to nobody, and seen here: the message is no copy
    receiving = theirs.start([], [(0, room)])
    ours.wait(sending)
    theirs.wait(receiving)
    assert (room == 2).all()


def test_who_is_late_is_named():
    assert on_threads(3, conversations.late) == ["late", "slow", "slow"]
    assert on_threads(2, conversations.late) == ["late", "slow"]
    on_threads(2, conversations.late_and_again)


def test_who_waits_leaves_the_processor_to_others():
    times = []
    assert not until(lambda: times.append(time.monotonic()), 0.4)
    assert 0.4 <= times[-1] - times[0] < 5
    assert 1 < sum(moment - times[0] > 0.15 for moment in times) <= 250  # naps of a millisecond
    assert until(lambda: True, 0)


def test_the_error_of_a_rank_ends_all():
    def fail(world):
        if world.rank == 2:
            time.sleep(0.05)
            raise KeyError("no such tensor")
        world.wait(world.start([], [(2, np.zeros(1))]))

    begin = time.monotonic()
    with pytest.raises(KeyError, match="no such tensor") as caught:
        on_threads(4, fail)
    assert caught.value.__notes__ == ["This was raised on rank 2 of 4."]
    assert time.monotonic() - begin < 5


def test_a_rank_that_returns_early_ends_who_waits_for_it():
    def leave(world):
        if world.rank == 0:
            world.wait(world.start([], [(1, np.zeros(1))]))

    with pytest.raises(RuntimeError, match=r"^rank 0 waits for rank 1, which has returned"):
        on_threads(2, leave)


def test_what_was_sent_before_the_end_still_arrives():
    def part(world):
        array = np.full(3, 7.0 * (world.rank == 0))
        world.wait(world.start([(1, array)], []) if world.rank == 0 else world.start([], [(0, array)]))
        time.sleep(0.05 * world.rank)
        return array.sum()

    assert on_threads(2, part) == [21, 21]


def test_a_rank_that_does_not_end_is_left_behind(monkeypatch):
    monkeypatch.setitem(on_threads.__globals__, "_GRACE", 0.1)
    free = threading.Event()

    def stay(world):
        if world.rank == 1:
            raise ValueError("wrong")
        free.wait(30)

    with pytest.raises(ValueError, match="wrong") as caught:
        on_threads(3, stay)
    assert caught.value.__notes__ == ["This was raised on rank 1 of 3. Not ended: rank 0, 2."]
    free.set()


WRONGS = [
    ([(1, ARRAY)], [], ValueError, r"sends\[0\] is to rank 1, expected another rank than 1 of the 3 ranks"),
    ([], [(0, ARRAY), (3, ARRAY)], ValueError, r"receives\[1\] is from rank 3, expected another rank than 1 of the 3"),
    ([(-1, ARRAY)], [], ValueError, r"sends\[0\] is to rank -1"),
    ([(0, [1.0])], [], TypeError, r"sends\[0\] is of type list, expected an array of NumPy"),
    ([(0, np.array([None]))], [], TypeError, r"sends\[0\] has dtype object, expected numbers"),
    ([(0, np.zeros((4, 4)).T[1:])], [], ValueError, r"sends\[0\] has strides \(8, 32\), expected a C-contiguous array"),
    ([], [(0, READ_ONLY)], ValueError, r"receives\[0\] is read-only, expected a writable array"),
]


@pytest.mark.parametrize(("sends", "receives", "kind", "message"), WRONGS)
def test_wrong_messages_are_refused_before_anything_is_sent(sends, receives, kind, message):
    worlds = threads(3)
    with pytest.raises(kind, match="^" + message):
        worlds[1].start(sends or [(0, ARRAY)], receives)
    worlds[0].timeout = 0
    with pytest.raises(TimeoutError):
        worlds[0].wait(worlds[0].start([], [(1, np.zeros(3))]))


def test_who_is_alone_has_nobody_to_talk_to():
    with pytest.raises(ValueError, match="expected no message, as there is one rank only"):
        Alone().start([(0, ARRAY)], [])


def test_a_world_has_ranks():
    with pytest.raises(ValueError, match=r"^size is 0, expected at least 1 rank"):
        threads(0)
    with pytest.raises(ValueError, match=r"^size is -1, expected at least 1 rank"):
        on_threads(-1, lambda world: None)
