"""Runs that were begun in torch go on in fusedstep, and the other way round."""

import numpy as np
import pytest

import fusedstep
from tests.rules import entries

torch = pytest.importorskip("torch")

STEPS, SIZE, TOLERANCE = 10, 40, 1e-12


@pytest.fixture(params=entries("TORCH"), ids=lambda case: f"{case[0]} as {case[2]} {case[3]}")
def pair(request):
    """An optimizer of each library, and tensors; PyTorch keeps counts and Nadam's product in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    name, ours, other, theirs = request.param
    rng = np.random.default_rng(6)
    tensors = [torch.from_numpy(rng.normal(size=SIZE)), torch.from_numpy(rng.normal(size=(2, 3)))]
    yield getattr(fusedstep, name)(**ours), getattr(torch.optim, other)(tensors, **theirs), tensors
    torch.set_default_dtype(before)


def train(steps, seed, tensors, torch_opt=None, params=None, opt=None):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        grads = [rng.normal(size=x.shape) for x in tensors]
        if torch_opt:
            for tensor, g in zip(tensors, grads, strict=True):
                tensor.grad = torch.from_numpy(g)
            torch_opt.step()
        if opt:
            opt.step(params, grads)


def assert_close(params, tensors):
    for p, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(p, tensor.numpy(), rtol=TOLERANCE, atol=TOLERANCE)


def test_a_run_of_torch_goes_on_here(pair):
    opt, torch_opt, tensors = pair
    train(STEPS, 7, tensors, torch_opt)
    params = [tensor.numpy().copy() for tensor in tensors]
    opt.load_state_dict({"state": torch_opt.state_dict()["state"]}, names="torch")
    train(STEPS, 8, tensors, torch_opt, params, opt)
    assert_close(params, tensors)


def test_a_run_from_here_goes_on_in_torch(pair):
    opt, torch_opt, tensors = pair
    params = [tensor.numpy().copy() for tensor in tensors]
    train(STEPS, 7, params, None, params, opt)
    for tensor, p in zip(tensors, params, strict=True):
        tensor.copy_(torch.from_numpy(p))
    saved = torch_opt.state_dict()
    saved["state"] = {
        key: {name: torch.as_tensor(value) for name, value in some.items()}
        for key, some in opt.state_dict(names="torch")["state"].items()
    }
    torch_opt.load_state_dict(saved)
    train(STEPS, 8, tensors, torch_opt, params, opt)
    assert_close(params, tensors)


def test_names_are_those_of_torch(pair):
    opt, torch_opt, tensors = pair
    train(2, 7, tensors, torch_opt, [tensor.numpy().copy() for tensor in tensors], opt)
    theirs = torch_opt.state_dict()["state"]
    for key, some in opt.state_dict(names="torch")["state"].items():
        assert set(some) == {"step", *theirs.get(key, {})}
        for name, value in theirs.get(key, {}).items():
            np.testing.assert_allclose(some[name], np.asarray(value), rtol=TOLERANCE)


def test_a_run_of_bfloat16():
    """A bfloat16 state of PyTorch is loaded as the error message advises, and PyTorch takes it back bit for bit."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    tensor = torch.linspace(-2, 2, SIZE, dtype=torch.bfloat16)
    torch_opt = torch.optim.Adam([tensor])
    for _ in range(3):
        tensor.grad = tensor.clone()
        torch_opt.step()
    theirs = torch_opt.state_dict()["state"]

    opt = fusedstep.Adam(state_dtype="same", master_weights="split")
    with pytest.raises(TypeError, match=r"is bfloat16 of torch\.Tensor, .*, expected .* tensor\.view\(torch\.uint16\)"):
        opt.load_state_dict({"state": theirs}, names="torch")
    assert not opt.t
    state = {name: a.view(torch.uint16).numpy().view(bfloat16) if a.ndim else a for name, a in theirs[0].items()}
    opt.load_state_dict({"state": {0: state}}, names="torch")
    assert dict(opt.t) == {0: 3}
    for ours, its in (("m", "exp_avg"), ("v", "exp_avg_sq")):
        assert opt.state[0][ours].tobytes() == state[its].tobytes()

    p = tensor.view(torch.uint16).numpy().view(bfloat16)
    before = p.copy()
    opt.step(p, before)
    assert (p != before).any()
    back = opt.state_dict(names="torch")["state"][0]
    assert list(back) == ["step", "exp_avg", "exp_avg_sq", "remainder"]
    saved = torch_opt.state_dict()
    saved["state"] = {0: {n: torch.from_numpy(back[n].view(np.uint16)).view(torch.bfloat16) for n in list(state)[1:]}}
    saved["state"][0]["step"] = torch.tensor(float(back["step"]))
    torch_opt.load_state_dict(saved)
    for name, a in torch_opt.state_dict()["state"][0].items():
        found = a.view(torch.uint16).numpy().tobytes() if a.ndim else float(a)
        assert found == (back[name].tobytes() if a.ndim else back[name])
