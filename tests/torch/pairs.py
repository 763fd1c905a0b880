"""Pairs of optimizers, ours and PyTorch's, each with parameters of its own that begin with the same numbers."""

import copy

import pytest
import torch
from torch.testing._internal.common_optimizers import optim_db

import fusedstep.torch

torch.set_num_threads(1)  # threads that wait for each other are slow where a processor is busy

NAMES = fusedstep.torch.__all__
INPUTS = {info.optim_cls.__name__: info for info in optim_db if info.optim_cls.__name__ in NAMES}
# Every class with the arguments that PyTorch itself tests.
CASES = [
    pytest.param(name, case.kwargs, id=f"{name}: {case.desc}")
    for name in NAMES
    for case in INPUTS[name].optim_inputs_func(device="cpu")
]
SHAPES = [(10, 5), (10,), (), (2, 3, 4, 5), (0, 3)]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "transposed": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "with gaps": lambda x: torch.stack([x, x + 1], -1)[..., 0],
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameters(dtype=torch.float32, layout="contiguous", shapes=SHAPES):
    found = [LAYOUTS[layout](random(*shape, seed=i, dtype=dtype)) for i, shape in enumerate(shapes)]
    return [p.requires_grad_() for p in found]


def copied(tensors):
    """Return new tensors with the same numbers at the same distances in memory."""
    made = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in tensors]
    return [y.copy_(x.detach()).requires_grad_() for x, y in zip(tensors, made, strict=True)]


def state_of(optimizer):
    """Return copies of what is in the state of an optimizer: (index, name) -> tensor."""
    state = optimizer.state_dict()["state"]
    return {(i, name): torch.as_tensor(x).clone() for i, some in state.items() for name, x in some.items()}


class Pair:
    """`ours` and `theirs`, with parameters `mine` and `others`."""

    def __init__(self, name, params, groups=lambda params: params, **arguments):
        self.mine, self.others = params, copied(params)
        self.ours = getattr(fusedstep.torch, name)(groups(self.mine), **copy.deepcopy(arguments))
        self.theirs = getattr(torch.optim, name)(groups(self.others), **copy.deepcopy(arguments))
        self.done = 0

    @property
    def both(self):
        return [(self.ours, self.mine), (self.theirs, self.others)]

    def backward(self, without=()):
        """Let both sides have new gradients, which lie in memory like the parameters in every other step."""
        for i, (p, q) in enumerate(zip(self.mine, self.others, strict=True)):
            grad = random(*p.shape, seed=100 * self.done + i, dtype=p.dtype)
            if self.done % 2:
                grad = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype).copy_(grad)
            p.grad, q.grad = (None, None) if i in without else (grad, grad.clone())

    def step(self, steps=1, without=()):
        for _ in range(steps):
            self.backward(without)
            self.ours.step()
            self.theirs.step()
            self.done += 1

    def assert_close(self, tolerance=2e-5):
        """Assert that parameters and states are those of PyTorch."""
        close = {"rtol": tolerance, "atol": tolerance}
        for p, q in zip(self.mine, self.others, strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), **close)
        found, expected = state_of(self.ours), state_of(self.theirs)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, **close, msg=lambda said, key=key: f"{key}: {said}")
