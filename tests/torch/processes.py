"""What two processes do that train a model together, with gloo: each function returns the parameters at the end."""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as files
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import fusedstep.torch

CLASSES = {"AdamW": {"lr": 1e-2}, "NAdam": {"lr": 1e-2}, "SGD": {"lr": 1e-2, "momentum": 0.9}}


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))


def train(net, optimizer, updates):
    for k in updates:
        seed = torch.Generator().manual_seed(1000 * dist.get_rank() + k)
        optimizer.zero_grad()
        net(torch.randn(6, 8, generator=seed)).square().mean().backward()
        optimizer.step()


def parameters(net):
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach().clone() for p in net.parameters()]


def data_parallel(cls, arguments, folder, **options):
    net = DistributedDataParallel(model(), **options)
    train(net, cls(net.parameters(), **arguments), range(5))
    return parameters(net)


def bucket_views(cls, arguments, folder):
    return data_parallel(cls, arguments, folder, gradient_as_bucket_view=True)


def zero_redundancy(cls, arguments, folder):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns of something that PyTorch does itself

    net = DistributedDataParallel(model())
    optimizer = ZeroRedundancyOptimizer(net.parameters(), optimizer_class=cls, **arguments)
    train(net, optimizer, range(3))
    optimizer.consolidate_state_dict(0)
    if dist.get_rank() == 0:
        assert len(optimizer.state_dict()["state"]) == 4
    train(net, optimizer, range(3, 5))
    return parameters(net)


def sharded():
    net = model()
    fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return net


def fully_sharded(cls, arguments, folder):
    net = sharded()
    optimizer = cls(net.parameters(), **arguments)
    train(net, optimizer, range(5))
    for p in net.parameters():
        assert isinstance(p, DTensor)
        assert {type(x) for name, x in optimizer.state[p].items() if x.dim() == p.dim()} == {DTensor}
    get_optimizer_state_dict(net, optimizer)
    return parameters(net)


def resumed(make):
    """Return a function that trains, writes a checkpoint, and goes on with another model and optimizer."""

    def resume(cls, arguments, folder):
        net = make()
        optimizer = cls(net.parameters(), **arguments)
        train(net, optimizer, range(3))
        weights, states = get_state_dict(net, optimizer)
        files.save({"weights": weights, "states": states}, checkpoint_id=folder)

        net = make()
        optimizer = cls(net.parameters(), **arguments)
        weights, states = get_state_dict(net, optimizer)
        found = {"weights": weights, "states": states}
        files.load(found, checkpoint_id=folder)
        set_state_dict(net, optimizer, model_state_dict=found["weights"], optim_state_dict=found["states"])
        train(net, optimizer, range(3, 5))
        return parameters(net)

    return resume


SCENARIOS = {
    "DistributedDataParallel": data_parallel,
    "gradient_as_bucket_view": bucket_views,
    "ZeroRedundancyOptimizer": zero_redundancy,
    "fully_shard": fully_sharded,
    "checkpoint": resumed(lambda: DistributedDataParallel(model())),
    "checkpoint of shards": resumed(sharded),
}


def work(rank, folder):
    """Run all scenarios with PyTorch's classes and ours; the first process writes what has become of the parameters."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/store")
    for scenario, run in SCENARIOS.items():
        for name, arguments in CLASSES.items():
            outcome = {}
            for module in (torch.optim, fusedstep.torch):
                place = str(Path(folder, f"{scenario} {name} {module.__name__}"))
                try:
                    outcome[module.__name__] = run(getattr(module, name), arguments, place)
                except Exception as error:
                    outcome[module.__name__] = f"{type(error).__name__}: {error}"
            torch.save(outcome, f"{folder}/{scenario} {name} {rank}.pt")
            dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
