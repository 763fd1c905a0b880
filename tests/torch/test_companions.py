"""What is used beside optimizers: loss scales, clipping, averages of weights."""

import math

import pytest
import torch
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

import fusedstep.torch
from tests.torch.pairs import NAMES, Pair, parameters, random, state_of


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_grad_scaler(name, unscaled):
    """The fourth step is infinite and skipped; with `unscale_`, gradients are clipped before the step."""
    pair = Pair(name, parameters(), lr=0.01)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2) for _ in range(2)]
    for k in range(7):
        before = [p.detach().clone() for p in pair.mine], state_of(pair.ours)
        for scaler, (optimizer, params) in zip(scalers, pair.both, strict=True):
            optimizer.zero_grad()
            loss = sum((p * (k + 1)).square().sum() for p in params) * (math.inf if k == 3 else 1)
            scaler.scale(loss).backward()
            if unscaled:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(params, 1.0)
            grads = [p.grad.clone() for p in params]
            scaler.step(optimizer)
            scaler.update()
            if optimizer is pair.ours and k != 3:  # the step itself divides by the scale, and only reads
                assert all(torch.equal(p.grad, grad) for p, grad in zip(params, grads, strict=True))
            assert not hasattr(optimizer, "grad_scale")
            assert not hasattr(optimizer, "found_inf")
        if k == 3:
            assert all(map(torch.equal, pair.mine, before[0]))
            assert state_of(pair.ours).keys() == before[1].keys()
            assert all(torch.equal(x, before[1][key]) for key, x in state_of(pair.ours).items())
        assert scalers[0].get_scale() == scalers[1].get_scale()
        pair.assert_close()
    assert scalers[0].get_scale() != 1024


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_grad_scaler_with_options(name):
    """Limits hold for the gradients without the scale, as they do for those of fusedstep."""
    outcomes = []
    for scale in (1.0, 4096.0):
        p = random(20).requires_grad_()
        optimizer = getattr(fusedstep.torch, name)([p], lr=0.5, options={"clip_global_norm": 0.25})
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(p.square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        outcomes.append(p.detach())
    assert torch.equal(*outcomes)


@pytest.mark.parametrize("name", NAMES)
def test_clipping_by_pytorch(name):
    pair = Pair(name, parameters(), lr=0.01)
    for _ in range(3):
        pair.backward()
        for optimizer, params in pair.both:
            torch.nn.utils.clip_grad_norm_(params, 0.5)
            torch.nn.utils.clip_grad_value_(params, 0.25)
            optimizer.step()
        pair.done += 1
    pair.assert_close()


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_clipping_by_options_is_that_of_pytorch(name):
    clips = {
        "clip_global_norm": lambda params: torch.nn.utils.clip_grad_norm_(params, 0.5),
        "clip_value": lambda params: torch.nn.utils.clip_grad_value_(params, 0.5),
        "clip_norm": lambda params: [torch.nn.utils.clip_grad_norm_([p], 0.5) for p in params],
    }
    for option, clip in clips.items():
        pair = Pair(name, parameters(), lr=0.01)
        ours = getattr(fusedstep.torch, name)(pair.mine, lr=0.01, options={option: 0.5})
        pair.ours = ours
        for _ in range(3):
            pair.backward()
            clip(pair.others)
            pair.ours.step()
            pair.theirs.step()
            pair.done += 1
        pair.assert_close()


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


@pytest.mark.parametrize("averaging", [None, get_ema_multi_avg_fn(0.75)], ids=["mean", "ema"])
@pytest.mark.parametrize("name", NAMES)
def test_averages_of_models(name, averaging):
    outcomes = []
    for module in (torch.optim, fusedstep.torch):
        net = model().double()
        optimizer = getattr(module, name)(net.parameters(), lr=0.001)
        average, scheduler = AveragedModel(net, multi_avg_fn=averaging), SWALR(optimizer, swa_lr=0.01, anneal_epochs=3)
        batches = [random(6, 4, seed=k, dtype=torch.float64) for k in range(6)]
        for x in batches:
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
            average.update_parameters(net)
            scheduler.step()
        update_bn(batches, average)
        outcomes.append([average(batches[0]).detach(), *(p.detach() for p in average.parameters())])
    torch.testing.assert_close(*outcomes, rtol=1e-5, atol=1e-5)


def test_the_option_ema_is_the_average_of_pytorch():
    pair = Pair("AdamW", parameters(), lr=0.05)
    ours = fusedstep.torch.AdamW(pair.mine, lr=0.05, options={"ema": 0.75})
    average = AveragedModel(torch.nn.ParameterList(pair.others), multi_avg_fn=get_ema_multi_avg_fn(0.75))
    for k in range(5):
        pair.done = k
        pair.backward()
        ours.step()
        pair.theirs.step()
        average.update_parameters(torch.nn.ParameterList(pair.others))
    for p, expected in zip(pair.mine, average.module, strict=True):
        torch.testing.assert_close(ours.state[p]["ema"], expected.detach(), rtol=2e-5, atol=2e-5)


def test_accumulated_gradients_and_autocast():
    outcomes = []
    for module in (torch.optim, fusedstep.torch):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        optimizer = module.AdamW(net.parameters(), lr=0.01)
        for k in range(6):
            with torch.autocast("cpu", torch.bfloat16):
                loss = net(random(6, 4, seed=k)).square().mean() / 2
            loss.backward()
            if k % 2:
                optimizer.step()
                optimizer.zero_grad()
        outcomes.append([p.detach() for p in net.parameters()])
    torch.testing.assert_close(*outcomes)
