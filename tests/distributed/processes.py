"""What each process does that takes part in a conversation over gloo."""

import sys

import torch
import torch.distributed as dist

from fusedstep.distributed.torch import TorchWorld
from tests.distributed import conversations


def staged(world):
    """Take the way of arrays to a GPU and back, with host memory in place of a GPU."""
    world._device = torch.device("cpu")
    conversations.chatter(world, seed=3)
    conversations.gather(world)
    world._device = None


def group(world):
    """Talk in a group that leaves out the first process, so that ranks have other numbers than processes."""
    inner = dist.new_group([1, 2])
    if world.rank == 0:
        try:
            TorchWorld(inner)
        except ValueError as error:
            assert "expected a group of this process" in str(error)  # noqa: PT017
            return
        raise AssertionError("a group without this process was accepted")
    inner = TorchWorld(inner, timeout=30)
    assert (inner.rank, inner.size) == (world.rank - 1, 2)
    conversations.chatter(inner, seed=4)


def work(rank, size, folder, names):
    torch.set_num_threads(1)
    try:
        TorchWorld()
    except RuntimeError as error:
        assert str(error).startswith("PyTorch has no process group, expected torch.distributed.init_process_group")  # noqa: PT017
    else:
        raise AssertionError("a process without a group was accepted")
    dist.init_process_group("gloo", rank=rank, world_size=size, init_method=f"file://{folder}/store")
    world = TorchWorld(timeout=30)
    for name in names:
        (globals().get(name) or getattr(conversations, name))(world)
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
