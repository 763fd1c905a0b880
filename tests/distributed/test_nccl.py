"""Worlds of GPUs that talk by NCCL, with a stand-in for CuPy: ranks are threads, and memory is that of the host."""

import sys

import numpy as np
import pytest

from fusedstep.distributed import on_threads
from fusedstep.distributed.nccl import NCCLWorld
from tests.distributed import conversations, device


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    return device.install(monkeypatch)


@pytest.mark.parametrize("size", [2, 3])
def test_arrays_in_host_memory_travel_by_way_of_the_gpu(size):
    on_threads(size, lambda world: conversations.chatter(NCCLWorld(world), seed=size))
    on_threads(size, lambda world: conversations.gather(NCCLWorld(world)))


def test_arrays_on_the_gpu_travel_as_they_lie():
    def talk(world):
        world = NCCLWorld(world)
        own, room = np.full(1000, 1.0 + world.rank), np.zeros(1000)
        other = 1 - world.rank
        handle = world.start([(other, device.Array(own))], [(other, device.Array(room))])
        assert world._stream.waits == 1  # for what makes the array in the current stream
        world.wait(handle)
        assert (room == 1 + other).all()
        assert not handle.targets

    on_threads(2, talk)


def test_who_is_late_is_named():
    assert on_threads(3, lambda world: conversations.late(NCCLWorld(world))) == ["late", "slow", "slow"]


def test_wrong_arrays_are_refused():
    def talk(world):
        world = NCCLWorld(world)
        other = 1 - world.rank
        with pytest.raises(ValueError, match=r"^sends\[0\] has strides \(16,\), expected a C-contiguous array"):
            world.start([(other, device.Array(np.zeros(4)[::2]))], [])
        with pytest.raises(ValueError, match=r"^receives\[0\] is on GPU 1, expected GPU 0, that of the world"):
            world.start([], [(other, device.Array(np.zeros(4), 1))])
        with pytest.raises(ValueError, match=r"^sends\[0\] is to rank 2, expected another rank"):
            world.start([(2, device.Array(np.zeros(4)))], [])
        with pytest.raises(TypeError, match=r"^sends\[0\] is of type list, expected an array of NumPy"):
            world.start([(other, [1])], [])

    on_threads(2, talk)


def test_a_world_of_host_memory_names_the_one_of_gpus():
    def talk(world):
        with pytest.raises(TypeError, match=r"^sends\[0\] is on a GPU, expected an array of NumPy; distributed.nccl"):
            world.start([(1 - world.rank, device.Array(np.zeros(4)))], [])

    on_threads(2, talk)


def test_who_lacks_cupy_or_nccl_is_told_what_to_install(cupy, monkeypatch):
    cupy.cuda.nccl.available = False
    with pytest.raises(ImportError, match=r'pip install "fusedstep\[cuda13\]" nvidia-nccl-cu13.*not found the library'):
        on_threads(1, NCCLWorld)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"^ranks that talk by NCCL need CuPy and NCCL"):
        on_threads(1, NCCLWorld)
