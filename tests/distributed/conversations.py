"""What ranks say to each other in tests, on the world of any engine; `python -m` runs one of them on MPI or gloo."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fusedstep.distributed import gathered

DTYPES = (np.uint8, np.float16, np.float32, np.float64, np.complex64, np.int64)


def content(seed, message, count, dtype):
    raw = np.random.default_rng([seed, message]).integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8)
    return raw.view(dtype)


def plan(seed, size, rounds, largest):
    """Return the messages of each round, the same on all ranks: (sender, receiver, count, dtype)."""
    random = np.random.default_rng(seed)
    return [
        [
            (
                *random.choice(size, 2, replace=False).tolist(),
                int(largest ** random.random()) - 1,
                random.choice(DTYPES),
            )
            for _ in range(random.integers(0, 3 * size))
        ]
        for _ in range(rounds)
    ]


def shuffled(random, messages):
    """Return messages in another order, in which those of one other rank stay in theirs."""
    order = random.permutation([rank for rank, _ in messages])
    lines = {rank: iter([array for other, array in messages if other == rank]) for rank, _ in messages}
    return [(rank, next(lines[rank])) for rank in order.tolist()]


def chatter(world, seed=0, rounds=20, largest=3000, delay=0.0):
    """Exchange random messages, start late, wait in any order, and check the bytes of all."""
    random = np.random.default_rng([seed, world.rank])
    number, handles = 0, []
    for messages in plan(seed, world.size, rounds, largest):
        sends, receives, expected = [], [], []
        for sender, receiver, count, dtype in messages:
            number += 1
            array = content(seed, number, count, dtype)
            if sender == world.rank:
                array.flags.writeable = bool(random.integers(2))
                sends.append((receiver, array.reshape(-1, 1)))
            elif receiver == world.rank:
                receives.append((sender, np.zeros_like(array)))
                expected.append((receives[-1][1], array))
        if delay:
            time.sleep(delay * random.random())
        handles.append((world.start(shuffled(random, sends), shuffled(random, receives)), expected))
        while handles and random.random() < 0.7:
            handle, expected = handles.pop(random.integers(len(handles)))
            world.wait(handle)
            for found, array in expected:
                assert found.tobytes() == array.tobytes()
    for handle, expected in handles:
        world.wait(handle)
        for found, array in expected:
            assert found.tobytes() == array.tobytes()
    return number


def gather(world):
    """Give all ranks bytes of different lengths, also none."""
    for length in (0, 1, 1000):
        assert gathered(world, bytes([world.rank]) * (length * world.rank)) == [
            bytes([rank]) * (length * rank) for rank in range(world.size)
        ]


def all_to_all(world, count=100_000):
    """Exchange large arrays among all ranks."""
    others = [rank for rank in range(world.size) if rank != world.rank]
    found = np.zeros((world.size, count), np.float32)
    own = np.full(count, world.rank, np.float32)
    world.wait(world.start([(rank, own) for rank in others], [(rank, found[rank]) for rank in others]))
    for rank in others:
        assert (found[rank] == rank).all()


def wrong_size(world):
    """Send fewer or more bytes than the other rank expects."""
    first, array = world.rank == 0, np.zeros(8, np.uint8)
    if world.rank > 1:
        return
    for sent, expected in ((4, 8), (8, 4)):
        handle = world.start([(1, array[:sent])], []) if first else world.start([], [(0, array[:expected])])
        try:
            world.wait(handle)
        except ValueError as error:
            assert str(error).startswith("rank 0 has sent "), error  # noqa: PT017 (another process)
            assert str(error).endswith(f" bytes, and rank 1 expected {expected}"), error  # noqa: PT017
        else:
            assert first, "the receiver was not told"


def late(world):
    """Wait for ranks that do not come."""
    world.timeout = 0.3
    others = [rank for rank in range(world.size) if rank != world.rank]
    if world.rank == 0:
        begin, room = time.monotonic(), np.zeros((world.size, 10))
        handle = world.start([], [(rank, room[rank]) for rank in others])
        try:
            world.wait(handle)
        except TimeoutError as error:
            ranks = f"rank{'s' * (len(others) > 1)} {', '.join(map(str, others))}"
            assert str(error).startswith(f"rank 0 has waited 0.3 s for {ranks}: "), error  # noqa: PT017
            assert time.monotonic() - begin < 5
            return "late"
        raise AssertionError("nobody was late")
    time.sleep(1)
    return "slow"


def late_and_again(world):
    """Wait for a rank that comes after the timeout, then wait once more."""
    array = np.full(1_000_000, world.rank, np.float32)
    if world.rank > 1:
        return
    if world.rank == 1:
        time.sleep(0.6)
        world.wait(world.start([(0, array)], []))
        return
    room = np.zeros_like(array)
    handle = world.start([], [(1, room)])
    world.timeout = 0.1
    try:
        world.wait(handle)
    except TimeoutError:
        world.timeout = 60
        world.wait(handle)
        assert (room == 1).all()
    else:
        raise AssertionError("nobody was late")


# What concerns MPI alone.


def cut(world):
    """Exchange arrays that are longer than the longest message, which is short here."""
    from fusedstep.distributed import mpi

    mpi._LARGEST = 1000
    all_to_all(world, 10_000)
    chatter(world, seed=1, largest=5000)
    wrong_size(world)


def overlap(world):
    """Compute while large messages travel: nobody waits for them, and they arrive."""
    sent, found = np.full(4_000_000, 1.0 + world.rank), np.zeros(4_000_000)
    other = world.rank ^ 1
    handle = world.start([(other, sent)], [(other, found)])
    end = time.monotonic() + 30
    while not handle.is_done:
        assert time.monotonic() < end, "nobody has kept the messages going"
        time.sleep(0.01)
    assert (found == 1 + other).all()
    world.wait(handle)
    while world._progress._is_wanted.is_set():
        assert time.monotonic() < end, "the thread that keeps messages going does not rest"
        time.sleep(0.01)


def several_threads(world):
    """Talk on two worlds of the same ranks at once, each on a thread of its own."""
    from fusedstep.distributed.mpi import MPIWorld

    worlds = [world, MPIWorld()]
    with ThreadPoolExecutor(2) as pool:
        assert min(pool.map(chatter, worlds, [1, 2])) > 0


def own_communicator(world):
    """Talk while messages of the program are under way."""
    from mpi4py import MPI

    other, room = world.rank ^ 1, np.zeros(1)
    request = MPI.COMM_WORLD.Irecv(room, other)
    chatter(world)
    MPI.COMM_WORLD.Send(np.full(1, 5.0), other)
    request.Wait()
    assert room[0] == 5


def raises(world):
    """Raise on one rank while the others wait for it."""
    if world.rank == 1:
        raise RuntimeError("this rank has a fault")
    world.wait(world.start([], [(1, np.zeros(1))]))


if __name__ == "__main__":
    from fusedstep.distributed import world

    for name in sys.argv[1:]:
        globals()[name](world())
    print(f"rank {world().rank} of {world().size} is done")
