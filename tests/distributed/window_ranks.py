"""What ranks do with memory that they have in common, on the world of any engine; `python -m` runs it on MPI."""

import contextlib
import os
import signal
import sys

import numpy as np

from fusedstep import distributed
from fusedstep.distributed import gathered, like, shared
from fusedstep.distributed.windows import array_at, place_of


def numbers(rank, count, step=0):
    return np.random.default_rng([rank, count, step]).integers(0, 256, count, np.uint8)


def sizes(world):
    """Give memory of different sizes, also none, and read what all ranks have written."""
    for number, factor in enumerate((0, 1, 1000, 70_000)):
        counts = [factor * rank + (factor == 1) for rank in range(world.size)]
        memory = world.window(counts[world.rank])
        assert memory is world.windows[number]
        assert [room.nbytes for room in memory] == counts
        assert [room.dtype for room in memory] == [np.uint8] * world.size
        assert not any(room.any() for room in memory)
        assert not any(room.ctypes.data % 64 for room in memory if room.size)
        assert all(room.flags.writeable for room in memory)
        gathered(world, b"")
        memory[world.rank][...] = numbers(world.rank, counts[world.rank])
        gathered(world, b"")
        for rank, room in enumerate(memory):
            assert room.tobytes() == numbers(rank, counts[rank]).tobytes()
        gathered(world, b"")
        above = (world.rank + 1) % world.size  # everybody may write everywhere
        memory[above][...] = world.rank
        gathered(world, b"")
        assert (memory[world.rank] == (world.rank - 1) % world.size).all()


def pass_on(world, rounds=500, count=3000):
    """Write, send messages, read, send messages, many times: nobody sees a number of the round before."""
    own = like(np.empty(count, np.uint32), world)
    places = gathered(world, repr(tuple(place_of(own, world))).encode())
    seen = [array_at(world, eval(place), np.uint32, (count,)) for place in places]
    common = shared(np.zeros(world.size, np.int64), world)
    for step in range(rounds):
        own[...] = step * world.size + world.rank
        common[world.rank] = step
        gathered(world, b"")
        for rank, array in enumerate(seen):
            assert (array == step * world.size + rank).all()
        assert (common == step).all()
        gathered(world, b"")


def one_way(world, rounds=500, count=3000):
    """Let a message from each rank to the next one follow what it has written, and one back what has been read."""
    own = like(np.empty(count, np.uint32), world)
    above, below = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    if world.size == 1:
        return
    read = array_at(world, place_of(own, world)._replace(rank=below), np.uint32, (count,))
    word, heard = np.zeros(1), np.zeros(1)
    for step in range(rounds):
        own[::-1] = step
        world.wait(world.start([(above, word)], [(below, heard)]))
        assert (read == step).all()
        world.wait(world.start([(below, word)], [(above, heard)]))


def wrong_number(world):
    """Ask for a negative number of bytes on one rank; later calls are as if nothing had happened."""
    for wrong, kind in ((-1, ValueError), (1.5, TypeError)):
        try:
            world.window(wrong if world.rank == world.size - 1 else 100)
        except (TypeError, ValueError) as error:
            assert isinstance(error, kind), error  # noqa: PT017 (another process)
            assert world.rank == world.size - 1
            assert str(error).startswith(f"nbytes is {wrong}, expected"), error  # noqa: PT017
        except RuntimeError as error:
            assert world.rank < world.size - 1
            text = f"rank {world.size - 1} has raised {kind.__name__}: nbytes is {wrong}, expected"
            assert str(error).startswith(text), error  # noqa: PT017
            assert str(error).endswith("no rank has got memory"), error  # noqa: PT017
        else:
            raise AssertionError("a wrong number was accepted")
    assert world.windows == []
    sizes(world)


# What concerns MPI alone.


def too_much(world):
    """Ask for more than there is, where one rank or all ranks want much, and then for less, which is there."""
    room = os.statvfs("/dev/shm")
    free = room.f_bavail * room.f_frsize
    gathered(world, b"")  # all have looked
    for wanted in ((free + 1, 0), (0, free), (free // 2 + 1, free // 2)):
        try:
            world.window((*wanted, 0, 0)[world.rank])
        except MemoryError as error:
            assert f"nbytes of all ranks are {sum(wanted):,} and /dev/shm has " in str(error), error  # noqa: PT017
            assert "docker run --shm-size=" in str(error), error  # noqa: PT017
        else:
            raise AssertionError("nobody has told that there is too little")
        assert world.windows == []
    sizes(world)


def too_late(world):
    """Ask for memory that is gone after all have looked: somebody else has been quicker."""
    module = sys.modules["fusedstep.distributed.windows"]
    make, other = module._make_present, "/dev/shm/other"

    def be_quicker(own):
        if world.rank == 0:
            with open(other, "wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
        return make(own)

    module._make_present = be_quicker
    free = os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize
    for _ in range(5):  # what was made for them is given back
        gathered(world, b"")
        try:
            world.window((free // 2, 0, 0, 0)[world.rank])
        except MemoryError as error:
            assert world.rank == 0
            assert "shared memory has come to its end, expected more: docker run" in str(error), error  # noqa: PT017
            os.remove(other)
        except RuntimeError as error:
            assert world.rank > 0
            assert str(error).startswith("rank 0 has raised MemoryError: nbytes"), error  # noqa: PT017
        else:
            raise AssertionError("nobody has told that there is too little")
    module._make_present = make
    gathered(world, b"")
    assert world.windows == []
    world.window(free // 4 if world.rank == 0 else 0)[0][world.rank :: world.size] = 1


def killed(world):
    """Make memory, and kill a rank."""
    world.window(10_000_000)[world.rank][...] = 1
    gathered(world, b"")
    if world.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    gathered(world, b"")


def refused():
    """Start ranks that share no memory, where an option of MPICH makes them believe so."""
    from mpi4py import MPI

    size = MPI.COMM_WORLD.size
    if MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED).size == size:
        return
    try:
        distributed.windows()
    except ValueError as error:
        text = f"ranks share no memory: {size} on {MPI.Get_processor_name()}, expected all ranks on one machine; "
        assert str(error) == text + "distributed.world() has the ranks of several", error  # noqa: PT017
    else:
        raise AssertionError("ranks without common memory were accepted")


if __name__ == "__main__":
    if sys.argv[1] == "refused":
        refused()
        sys.exit()
    found = distributed.windows()
    assert found is distributed.windows()
    for function in sys.argv[1:]:
        found.windows.clear()  # each one begins as in a program of its own
        globals()[function](found)
    print(f"rank {found.rank} of {found.size} is done")
