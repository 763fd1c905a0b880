"""The call of a step: closures, hooks, profiles, what autograd and the compiler see of it."""

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import fusedstep.torch
from tests.torch.pairs import CASES, NAMES, Pair, parameters, random


@pytest.mark.parametrize("name", NAMES)
def test_a_closure_computes_the_loss_with_gradients(name):
    pair = Pair(name, [random(5).requires_grad_()], lr=0.01)

    def closure(optimizer, params):
        nonlocal calls
        calls += 1
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (params[0] ** 2).sum()
        loss.backward()
        return loss

    losses, calls = [], 0
    for _ in range(20):
        for optimizer, params in pair.both:
            with torch.no_grad():
                loss = optimizer.step(lambda o=optimizer, p=params: closure(o, p))
            losses.append(loss.item())
    torch.testing.assert_close(losses[::2], losses[1::2], rtol=1e-5, atol=1e-6)
    assert losses[-1] < losses[0]
    assert calls == len(losses)
    pair.assert_close()


@pytest.mark.parametrize("name", NAMES)
def test_without_a_closure_a_step_returns_nothing(name):
    pair = Pair(name, parameters())
    pair.backward()
    assert pair.ours.step() is None


HOOKS = {
    "before": lambda optimizer, hook: optimizer.register_step_pre_hook(hook),
    "after": lambda optimizer, hook: optimizer.register_step_post_hook(hook),
    "before any": lambda optimizer, hook: register_optimizer_step_pre_hook(hook),
    "after any": lambda optimizer, hook: register_optimizer_step_post_hook(hook),
}


@pytest.mark.parametrize("kinds", [[kind] for kind in HOOKS] + [[*HOOKS]], ids=str)
def test_hooks_run_in_the_order_of_pytorch(kinds):
    seen = {}
    for module in (torch.optim, fusedstep.torch):
        p = torch.ones(3, requires_grad=True)
        optimizer, found = module.Adam([p]), seen.setdefault(module, [])

        def note(kind, optimizer=optimizer, found=found, p=p):
            def hook(caller, args, kwargs):
                assert caller is optimizer
                found.append((kind, p.tolist() == [1.0] * 3, len(args), list(kwargs)))

            return hook

        handles = [HOOKS[kind](optimizer, note(kind)) for kind in kinds]
        try:
            p.grad = torch.ones(3)
            optimizer.step()
            assert optimizer.step(lambda: 1.0) == 1.0
        finally:
            for handle in handles:
                handle.remove()
        optimizer.step()
    assert len(seen[torch.optim]) == 2 * len(kinds)
    assert seen[torch.optim] == seen[fusedstep.torch]


def test_a_hook_may_change_gradients_and_rates():
    p = torch.ones(2, requires_grad=True)
    optimizer = fusedstep.torch.SGD([p], lr=1.0)

    def halve(optimizer, args, kwargs):
        p.grad = p.grad / 2
        optimizer.param_groups[0]["lr"] = 0.5

    optimizer.register_step_pre_hook(halve)
    p.grad = torch.ones(2)
    optimizer.step()
    assert p.tolist() == [0.75] * 2


def test_hooks_of_state_dicts():
    p = torch.ones(2, requires_grad=True)
    optimizer, seen = fusedstep.torch.Adam([p]), []
    optimizer.register_state_dict_pre_hook(lambda optimizer: seen.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda optimizer, saved: seen.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda optimizer, saved: seen.append("before loading"))
    optimizer.register_load_state_dict_post_hook(lambda optimizer: seen.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before saving", "saved", "before loading", "loaded"]


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_has_the_name_of_the_step(name):
    pair = Pair(name, parameters())
    pair.step()
    pair.backward()
    with torch.profiler.profile() as profile:
        pair.ours.step()
    pair.theirs.step()
    names = {event.key for event in profile.key_averages()}
    assert f"Optimizer.step#{name}.step" in names
    pair.assert_close()


@pytest.mark.parametrize("name", NAMES)
def test_zero_grad(name):
    pair = Pair(name, parameters())
    pair.step()
    grads = [p.grad for p in pair.mine]
    pair.ours.zero_grad(set_to_none=False)
    assert all(p.grad is grad and not grad.any() for p, grad in zip(pair.mine, grads, strict=True))
    pair.ours.zero_grad()
    assert all(p.grad is None for p in pair.mine)


def test_the_option_zero_grad_keeps_gradients_as_they_are_but_for_their_numbers():
    p = torch.ones(3, requires_grad=True)
    optimizer = fusedstep.torch.SGD([p], lr=1.0, options={"zero_grad": True})
    p.grad = grad = torch.ones(3)
    optimizer.step()
    assert p.grad is grad
    assert grad.tolist() == p.tolist() == [0.0] * 3
    assert grad._version == 1


@pytest.mark.parametrize("layout", ["contiguous", "with gaps"])
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_step_counts_as_a_write(name, arguments, layout):
    params = parameters(layout=layout, shapes=[(3, 2)])
    optimizer = getattr(fusedstep.torch, name)(params, **arguments)
    for _ in range(3):
        loss = (params[0] ** 3).sum()
        optimizer.zero_grad()
        loss.backward(retain_graph=True)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_step_writes_to_no_parameter_without_a_gradient():
    p, q = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = fusedstep.torch.Adam([p, q])
    for _ in range(3):
        q.grad = torch.ones(3)
        loss = (p**3).sum()
        optimizer.step()
        loss.backward()
        p.grad = None


def test_a_step_leaves_no_graph():
    pair = Pair("NAdam", parameters())
    pair.step(2)
    assert all(p.is_leaf and p.requires_grad for p in pair.mine)
    assert not any(x.requires_grad for x in state_of_tensors(pair.ours))


def state_of_tensors(optimizer):
    return [x for some in optimizer.state.values() for x in some.values()]


def test_gradients_are_not_kept_alive():
    from weakref import ref

    p = torch.ones(3, requires_grad=True)
    optimizer = fusedstep.torch.Adam([p])
    for _ in range(3):
        p.grad = torch.ones(3)
        grad = ref(p.grad)
        optimizer.step()
        p.grad = None
        assert grad() is None


# The compiler looks at the gradients of all tensors where it goes on behind the step, also at that of the loss.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_train_step(name):
    torch.compiler.reset()
    outcomes = []
    for module in (torch.optim, fusedstep.torch):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = getattr(module, name)(model.parameters(), lr=0.01)

        def train(x, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            optimizer.step()
            return loss

        run = torch.compile(train, backend="eager") if module is fusedstep.torch else train
        losses = [run(torch.full((4, 3), 0.5)).item() for _ in range(4)]
        outcomes.append([torch.tensor(losses), *(p.detach() for p in model.parameters())])
    torch.testing.assert_close(*outcomes)
    torch.compiler.reset()


@pytest.mark.parametrize("name", NAMES)
def test_optimizers_in_the_backward_pass(name):
    """Each parameter has an optimizer of its own, which steps as soon as its gradient is there, and frees it."""
    outcomes = []
    for module in (torch.optim, fusedstep.torch):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        optimizers = {p: getattr(module, name)([p], lr=0.01) for p in model.parameters()}

        def step(p, optimizers=optimizers):
            optimizers[p].step()
            optimizers[p].zero_grad()

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(step)
        for k in range(4):
            model(random(5, 4, seed=k)).square().mean().backward()
            assert all(p.grad is None for p in model.parameters())
        outcomes.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*outcomes)


def test_several_threads_of_pytorch_make_the_same_bits():
    outcomes = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            pair = Pair("AdamW", parameters(shapes=[(300, 1000), (5,)]))
            for k in range(2):
                pair.done = k
                pair.backward()
                pair.ours.step()
        finally:
            torch.set_num_threads(before)
        outcomes.append(pair.mine)
    assert all(map(torch.equal, *outcomes))
