"""Schedules have the values of torch.optim.lr_scheduler."""

import pytest

from fusedstep import schedules as s

torch = pytest.importorskip("torch")
scheduler = torch.optim.lr_scheduler

LR = 0.3
UPDATES = 60

CASES = {
    "constant": (s.constant(LR), lambda o: scheduler.ConstantLR(o, factor=1.0)),
    "exponential": (s.exponential(LR, 0.9), lambda o: scheduler.ExponentialLR(o, 0.9)),
    "step": (s.step(LR, 0.5, 7), lambda o: scheduler.StepLR(o, 7, 0.5)),
    "multistep": (s.multistep(LR, 0.5, [1, 7, 30]), lambda o: scheduler.MultiStepLR(o, [1, 7, 30], 0.5)),
    "inverse_time": (s.inverse_time(LR, 0.2), lambda o: scheduler.LambdaLR(o, lambda t: 1 / (1 + 0.2 * t))),
    "polynomial": (s.polynomial(LR, 0, 25), lambda o: scheduler.PolynomialLR(o, 25)),
    "polynomial-2": (s.polynomial(LR, 0, 25, 2), lambda o: scheduler.PolynomialLR(o, 25, 2.0)),
    "polynomial-0.9": (s.polynomial(LR, 0, 25, 0.9), lambda o: scheduler.PolynomialLR(o, 25, 0.9)),
    "warmup": (s.warmup(LR / 4, LR, 9), lambda o: scheduler.LinearLR(o, 0.25, 1.0, 9)),
    "cosine": (s.cosine(LR, 25, 0.1, "periodic"), lambda o: scheduler.CosineAnnealingLR(o, 25, 0.1 * LR)),
    "restarts": (s.cosine_restarts(LR, 7), lambda o: scheduler.CosineAnnealingWarmRestarts(o, 7)),
    "restarts-2": (
        s.cosine_restarts(LR, 7, 2, alpha=0.1),
        lambda o: scheduler.CosineAnnealingWarmRestarts(o, 7, 2, 0.1 * LR),
    ),
    "sequential": (
        s.sequential([s.warmup(LR / 4, LR, 9), s.exponential(LR, 0.9), s.step(LR, 0.1, 3)], [9, 30]),
        lambda o: scheduler.SequentialLR(
            o,
            [scheduler.LinearLR(o, 0.25, 1.0, 9), scheduler.ExponentialLR(o, 0.9), scheduler.StepLR(o, 3)],
            [9, 30],
        ),
    ),
    "product": (
        s.product(s.exponential(LR, 0.9), s.step(1, 0.5, 7)),
        lambda o: scheduler.ChainedScheduler([scheduler.ExponentialLR(o, 0.9), scheduler.StepLR(o, 7, 0.5)]),
    ),
}


@pytest.fixture
def optimizer():
    return torch.optim.SGD([torch.zeros(1)], lr=LR)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*epoch parameter:UserWarning")  # SequentialLR itself passes an epoch
def test_values(optimizer, name):
    ours, make = CASES[name]
    theirs = make(optimizer)
    for done in range(UPDATES):
        assert ours(done) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15)
        optimizer.step()
        theirs.step()


def test_cosine_held(optimizer):
    theirs = scheduler.CosineAnnealingLR(optimizer, 25, 0.1 * LR)
    ours = s.cosine(LR, 25, 0.1)
    for done in range(UPDATES):
        assert ours(done) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=0)
        optimizer.step()
        if done < 25:
            theirs.step()


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize("cooldown", [0, 3])
@pytest.mark.parametrize("min_lr", [0.0, 0.05, 1.0])
def test_plateau(optimizer, mode, threshold_mode, cooldown, min_lr):
    options = {"mode": mode, "threshold_mode": threshold_mode, "cooldown": cooldown, "min_lr": min_lr}
    options |= {"factor": 0.5, "patience": 2, "threshold": 0.05}
    ours, theirs = s.plateau(LR, **options), scheduler.ReduceLROnPlateau(optimizer, **options)
    metrics = [(1 + t % 5) * (0.98**t if mode == "min" else 1.02**t) for t in range(100)]
    for x in [*metrics, float("nan"), *[1.0] * 100]:
        ours.observe(x)
        theirs.step(x)
        assert ours(0) == optimizer.param_groups[0]["lr"]
        assert (ours.best, ours.bad, ours.cooldown_left) == (
            theirs.best,
            theirs.num_bad_epochs,
            theirs.cooldown_counter,
        )
