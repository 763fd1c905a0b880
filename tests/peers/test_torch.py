"""Trajectories equal those of torch.optim, whose conventions are the defaults; torch tensors as arguments."""

import numpy as np
import pytest

import fusedstep
from fusedstep import functional, reference
from tests.rules import entries

torch = pytest.importorskip("torch")

STEPS, SIZE = 12, 40
TOLERANCE = {np.float64: 1e-12, np.float32: 2e-5}

# Classes and arguments in both libraries. A learning rate is given where the defaults of the libraries differ.
CASES = entries("TORCH")
# Options that every case is combined with; an option of the case itself comes first.
OPTIONS = [{}, {"weight_decay": 0.2}, {"maximize": True}, {"maximize": True, "weight_decay": 0.2}]


@pytest.fixture
def float64_counters():
    """Let PyTorch count in float64: it keeps step counts, and Nadam's product of momenta, in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("float64_counters")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("rates", [None, [0.1 / (1 + t % 4) for t in range(STEPS)]], ids=["constant", "changing"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("name", "ours", "other", "theirs"), CASES)
def test_trajectories(name, ours, other, theirs, options, rates, dtype):
    rng = np.random.default_rng(5)
    p = rng.normal(size=SIZE).astype(dtype)
    tensor = torch.from_numpy(p.copy())
    opt = getattr(fusedstep, name)(**options | ours)
    torch_opt = getattr(torch.optim, other)([tensor], **options | theirs)
    for t in range(STEPS):
        if rates and not callable(opt.lr):
            opt.lr = torch_opt.param_groups[0]["lr"] = rates[t]
        g = rng.normal(size=SIZE).astype(dtype)
        opt.step(p, g)
        tensor.grad = torch.from_numpy(g)
        torch_opt.step()
        np.testing.assert_allclose(p, tensor.numpy(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_are_updated_in_place(dtype):
    p = [torch.linspace(-1, 1, 7, dtype=dtype), torch.ones(2, 3, dtype=dtype), torch.ones((), dtype=dtype)]
    g = [torch.full_like(x, 0.5) for x in p]
    expected = [x.numpy().copy() for x in p]
    opt, judge, address = fusedstep.Adam(), reference.Adam(), [x.data_ptr() for x in p]
    for _ in range(3):
        opt.step(p, g)
        judge.step(expected, [x.numpy() for x in g])
    assert [x.data_ptr() for x in p] == address
    assert [x.numpy().tobytes() for x in p] == [x.tobytes() for x in expected]
    assert all((x == 0.5).all() for x in g)


def test_functions_take_tensors():
    p, g, b = torch.ones(5), torch.ones(5), torch.zeros(5)
    functional.momentum(p, g, b, t=1, lr=0.5)
    assert p.tolist() == [0.5] * 5
    assert b.tolist() == [1.0] * 5


def test_a_tensor_that_requires_grad_asks_to_be_detached():
    p, g = torch.ones(3, requires_grad=True), torch.ones(3)
    opt = fusedstep.SGD(lr=0.5)
    with pytest.raises(BufferError, match="detach"):
        opt.step(p, g)
    with pytest.raises(BufferError, match="detach"):
        opt.step([torch.ones(3), p], [g, g])
    assert p.tolist() == [1.0] * 3
    opt.step(p.detach(), g)
    assert p.tolist() == [0.5] * 3


def test_a_module_can_be_trained():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    opt, torch_opt = fusedstep.Adam(lr=0.1), torch.optim.Adam(theirs.parameters(), lr=0.1)
    for _ in range(10):
        for model in (ours, theirs):
            model.zero_grad()
            torch.nn.functional.mse_loss(model(x), y).backward()
        opt.step(
            {key: p.detach() for key, p in ours.named_parameters()},
            {key: p.grad for key, p in ours.named_parameters()},
        )
        torch_opt.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (torch.ones(3, 3).T[:2], ValueError),
        (torch.ones(6)[::2], ValueError),
        (torch.ones(3, dtype=torch.int32), TypeError),
        (torch.ones(3).to_sparse(), TypeError),
    ],
    ids=["transposed", "strided", "int32", "sparse"],
)
def test_wrong_tensors_are_refused(wrong, error):
    first, before = torch.ones(4), wrong.to_dense()
    with pytest.raises(error, match=r"^params\[1\] "):
        fusedstep.SGD().step([first, wrong], [torch.ones(4), torch.ones(before.shape)])
    assert torch.equal(first, torch.ones(4))
    assert torch.equal(wrong.to_dense(), before)


def test_float16_tensors_are_stepped():
    p, q = torch.ones(40, dtype=torch.float16), np.ones(40, np.float16)
    opt, specification = (module.Adam(master_weights=True) for module in (fusedstep, fusedstep.reference))
    for _ in range(3):
        g = torch.linspace(-1, 1, 40, dtype=torch.float16)
        opt.step(p, g)
        specification.step(q, g.numpy())
    assert p.numpy().tobytes() == q.tobytes()


def test_bfloat16_tensors_are_stepped_as_arrays():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    p = torch.ones(40, dtype=torch.bfloat16)
    view = p.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    fusedstep.SGD(lr=0.5).step(view, view.copy())
    assert torch.equal(p, torch.full((40,), 0.5, dtype=torch.bfloat16))
