"""Tensors on a GPU, which here is an emulated one: each step gives the bits of the same step in host memory."""

import numpy as np
import pytest
import torch

import fusedstep as fs
import fusedstep.torch
from fusedstep.torch import bucket
from tests.torch.device import OnGpu, current_stream, in_memory_of, on_gpu, unread
from tests.torch.pairs import CASES, LAYOUTS, NAMES, parameters, random, state_of

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
OPTIONS = [
    {"clip_global_norm": 0.5},
    {"ema": 0.9, "l1": 1e-3},
    {"zero_grad": True, "skip_nonfinite": True},
    {"master_weights": True, "state_dtype": "float32"},
    {"master_weights": "split"},
    {"rounding": "stochastic", "seed": 3},
]


@pytest.fixture(autouse=True)
def device(cupy):
    """The emulated device, on which nothing is left to do after a test."""
    if not hasattr(cupy, "emulator"):
        pytest.skip("needs the emulated runtime")
    OnGpu.wait = cupy.cuda.Device().synchronize
    yield cupy.cuda.Device()
    cupy.cuda.Device().synchronize()


def copies(params):
    """Return parameters with the same numbers and strides that say that they are on a GPU."""
    made = [torch.empty_strided(p.shape, p.stride(), dtype=p.dtype) for p in params]
    return [on_gpu(q.copy_(p.detach()).requires_grad_()) for q, p in zip(made, params, strict=True)]


class Sides:
    """Two optimizers of one class, `host` and `gpu`, with parameters in host memory and on the GPU."""

    def __init__(self, device, name, params=None, groups=lambda params: params, **arguments):
        self.device = device
        self.there = parameters() if params is None else params
        self.here = copies(self.there)
        self.host = getattr(fusedstep.torch, name)(groups(self.there), **arguments)
        self.gpu = getattr(fusedstep.torch, name)(groups(self.here), **arguments)
        self.done = 0

    def backward(self, without=()):
        for i, (p, q) in enumerate(zip(self.there, self.here, strict=True)):
            grad = None if i in without else random(*p.shape, seed=100 * self.done + i, dtype=p.dtype)
            p.grad, q.grad = grad, None if grad is None else on_gpu(grad.clone())

    def step(self, steps=1, without=()):
        for _ in range(steps):
            self.backward(without)
            self.host.step()
            self.gpu.step()
            self.device.synchronize()
            self.done += 1

    def assert_equal(self):
        """Assert that parameters, gradients and states have the same bits."""
        for p, q in zip(self.there, self.here, strict=True):
            assert same(p, q)
            assert (p.grad is None) == (q.grad is None)
            assert p.grad is None or same(p.grad, q.grad)
        found, expected = state_of(self.gpu), state_of(self.host)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert same(value, found[key]), key


def same(a, b):
    """Return whether two tensors have the same bits."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    a, b = (x.detach().as_subclass(torch.Tensor).contiguous().reshape(-1) for x in (a, b))
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_every_class(device, name, arguments):
    sides = Sides(device, name, **arguments)
    sides.step(2)
    sides.step(2, without=[1])
    sides.step()
    sides.assert_equal()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_types_and_layouts(device, dtype, layout):
    sides = Sides(device, "AdamW", parameters(dtype, layout))
    sides.step(3)
    sides.assert_equal()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
@pytest.mark.parametrize("name", ["SGD", "NAdam"])
def test_options(device, name, options):
    sides = Sides(device, name, parameters(torch.bfloat16), options=options)
    sides.step(2)
    sides.backward()
    if "skip_nonfinite" in options:
        sides.there[0].grad[0] = np.inf
        sides.here[0].grad[0] = np.inf
    sides.host.step()
    sides.gpu.step()
    sides.device.synchronize()
    sides.step(2)
    sides.assert_equal()


def test_groups_of_several_rules_and_rates(device):
    def groups(params):
        return [
            {"params": params[:2], "lr": 0.1},
            {"params": params[2:4], "amsgrad": True},
            {"params": params[4:], "weight_decay": 0.5},
        ]

    sides = Sides(device, "Adam", groups=groups)
    for i in range(4):
        sides.step()
        sides.host.param_groups[1]["lr"] = sides.gpu.param_groups[1]["lr"] = 0.01 * (i + 1)
    sides.assert_equal()


def test_parameters_in_host_memory_and_on_a_gpu(device):
    sides = Sides(device, "Adam")
    params = [p if i % 2 else q for i, (p, q) in enumerate(zip(parameters(), copies(parameters()), strict=True))]
    mixed = fusedstep.torch.Adam(params)
    for _ in range(3):
        sides.step()
        for i, p in enumerate(params):
            p.grad = sides.there[i].grad if i % 2 else sides.here[i].grad
        mixed.step()
        device.synchronize()
    assert all(map(same, sides.there, params))
    with pytest.raises(
        ValueError, match="of one rule on one kind of device, not adam in host memory and adam on a GPU"
    ):
        fusedstep.torch.Adam(params, options={"clip_global_norm": 1.0}).step()


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_continued_by_the_class_of_pytorch_and_back(device, name):
    sides = Sides(device, name)
    sides.step(2)
    theirs = getattr(torch.optim, name)(sides.there)
    theirs.load_state_dict(sides.gpu.state_dict())
    again = getattr(fusedstep.torch, name)(sides.here)
    again.load_state_dict(theirs.state_dict())
    sides.gpu = again
    sides.step(2)
    sides.assert_equal()


@pytest.mark.parametrize("name", ["Adam", "NAdam", "Adagrad"])
def test_counters_may_be_set(device, name):
    sides = Sides(device, name, **({"lr_decay": 0.1} if name == "Adagrad" else {}))
    sides.step(3)
    for optimizer in (sides.host, sides.gpu):
        for p in optimizer.param_groups[0]["params"][:2]:
            optimizer.state[p]["step"].fill_(7)
    sides.step(2)
    sides.assert_equal()
    assert [int(sides.gpu.state[p]["step"]) for p in sides.here[:3]] == [9, 9, 5]


def test_the_numbers_of_grad_scaler_are_read_by_the_gpu(device):
    """A step with an infinity changes nothing and counts nothing, and the host reads neither it nor the scale."""
    sides = Sides(device, "NAdam", options={"zero_grad": True})
    sides.step()
    for found_inf, scale in [(0.0, 4.0), (1.0, 4.0), (0.0, 2.0), (1.0, 2.0), (0.0, 8.0)]:
        sides.backward()
        for optimizer, wrap in ((sides.host, lambda x: x), (sides.gpu, on_gpu)):
            optimizer.found_inf, optimizer.grad_scale = (wrap(torch.full((1,), x)) for x in (found_inf, scale))
        sides.host.step()
        with unread():
            sides.gpu.step()
        device.synchronize()
        for optimizer in (sides.host, sides.gpu):
            del optimizer.found_inf, optimizer.grad_scale
        sides.assert_equal()
    assert [int(sides.gpu.state[p]["step"]) for p in sides.here] == [4] * len(sides.here)
    assert not any(p.grad.any() for p in sides.here)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_graph_reads_its_numbers_from_the_gpu(device, cupy, recorder, dtype):
    """A captured step is replayed with other gradients, another rate and an infinity; states and counters follow."""
    lr, found_inf, scale = torch.zeros((), dtype=dtype), torch.zeros(1), torch.full((1,), 2.0)
    sides = Sides(device, "AdamW", lr=1e-2)
    sides.gpu.param_groups[0]["lr"] = on_gpu(lr)
    sides.gpu.found_inf, sides.gpu.grad_scale = on_gpu(found_inf), on_gpu(scale)
    sides.backward()
    graph = None
    with recorder, current_stream(recorder.stream):
        for i in range(6):
            rate = 0.1 / (i + 1)
            lr.fill_(rate)
            found_inf.fill_(float(i == 4))
            for p, q in zip(sides.there, sides.here, strict=True):
                p.grad += 1
                q.grad.copy_(p.grad)
            if i == 2:
                graph, _ = recorder.capture(sides.gpu.step)
                # Numbers that PyTorch would compute within the graph.
                assert [float(sides.gpu.state[q]["step"]) for q in sides.here] == [2.0] * len(sides.here)
            with unread():
                recorder.replay(graph) if graph else sides.gpu.step()
            recorder.stream.synchronize()
            sides.host.param_groups[0]["lr"] = float(lr)
            if i != 4:
                for p in sides.there:
                    p.grad /= 2
                sides.host.step()
                for p in sides.there:
                    p.grad *= 2
    sides.assert_equal()
    assert [int(sides.gpu.state[q]["step"]) for q in sides.here] == [5] * len(sides.here)


@pytest.mark.parametrize("is_told", [True, False], ids=["PyTorch tells of the capture", "the engine finds it"])
def test_a_first_step_cannot_be_captured(device, recorder, monkeypatch, is_told):
    sides = Sides(device, "Adam")
    sides.backward()
    with recorder, current_stream(recorder.stream), monkeypatch.context() as patched:
        patched.setattr(bucket, "is_capturing", lambda: is_told)
        recorder.stream.begin_capture()
        with pytest.raises(RuntimeError, match="the stream is being captured, expected a step with these param"):
            sides.gpu.step()
        recorder.stream.end_capture()
    assert not is_told or not sides.gpu.state
    sides.step(2)
    sides.assert_equal()


def test_rates_that_the_host_computes_cannot_be_captured(device, monkeypatch):
    sides = Sides(device, "Adagrad", lr_decay=0.1)
    sides.step(2)
    with monkeypatch.context() as patched:
        patched.setattr(bucket, "is_capturing", lambda: True)
        with pytest.raises(RuntimeError, match="the stream is being captured, expected lr_decay to be 0"):
            sides.gpu.step()
    sides.step(2)
    sides.assert_equal()


@pytest.mark.parametrize("how", ["class for PyTorch", "class", "function"])
def test_a_step_is_made_in_the_current_stream_of_pytorch(cupy, device, how):
    """A gradient is made in a stream of PyTorch just before the step, and the parameter read there right after."""
    stream = cupy.cuda.Stream(non_blocking=True)
    p, g = (cupy.asarray(np.zeros(3000, np.float32)) for _ in range(2))
    param, grad = in_memory_of(p), in_memory_of(g)
    seen = cupy.asarray(np.zeros(3000, np.float32))
    cupy.cuda.Device().synchronize()
    optimizer = fusedstep.torch.SGD([param], lr=0.1) if how == "class for PyTorch" else fs.SGD(lr=0.1)
    param.grad = grad
    for i in range(1, 4):
        with current_stream(stream):
            with stream:
                g.fill(i)
            if how == "class for PyTorch":
                optimizer.step()
            elif how == "class":
                optimizer.step([param], [grad])
            else:
                fs.functional.sgd(param, grad, lr=0.1)
            with stream:
                seen.data.copy_from_device_async(p.data, p.nbytes, stream)
        assert cupy.emulator.emulator_pending(0, 0) == 0 or how != "class for PyTorch"
        stream.synchronize()
        expected = -np.cumsum(np.float32(0.1) * np.arange(1, i + 1, dtype=np.float32))[-1]
        assert np.allclose(seen.get(), expected)


def test_a_step_waits_for_nothing(device, emulator):
    """A step with new gradients allocates, copies and awaits nothing, and looks at no array in Python."""
    sides = Sides(device, "AdamW")
    sides.step(3)
    sides.backward()
    emulator.emulator_reset_calls()
    with unread():
        sides.gpu.step()
    calls = emulator.emulator_calls
    for name in ("Malloc", "MallocAsync", "Free", "FreeAsync", "Memcpy", "MemcpyAsync", "Memset", "MemsetAsync"):
        assert calls(f"cuda{name}".encode()) == 0, name
    for name in ("DeviceSynchronize", "StreamSynchronize", "EventSynchronize", "EventQuery"):
        assert calls(f"cuda{name}".encode()) == 0, name
    assert calls(b"cudaLaunchKernel") == 3  # addresses of gradients, scalars, update


def test_what_is_refused_changes_nothing(device):
    sides = Sides(device, "Adam")
    sides.step()
    before = [p.detach().clone() for p in sides.here]
    sides.backward()
    sides.here[1].grad = None
    state = sides.gpu.state[sides.here[0]]
    kept = state["exp_avg"]
    state["exp_avg"] = kept.as_subclass(torch.Tensor)
    with pytest.raises(RuntimeError, match="state exp_avg is in host memory, expected it on a GPU"):
        sides.gpu.step()
    state["exp_avg"] = kept
    assert all(map(same, before, sides.here))
    sides.here[1].grad = on_gpu(sides.there[1].grad.clone())
    sides.host.step()
    sides.gpu.step()
    device.synchronize()
    sides.assert_equal()


def test_gradients_of_pytorch_beside_parameters_of_cupy(cupy, device):
    """The step is made in CuPy's stream, after what made the gradient in PyTorch's and before what comes there."""
    stream = cupy.cuda.Stream(non_blocking=True)
    p, g = (cupy.asarray(np.zeros(3000, np.float32)) for _ in range(2))
    grad = in_memory_of(g)
    cupy.cuda.Device().synchronize()
    optimizer = fs.SGD(lr=0.5)
    for i in range(1, 4):  # the gradient is recognised from the second step on
        with current_stream(stream):
            with stream:
                g.fill(i)
            optimizer.step([p], [grad])
            with stream:
                g.fill(100.0)
    device.synchronize()
    assert (p.get() == -3.0).all()
