"""Tensors of PyTorch in host memory: of any layout and type, those that are refused, and the count of their writes."""

import subprocess
import sys
from itertools import product

import numpy as np
import pytest

import fusedstep as fs
from tests.peers.beside import step_beside_numpy

torch = pytest.importorskip("torch")

TYPES = [torch.float32, torch.float64, torch.float16, torch.complex64, torch.complex128]


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


LAYOUTS = {
    "rows": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "a part of another": lambda x: torch.cat([x, x])[: len(x)],
    "a subclass": lambda x: x.as_subclass(type("Own", (torch.Tensor,), {})),
    "of inference mode": lambda x: torch.inference_mode()(x.clone)(),
    "cloned lazily": torch._lazy_clone,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_parameter_of_any_dense_layout(layout):
    param = layout(random(4, 3, 5, 2))
    step_beside_numpy(param, [random(4, 3, 5, 2) + k for k in range(3)], lambda x: x.numpy())


@pytest.mark.parametrize(("dtype", "grad_dtype"), [*product(TYPES[:3], TYPES[:3]), *product(TYPES[3:], TYPES[3:])])
def test_types(dtype, grad_dtype):
    grads = [random(7, dtype=grad_dtype) * (k + 1) for k in range(3)]
    step_beside_numpy(random(7, dtype=dtype), grads, lambda x: x.numpy())


@pytest.mark.parametrize(
    "grad",
    [
        random(3, 4).T,
        random(8, 3)[::2],
        random(1, 3).expand(4, 3),
        random(2, 12)[1].view(4, 3),
        random(4, 3).to(torch.bfloat16),
        np.ones((4, 3)).T.copy().T,
    ],
    ids=["transposed", "strided", "expanded", "a view", "bfloat16", "of NumPy"],
)
def test_gradients(grad):
    as_float64 = torch.from_numpy(grad) if isinstance(grad, np.ndarray) else grad.to(torch.float64)
    p, q = torch.ones(4, 3), np.ones((4, 3), np.float32)
    opt, other = fs.Adam(), fs.Adam()
    for _ in range(3):
        opt.step(p, grad)
        other.step(q, as_float64.numpy())
    assert p.numpy().tobytes() == q.tobytes()


def test_new_tensors_over_the_same_memory_at_each_step():
    model = torch.nn.Linear(3, 2)
    before = {key: p.detach().numpy().copy() for key, p in model.named_parameters()}
    opt, other = fs.Adam(), fs.Adam()
    for _ in range(3):
        grads = {key: random(*p.shape) for key, p in model.named_parameters()}
        opt.step({key: p.detach() for key, p in model.named_parameters()}, grads)
        other.step(before, {key: g.numpy() for key, g in grads.items()})
    for key, p in model.named_parameters():
        assert p.detach().numpy().tobytes() == before[key].tobytes()


@pytest.mark.parametrize("options", [{}, {"master_weights": True}, {"rounding": "stochastic", "seed": 1}], ids=str)
def test_bfloat16(options):
    ml_dtypes = pytest.importorskip("ml_dtypes")

    def read(x):
        return x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)

    grads = [random(50, dtype=torch.bfloat16) * (k + 1) for k in range(3)]
    step_beside_numpy(random(50, dtype=torch.bfloat16), grads, read, **options)


def test_bfloat16_without_ml_dtypes():
    """Gradients and functions need nothing; an optimizer keeps NumPy's arrays beside parameters of a known dtype."""
    code = """if True:
        import sys
        sys.modules["ml_dtypes"] = None
        import torch, fusedstep as fs
        p, g = torch.ones(40, dtype=torch.bfloat16), torch.ones(40, dtype=torch.bfloat16)
        fs.functional.sgd(p, g, lr=1.0)
        assert p.tolist() == [0.0] * 40, p
        q = torch.ones(40)
        fs.SGD(lr=0.5).step(q, g)
        assert q.tolist() == [0.5] * 40, q
        try:
            fs.Adam().step(p, g)
        except RuntimeError as error:
            assert str(error).startswith("bfloat16 parameters need the package ml_dtypes"), error
        else:
            raise AssertionError
        assert p.tolist() == [0.0] * 40, p
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def fake(*shape):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(shape)


class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls, *shape):
        return torch.Tensor._make_wrapper_subclass(cls, shape)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError


def freed(*shape):
    tensor = torch.ones(shape)
    tensor.untyped_storage().resize_(0)
    return tensor


WITHOUT_MEMORY = {
    "sparse": lambda: torch.ones(2, 3).to_sparse(),
    "sparse rows": lambda: torch.ones(2, 3).to_sparse_csr(),
    "meta": lambda: torch.ones(2, 3, device="meta"),
    "fake": lambda: fake(2, 3),
    "wrapper": lambda: Wrapper(2, 3),
    "freed": lambda: freed(2, 3),
    "zeros without memory": lambda: torch._efficientzerotensor((2, 3)),
}


@pytest.mark.filterwarnings("ignore:.*[Ss]parse:UserWarning")
@pytest.mark.parametrize("make", WITHOUT_MEMORY.values(), ids=WITHOUT_MEMORY)
def test_what_has_no_memory_is_refused(make):
    first, good = torch.ones(2, 3), torch.ones(2, 3)
    opt = fs.SGD()
    with pytest.raises(TypeError, match=r"^params\[1\] is of type .* shows no memory, expected a dense tensor"):
        opt.step([first, make()], [good, good])
    with pytest.raises(TypeError, match=r"^grads\[1\] is of type .* shows no memory, expected a dense tensor"):
        opt.step([first, torch.ones(2, 3)], [good, make()])
    assert (first == 1).all()
    assert dict(opt.t) == {}


def test_memory_that_is_freed_between_steps_is_noticed():
    p, g = torch.ones(3), torch.ones(3)
    opt = fs.SGD(lr=1.0)
    opt.step(p, g)
    g.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match=r"^grad .* shows no memory"):
        opt.step(p, g)
    p.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match=r"^param .* shows no memory"):
        opt.step(p, torch.ones(3))


def conjugated():
    return torch.full((3,), 1j, dtype=torch.complex64).conj()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: torch._neg_view(torch.ones(3)), BufferError, r"other numbers than those in its memory: \.resolve_neg"),
        (lambda: conjugated().imag, BufferError, r"other numbers than those in its memory: \.resolve_neg"),
        (conjugated, BufferError, r"other numbers than those in its memory: .* \.resolve_conj"),
        (lambda: torch.ones(3, requires_grad=True), BufferError, r"requires a gradient: \.detach\(\) does"),
        (lambda: torch.nn.Parameter(torch.ones(3)), BufferError, r"requires a gradient: \.detach\(\) does"),
        (lambda: torch.ones(3, dtype=torch.int64), TypeError, "is torch.int64, expected float32"),
        (lambda: torch.ones(3, dtype=torch.float8_e5m2), TypeError, "is torch.float8_e5m2, expected float32"),
    ],
    ids=["negated", "part of conjugated", "conjugated", "requires grad", "Parameter", "int64", "float8"],
)
@pytest.mark.parametrize("seen_before", [False, True])
def test_what_stands_for_other_numbers_is_refused(make, error, message, seen_before):
    dtype = torch.complex64 if make is conjugated else torch.float32
    p, g, wrong = torch.ones(3, dtype=dtype), torch.ones(3, dtype=dtype), make()
    opt = fs.SGD(lr=0.25)
    if seen_before:
        opt.step({"w": p}, {"w": g})
    before = p.clone()
    with pytest.raises(error, match=rf"^grads\['w'\].*{message}"):
        opt.step({"w": p}, {"w": wrong})
    with pytest.raises(error, match=rf"^params\['w'\].*{message}"):
        opt.step({"w": wrong}, {"w": g})
    assert torch.equal(p, before)


def test_expanded_parameters_are_refused():
    with pytest.raises(ValueError, match=r"^param has gaps or negative strides"):
        fs.SGD().step(torch.ones(1).expand(3), torch.ones(3))


def test_many_types_of_tensors_are_told_apart():
    """What a type offers is kept in a table of few types, and asked anew beyond it."""
    tensors = [torch.ones(3).as_subclass(type(f"Own{k}", (torch.Tensor,), {})) for k in range(40)]
    fs.SGD(lr=0.5).step(tensors, [torch.ones(3)] * 40)
    assert all(x.tolist() == [0.5] * 3 for x in tensors)
    negated = torch._neg_view(torch.ones(3)).as_subclass(type("Last", (torch.Tensor,), {}))
    with pytest.raises(BufferError, match="resolve_neg"):
        fs.SGD().step(tensors[0], negated)


# PyTorch counts what is written to a tensor, and refuses a derivative that needs the numbers from before.


def test_a_derivative_of_numbers_from_before_a_step_is_refused():
    w = torch.ones(3, requires_grad=True)
    loss = (w * w).sum()
    fs.SGD().step(w.detach(), torch.ones(3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def versions(tensors):
    return [x._version for x in tensors]


def test_what_is_written_is_counted_and_nothing_else():
    p, g = [torch.ones(3) for _ in range(4)], [torch.ones(3) for _ in range(4)]
    opt = fs.SGD(overrides={2: {"frozen": True}}, ema=0.9)
    for k in range(3):
        opt.step(p, [g[0], None, g[2], g[3]])
        assert versions(p) == [k + 1, 0, 0, k + 1]
    with pytest.raises(ValueError, match="shape"):
        opt.step(p, [g[0], None, None, torch.ones(4)])
    assert versions(p) == [3, 0, 0, 3]
    assert versions(g) == [0] * 4


def test_zeroed_gradients_are_counted():
    p, g = torch.ones(3), torch.ones(3)
    fs.SGD(zero_grad=True).step(p, g)
    assert versions([p, g]) == [1, 1]


def test_functions_count_parameters_and_states():
    p, g, b = (torch.ones(3) for _ in range(3))
    fs.functional.momentum(p, g, b, t=1, lr=0.1)
    assert versions([p, g, b]) == [1, 0, 1]
    fs.functional.sgd([p], [g], lr=0.1, zero_grad=True)
    assert versions([p, g, b]) == [2, 1, 1]


def test_tensors_of_inference_mode_count_nothing():
    with torch.inference_mode():
        p = torch.ones(3)
    q = torch.ones(3)
    fs.SGD(lr=0.5).step([p, q], [torch.ones(3)] * 2)
    assert p.tolist() == q.tolist() == [0.5] * 3
    assert q._version == 1


def test_averages_and_files_count_as_writes(tmp_path):
    w = torch.ones(3, requires_grad=True)
    opt = fs.SGD(ema=0.5)
    opt.step({"w": w.detach()}, {"w": torch.ones(3)})
    with opt.averaged({"w": w.detach()}):
        loss = (w * w).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    fs.save(tmp_path / "run.npz", opt, {"w": w.detach()})
    loss = (w * w).sum()
    fs.load(tmp_path / "run.npz", opt, {"w": w.detach()})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
