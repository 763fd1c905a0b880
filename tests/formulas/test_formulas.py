"""The reference against numbers that were worked out without it: from the papers, by hand, from published examples."""

import inspect
import math
from contextlib import suppress
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import partial
from types import SimpleNamespace
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import fusedstep
from fusedstep import reference
from fusedstep.reference import optimizer as base

NAMES = [name for name in fusedstep.optimizers.__all__ if name != "Optimizer"]
f32 = np.float32
SMALLEST = f32(2.0**-126)

# Defaults, in the order of the arguments; then those that every class has.

DEFAULTS = {
    "SGD": {"lr": 0.01},
    "Momentum": {"lr": 0.01, "momentum": 0.9, "dampening": 0.0, "dampen_first": False, "velocity": "grad"},
    "NAG": {"lr": 0.01, "momentum": 0.9, "velocity": "grad"},
    "Adagrad": {"lr": 0.01, "eps": 1e-10, "eps_mode": "outside", "initial_accumulator": 0.0},
    "RMSprop": {
        "lr": 0.01,
        "rho": 0.99,
        "eps": 1e-8,
        "eps_mode": "outside",
        "momentum": 0.0,
        "velocity": "grad",
        "centered": False,
        "initial_accumulator": 0.0,
    },
    "Adadelta": {"lr": 1.0, "rho": 0.9, "eps": 1e-6},
    "Adam": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "eps_mode": "outside", "amsgrad": False},
    "AdamW": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "eps_mode": "outside", "amsgrad": False},
    "Adamax": {"lr": 2e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "eps_mode": "max"},
    "Nadam": {"lr": 2e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "schedule_decay": 0.004},
    "Lion": {"lr": 1e-4, "beta1": 0.9, "beta2": 0.99},
}
SHARED = {
    "grad_scale": 1.0,
    "clip_value": None,
    "clip_norm": None,
    "clip_global_norm": None,
    "maximize": False,
    "l1": 0.0,
    "weight_decay": 0.0,
    "decoupled": False,
    "ema": None,
    "zero_grad": False,
    "skip_nonfinite": False,
    "state_dtype": "float32",
    "master_weights": False,
    "rounding": "nearest",
    "seed": 0,
    "overrides": {},
}
SHARED_OF = {
    "AdamW": SHARED | {"weight_decay": 0.01, "decoupled": True},
    "Lion": SHARED | {"decoupled": True},
}


def entry(table, name):
    assert name in table, f"{name} is a public optimizer without an entry in the tables of this file"
    return table[name]


@pytest.mark.parametrize("classes", [fusedstep, reference], ids=["fusedstep", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_the_formulas(name, classes):
    cls = getattr(classes, name)
    expected = entry(DEFAULTS, name)
    parameters = inspect.signature(cls).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == list(expected)
    expected = expected | SHARED_OF.get(name, SHARED)
    assert {key: getattr(cls(), key) for key in expected if key != "ema"} | {"ema": None} == expected
    assert {p.name: p.default for p in parameters if p.name == "ema"} == {"ema": None}
    assert {p.name for p in parameters} <= set(expected)


@pytest.mark.parametrize("name", fusedstep.optimizers.__all__)
def test_reference_has_the_same_constructor(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (fusedstep, reference))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


def test_reference_lists_the_same_classes():
    assert set(reference.__all__) == {*fusedstep.optimizers.__all__, "Result", "float_mode"}


# The papers, unrolled: each function returns the update number len(g) from all gradients and rates up to it, in decimal
# arithmetic of 50 digits. No states: what a rule remembers is a sum over its past.


def fading(beta, xs):
    """Return the sum of all x, each times beta once for every update since."""
    return sum(beta**age * x if age else x for age, x in enumerate(reversed(xs)))


def mean(beta, xs):
    return (1 - beta) * fading(beta, xs)


def prefixes(xs):
    return [xs[: t + 1] for t in range(len(xs))]


def squares(xs):
    return [x * x for x in xs]


def products(xs, ys):
    return [x * y for x, y in zip(xs, ys, strict=True)]


def root(x, eps, eps_mode):
    return {"outside": x.sqrt() + eps, "inside": (x + eps).sqrt()}[eps_mode]


def sgd(g, lr):
    return lr[-1] * g[-1]


def momentum(g, lr, momentum, dampening, dampen_first, velocity):
    kept = [1 - dampening for _ in g]
    kept[0] = 1 - dampening if dampen_first else 1
    if velocity == "step":
        return fading(momentum, products(kept, products(lr, g)))
    return lr[-1] * fading(momentum, products(kept, g))


def nag(g, lr, momentum, velocity):
    past = products(lr, g) if velocity == "step" else g
    ahead = past[-1] + momentum * fading(momentum, past)
    return ahead if velocity == "step" else lr[-1] * ahead


def adagrad(g, lr, eps, eps_mode, initial_accumulator):
    return lr[-1] * g[-1] / root(initial_accumulator + sum(squares(g)), eps, eps_mode)


def rmsprop(g, lr, rho, eps, eps_mode, momentum, velocity, centered, initial_accumulator):
    def normalised(g):
        variance = rho ** len(g) * initial_accumulator + mean(rho, squares(g))
        if centered:
            variance -= mean(rho, g) ** 2
        return g[-1] / root(variance, eps, eps_mode)

    past = [normalised(some) for some in prefixes(g)]
    return fading(momentum, products(lr, past)) if velocity == "step" else lr[-1] * fading(momentum, past)


def adadelta(g, lr, rho, eps):
    moves = []
    for some in prefixes(g):
        rms_of_moves, rms_of_gradients = (root(mean(rho, squares(x)), eps, "inside") for x in (moves, some))
        moves.append(rms_of_moves / rms_of_gradients * some[-1])
    return lr[-1] * moves[-1]


def adam(g, lr, beta1, beta2, eps, eps_mode, amsgrad):
    t = len(g)
    corrected_mean = mean(beta1, g) / (1 - beta1**t)
    v = [mean(beta2, squares(some)) for some in prefixes(g)]
    corrected_square = (max(v) if amsgrad else v[-1]) / (1 - beta2**t)
    if eps_mode == "hat":  # eps beside the root of the raw v
        return lr[-1] * corrected_mean / (corrected_square.sqrt() + eps / (1 - beta2**t).sqrt())
    return lr[-1] * corrected_mean / root(corrected_square, eps, eps_mode)


def adamax(g, lr, beta1, beta2, eps, eps_mode):
    inner, outer = (eps, 0) if eps_mode == "max" else (0, eps)
    largest = max(beta2**age * (abs(x) + inner) if age else abs(x) + inner for age, x in enumerate(reversed(g)))
    return lr[-1] / (1 - beta1 ** len(g)) * mean(beta1, g) / (largest + outer)


def nadam(g, lr, beta1, beta2, eps, schedule_decay):
    t = len(g)
    mu = [beta1 * (1 - Decimal("0.96") ** (schedule_decay * i) / 2) for i in range(1, t + 2)]
    corrected_gradient = g[-1] / (1 - math.prod(mu[:-1]))
    corrected_mean = mean(beta1, g) / (1 - math.prod(mu))
    corrected_square = mean(beta2, squares(g)) / (1 - beta2**t)
    ahead = (1 - mu[t - 1]) * corrected_gradient + mu[t] * corrected_mean
    return lr[-1] * ahead / (corrected_square.sqrt() + eps)


def lion(g, lr, beta1, beta2):
    *before, now = g
    mixed = beta1 * mean(beta2, before) + (1 - beta1) * now
    return lr[-1] * ((mixed > 0) - (mixed < 0))


# Class -> formula, and the hyperparameters it is tried with: eps and decays so large that every place they take shows.

FORMULAS = {
    "SGD": (sgd, [{}]),
    "Momentum": (
        momentum,
        [
            {},
            {"velocity": "step"},
            {"dampening": 0.3},
            {"dampening": 0.3, "velocity": "step"},
            {"dampening": 0.3, "dampen_first": True},
            {"dampening": 0.3, "dampen_first": True, "velocity": "step"},
            {"momentum": 0.0},
            {"momentum": 1.0, "dampening": 1.0},
        ],
    ),
    "NAG": (nag, [{}, {"velocity": "step"}, {"momentum": 0.0}, {"momentum": 1.0, "velocity": "step"}]),
    "Adagrad": (
        adagrad,
        [
            {},
            {"eps": 0.1},
            {"eps": 0.1, "eps_mode": "inside"},
            {"eps": 0.1, "initial_accumulator": 0.7},
            {"eps": 0.1, "eps_mode": "inside", "initial_accumulator": 0.7},
        ],
    ),
    "RMSprop": (
        rmsprop,
        [
            {},
            {"rho": 0.0, "eps": 0.1},
            *(
                {"rho": 0.8, "eps": 0.1, "eps_mode": eps_mode, "centered": centered, "initial_accumulator": start}
                | {"momentum": mu, "velocity": velocity}
                for eps_mode in ("outside", "inside")
                for centered in (False, True)
                for start in (0.0, 1.0)
                for mu in (0.0, 0.7)
                for velocity in ("grad", "step")
                if mu or velocity == "grad"
            ),
        ],
    ),
    "Adadelta": (adadelta, [{}, {"rho": 0.6, "eps": 0.1}, {"rho": 0.0, "eps": 0.1}]),
    "Adam": (
        adam,
        [
            {},
            {"amsgrad": True},
            {"beta1": 0.0, "eps": 0.1},
            {"beta2": 0.0, "eps": 0.1},
            *(
                {"beta1": 0.7, "beta2": 0.6, "eps": 0.1, "eps_mode": eps_mode, "amsgrad": amsgrad}
                for eps_mode in ("outside", "hat", "inside")
                for amsgrad in (False, True)
            ),
        ],
    ),
    "AdamW": (
        adam,
        [
            {},
            {"beta1": 0.7, "beta2": 0.6, "eps": 0.1, "eps_mode": "hat"},
            {"beta1": 0.7, "beta2": 0.6, "eps": 0.1, "eps_mode": "inside", "amsgrad": True},
        ],
    ),
    "Adamax": (
        adamax,
        [
            {},
            {"beta1": 0.7, "beta2": 0.6, "eps": 0.1},
            {"beta1": 0.7, "beta2": 0.6, "eps": 0.1, "eps_mode": "outside"},
            {"beta1": 0.0, "eps": 0.1},
            {"beta2": 0.0, "eps": 0.1},
        ],
    ),
    "Nadam": (
        nadam,
        [
            {},
            *(
                {"beta1": 0.7, "beta2": 0.6, "eps": 0.1, "schedule_decay": decay}
                for decay in (0.0, 0.004, 1.0, 7.5, math.inf)
            ),
            {"beta1": 0.0, "eps": 0.1},
            {"beta2": 0.0, "eps": 0.1},
        ],
    ),
    "Lion": (lion, [{}, {"beta1": 0.6, "beta2": 0.7}, {"beta1": 0.0}, {"beta2": 0.0}]),
}
OPTIONS = [
    {},
    {"weight_decay": 0.2},
    {"weight_decay": 0.2, "decoupled": True},
    {"maximize": True},
    {"maximize": True, "weight_decay": 0.2},
    {"maximize": True, "weight_decay": 0.2, "decoupled": True},
    {"grad_scale": 0.25, "l1": 0.1},
    {"clip_value": 0.375, "maximize": True, "l1": 0.1, "weight_decay": 0.2},
    {"clip_norm": 0.75, "grad_scale": 2.0},
    {"clip_global_norm": 0.75, "l1": 0.1, "weight_decay": 0.2, "decoupled": True},
]
GRADIENTS = [0.5, -2.0, 0.25, 0.0, 1.5, -0.125, 3.0, 0.75]
RATES = [0.3, 0.3, 0.1, 0.25, 0.0, 0.2, 0.15, 0.4]
CASES = [
    pytest.param(name, hyper, options, id=f"{name} {hyper} {options}")
    for name in NAMES
    for hyper in FORMULAS.get(name, (None, [{}]))[1]
    for options in OPTIONS
    if "decoupled" not in options or "decoupled" in inspect.signature(getattr(fusedstep, name)).parameters
]


def exact(value):
    return Decimal(value) if isinstance(value, float) else value


def trajectory(name, given, start=0.75):
    """Return the parameter and its average after each update, to 50 digits."""
    formula, _ = entry(FORMULAS, name)
    hyper = {key: exact(value) for key, value in (DEFAULTS[name] | SHARED_OF.get(name, SHARED) | given).items()}
    del hyper["lr"]
    around = SimpleNamespace(**{option: hyper.pop(option) for option in SHARED})
    p, e, gradients, rates, path = exact(start), None, [], [], []
    for g, lr in zip(map(exact, GRADIENTS), map(exact, RATES), strict=True):
        downhill = around.grad_scale * (-g if around.maximize else g)
        for limit in (around.clip_value, around.clip_norm, around.clip_global_norm):  # all the same for one number
            if limit and abs(downhill) > limit:
                downhill *= limit / abs(downhill)
        downhill += around.l1 * (p > 0) - around.l1 * (p < 0)
        gradients.append(downhill if around.decoupled else downhill + around.weight_decay * p)
        rates.append(lr)
        shrunk = p * (1 - lr * around.weight_decay) if around.decoupled else p
        p = shrunk - formula(gradients, rates, **hyper)
        e = p if e is None else exact(0.75) * e + (1 - exact(0.75)) * p
        path.append((float(p), float(e)))
    return path


@pytest.mark.parametrize(("name", "hyper", "options"), CASES)
def test_papers(name, hyper, options):
    with localcontext(prec=50):
        expected = trajectory(name, hyper | options)
    opt = getattr(reference, name)(lr=RATES.__getitem__, ema=0.75, **hyper, **options)
    p, path = np.array([0.75]), []
    for g in GRADIENTS:
        opt.step(p, np.array([g]))
        path.append((p.item(), opt.ema[0].item()))
    np.testing.assert_allclose(path, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_is_tried(name):
    hints = get_type_hints(getattr(fusedstep, name))
    choices = {(key, choice) for key, hint in hints.items() if get_origin(hint) is Literal for choice in get_args(hint)}
    choices |= {(key, choice) for key, hint in hints.items() if hint is bool for choice in (False, True)}
    choices = {(key, choice) for key, choice in choices if key not in SHARED}
    tried = {item for hyper in entry(FORMULAS, name)[1] for item in (DEFAULTS[name] | hyper).items()}
    assert choices <= tried


# Published examples and loops, in float64.

both = pytest.mark.parametrize("classes", [reference, fusedstep], ids=["reference", "fusedstep"])


@both
@pytest.mark.parametrize(
    ("name", "hyper", "expected"),
    [
        ("SGD", {"lr": 0.1}, 1.0737418240000003),
        ("Momentum", {"lr": 0.1, "velocity": "step"}, 0.04399870600000133),
        ("Momentum", {"lr": 0.1, "velocity": "grad"}, 0.04399870600000133),
        ("Adagrad", {"lr": 1.0, "eps": 1e-8}, 5.537312004775913),
        ("RMSprop", {"lr": 0.1, "rho": 0.9}, 8.3205241519636),
        ("Adam", {"lr": 0.1}, 9.003496535489624),
    ],
)
def test_parabola(classes, name, hyper, expected):
    opt, x = getattr(classes, name)(**hyper), np.array([10.0])
    for _ in range(10):
        opt.step(x, 2 * x)
    assert x.item() == pytest.approx(expected, rel=1e-12)


def test_parabola_by_hand():
    x, opt = np.array([10.0]), reference.SGD(lr=0.1)
    for _ in range(10):
        opt.step(x, 2 * x)
    assert x.item() == pytest.approx(float(10 * Fraction(4, 5) ** 10), rel=1e-15)


X, Y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 4.0, 6.0, 8.0])


@both
@pytest.mark.parametrize(
    ("lr", "factor", "batch", "divisor", "expected"),
    [
        (0.01, 1, 1, None, (1.7578969177457466, 0.5705361821072628)),
        (0.005, 2, 1, None, (1.7578969177457466, 0.5705361821072628)),
        (0.01, 2, 4, None, (1.5104079603466942, 0.4936292566053902)),
        (0.01, 2, 3, 3, (1.6320154980066925, 0.5364164651714491)),
        (0.01, 2, 3, None, (1.8437512550873738, 0.5200181679989576)),
    ],
    ids=["each sample", "each sample, half the rate", "all samples", "last batch divided by 3", "last batch by itself"],
)
def test_linear_regression(classes, lr, factor, batch, divisor, expected):
    inputs = np.stack([X, np.ones(4)], axis=1)
    opt, theta = classes.SGD(lr=lr), np.zeros(2)
    batches = fusedstep.minibatches(4, batch, seed=0, shuffle=False)
    for _ in range(10):
        for rows in batches:
            x, y = inputs[rows], Y[rows]
            opt.step(theta, factor / (divisor or len(x)) * (x.T @ (x @ theta - y)))
    np.testing.assert_allclose(theta, expected, rtol=1e-12)


# Loops as other documents and libraries write them: each yields the parameter after every update.


def averaged_momentum(p=1.0, lr=0.1, beta=0.8):
    v = 0.0
    for g in GRADIENTS:
        v = beta * v + (1 - beta) * g
        p = p - lr * v
        yield p


def rmsprop_eps_inside(p=1.0, lr=0.1, beta=0.9, eps=1e-8):
    s = 0.0
    for g in GRADIENTS:
        s = beta * s + (1 - beta) * g**2
        p = p - lr * g / math.sqrt(s + eps)
        yield p


def keras2_sgd(p=1.0, lr=0.1, momentum=0.9, decay=0.1, nesterov=False):
    v = 0.0
    for iteration, g in enumerate(GRADIENTS):
        rate = lr * (1.0 / (1.0 + decay * iteration))
        v = momentum * v - rate * g
        p = p + momentum * v - rate * g if nesterov else p + v
        yield p


def keras2_rmsprop(p=1.0, lr=0.001, rho=0.9, epsilon=1e-7):
    a = 0.0
    for g in GRADIENTS:
        a = rho * a + (1.0 - rho) * g**2
        p = p - lr * g / (math.sqrt(a) + epsilon)
        yield p


def keras2_adagrad(p=1.0, lr=0.01, epsilon=1e-7):
    a = 0.0
    for g in GRADIENTS:
        a = a + g**2
        p = p - lr * g / (math.sqrt(a) + epsilon)
        yield p


def keras2_adadelta(p=1.0, lr=1.0, rho=0.95, epsilon=1e-7):
    a = delta = 0.0
    for g in GRADIENTS:
        a = rho * a + (1.0 - rho) * g**2
        update = g * math.sqrt(delta + epsilon) / math.sqrt(a + epsilon)
        p = p - lr * update
        delta = rho * delta + (1 - rho) * update**2
        yield p


def keras2_adam(p=1.0, lr=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-7, amsgrad=False):
    m = v = largest = 0.0
    for t, g in enumerate(GRADIENTS, 1):
        rate = lr * (math.sqrt(1.0 - beta_2**t) / (1.0 - beta_1**t))
        m = beta_1 * m + (1.0 - beta_1) * g
        v = beta_2 * v + (1.0 - beta_2) * g**2
        largest = max(largest, v)
        p = p - rate * m / (math.sqrt(largest if amsgrad else v) + epsilon)
        yield p


def keras2_adamax(p=1.0, lr=0.002, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    m = u = 0.0
    for t, g in enumerate(GRADIENTS, 1):
        rate = lr / (1.0 - beta_1**t)
        m = beta_1 * m + (1.0 - beta_1) * g
        u = max(beta_2 * u, abs(g))
        p = p - rate * m / (u + epsilon)
        yield p


def keras2_nadam(p=1.0, lr=0.002, beta_1=0.9, beta_2=0.999, epsilon=1e-7, schedule_decay=0.004):
    m = v = 0.0
    m_schedule = 1.0
    for t, g in enumerate(GRADIENTS, 1):
        momentum_cache = beta_1 * (1.0 - 0.5 * 0.96 ** (t * schedule_decay))
        momentum_cache_next = beta_1 * (1.0 - 0.5 * 0.96 ** ((t + 1) * schedule_decay))
        m_schedule = m_schedule * momentum_cache
        m_schedule_next = m_schedule * momentum_cache_next
        g_prime = g / (1.0 - m_schedule)
        m = beta_1 * m + (1.0 - beta_1) * g
        m_prime = m / (1.0 - m_schedule_next)
        v = beta_2 * v + (1.0 - beta_2) * g**2
        v_prime = v / (1.0 - beta_2**t)
        m_bar = (1.0 - momentum_cache) * g_prime + momentum_cache_next * m_prime
        p = p - lr * m_bar / (math.sqrt(v_prime) + epsilon)
        yield p


def optax_nadam(p=1.0, lr=0.1, b1=0.9, b2=0.999, eps=1e-8):
    m = v = 0.0
    for t, g in enumerate(GRADIENTS, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        p = p - lr * m_hat / (math.sqrt(v / (1 - b2**t)) + eps)
        yield p


def slowing(done):
    return 0.1 / (1 + 0.1 * done)


@both
@pytest.mark.parametrize(
    ("loop", "name", "hyper"),
    [
        (averaged_momentum, "Momentum", {"lr": 0.1, "momentum": 0.8, "dampening": 0.8, "dampen_first": True}),
        (rmsprop_eps_inside, "RMSprop", {"lr": 0.1, "rho": 0.9, "eps_mode": "inside"}),
        (partial(keras2_sgd, momentum=0.0), "SGD", {"lr": slowing}),
        (keras2_sgd, "Momentum", {"lr": slowing, "velocity": "step"}),
        (partial(keras2_sgd, nesterov=True), "NAG", {"lr": slowing, "velocity": "step"}),
        (keras2_rmsprop, "RMSprop", {"lr": 1e-3, "rho": 0.9, "eps": 1e-7}),
        (keras2_adagrad, "Adagrad", {"eps": 1e-7}),
        (keras2_adadelta, "Adadelta", {"rho": 0.95, "eps": 1e-7}),
        (keras2_adam, "Adam", {"eps": 1e-7, "eps_mode": "hat"}),
        (partial(keras2_adam, amsgrad=True), "Adam", {"eps": 1e-7, "eps_mode": "hat", "amsgrad": True}),
        (keras2_adamax, "Adamax", {"eps": 1e-7, "eps_mode": "outside"}),
        (keras2_nadam, "Nadam", {"eps": 1e-7}),
        (optax_nadam, "Nadam", {"lr": 0.1, "schedule_decay": math.inf}),
    ],
)
def test_loops_of_other_documents(classes, loop, name, hyper):
    opt, p, path = getattr(classes, name)(**hyper), np.array([1.0]), []
    for g in GRADIENTS:
        opt.step(p, np.array([g]))
        path.append(p.item())
    np.testing.assert_allclose(path, list(loop()), rtol=1e-12)


@both
def test_nesterov_looks_ahead(classes):
    mu, lr = 0.8, 0.05
    textbook, v = 3.0, 0.0
    p, opt = np.array([3.0]), classes.NAG(lr=lr, momentum=mu, velocity="step")
    for _ in range(12):
        ahead = textbook + mu * v
        v = mu * v - lr * (ahead**3 + ahead)
        textbook = textbook + v
        opt.step(p, p**3 + p)
        assert p.item() == pytest.approx(textbook + mu * v, rel=1e-12)
        assert (p + mu * opt.state[0]["b"]).item() == pytest.approx(textbook, rel=1e-12)


# Counting.


@both
def test_schedules_count_from_0(classes):
    asked = []
    opt, p = classes.SGD(lr=lambda done: asked.append(done) or 2.0**-done), np.array([4.0])
    path = []
    for _ in range(4):
        opt.step(p, np.ones(1))
        path.append(p.item())
    assert asked == [0, 1, 2, 3]
    assert path == [3.0, 2.5, 2.25, 2.125]


@pytest.mark.parametrize("name", ["Adam", "Adamax"])
def test_bias_corrections_count_from_1(name):
    opt, p = getattr(reference, name)(lr=0.25, eps=0.0), np.array([1.0])
    path = []
    for _ in range(4):
        opt.step(p, np.array([-3.0]))
        path.append(p.item())
    assert path == pytest.approx([1.25, 1.5, 1.75, 2.0], rel=1e-12)


@pytest.mark.parametrize("t", [10**5, 2**24 + 1])
def test_late_updates(t):
    beta1, beta2, lr, eps, m, v = 0.99999, 0.999999, 0.5, 1e-3, 0.25, 0.5
    opt, p = reference.Adam(lr=lr, beta1=beta1, beta2=beta2, eps=eps), np.zeros(1)
    opt.state[0], opt.t[0] = {"m": np.array([m]), "v": np.array([v])}, t - 1
    opt.step(p, np.array([2.0]))
    with localcontext(prec=50):
        m = Decimal(beta1) * exact(m) + (1 - Decimal(beta1)) * 2
        v = Decimal(beta2) * exact(v) + (1 - Decimal(beta2)) * 4
        corrected = m / (1 - Decimal(beta1) ** t), v / (1 - Decimal(beta2) ** t)
        expected = -exact(lr) * corrected[0] / (corrected[1].sqrt() + exact(eps))
    assert p.item() == pytest.approx(float(expected), rel=1e-10)


def test_every_parameter_counts_its_own_updates():
    opt, alone = reference.Adam(lr=0.25, eps=0.0), np.array([1.0])
    p = {"early": np.array([1.0]), "late": np.array([1.0])}
    opt.step(p, {"early": np.array([5.0]), "late": None})
    opt.step(p, {"early": np.array([5.0])})
    assert p["late"].item() == 1.0
    opt.step(p, {"early": np.array([5.0]), "late": np.array([7.0])})
    reference.Adam(lr=0.25, eps=0.0).step(alone, np.array([7.0]))
    assert opt.t == {"early": 3, "late": 1}
    assert p["late"] == alone


def test_nadam_multiplies_each_momentum_once():
    opt = reference.Nadam(beta1=0.75, schedule_decay=1.0)
    for _ in range(3):
        opt.step(np.ones(2), np.ones(2))
    mu = [Fraction(3, 4) * (1 - Fraction(96, 100) ** t / 2) for t in (1, 2, 3)]
    assert opt.memory[0]["product"] == pytest.approx(float(math.prod(mu)), rel=1e-14)


def test_overrides_patterns_first_then_the_key():
    overrides = {"b*": {"lr": 8.0}, "bias": {"lr": 16.0}, "*": {"lr": 2.0}, "*.late": {"lr": 4.0}, 7: {"lr": 32.0}}
    opt = reference.SGD(lr=1.0, overrides=overrides)
    p = {key: np.zeros(1) for key in ("bias", "b", "w", "w.late", 7, 8)}
    opt.step(p, {key: -np.ones(1) for key in p})
    assert {key: x.item() for key, x in p.items()} == {"bias": 16.0, "b": 2.0, "w": 2.0, "w.late": 4.0, 7: 32.0, 8: 1.0}


# Scalars, in float64, rounded once.


def test_powers_multiply_in_one_order():
    x = 0.9
    assert [base.power(x, n) for n in range(4)] == [1.0, x, x * x, x * (x * x)]
    assert base.power(x, 5) == x * ((x * x) * (x * x))
    assert base.power(x, 7) == (x * (x * x)) * ((x * x) * (x * x))
    assert (base.power(0.0, 0), base.power(0.0, 3), base.power(1.0, 10**9)) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("n", [829, 4097, 10**5])
@pytest.mark.parametrize("x", [0.5, 0.9, 0.999, 0.99999, 1 - 2.0**-40])
def test_powers_stay_accurate(x, n):
    with localcontext(prec=50):
        expected = Decimal(x) ** n
    assert base.power(x, n) == pytest.approx(float(expected), rel=n * 2.0**-52, abs=1e-300)


def test_powers_are_exact_where_they_can_be():
    assert [base.power(0.5, n) for n in (1, 100, 1074, 1075, 10**5)] == [0.5, 2.0**-100, 2.0**-1074, 0.0, 0.0]


BASES = [0.96, 0.9, 0.1, 0.75, 1.0, 1.5, 3.0]


@pytest.mark.parametrize("x", BASES)
def test_rational_powers_are_correctly_rounded(x):
    assert base.rational_power(x, 0.5) == math.sqrt(x)
    assert base.rational_power(x, 0.0) == 1.0
    for n in (1, 2, 3, 10, 200):
        assert base.rational_power(x, float(n)) == float(Fraction(x) ** n)
        assert base.rational_power(x, float(-n)) == float(1 / Fraction(x) ** n)


@pytest.mark.parametrize("x", BASES)
def test_fourth_roots_are_correctly_rounded(x):
    r = base.rational_power(x, 0.25)
    below, above = (Fraction(r) + Fraction(math.nextafter(r, to)) for to in (0.0, math.inf))
    assert (below / 2) ** 4 < Fraction(x) < (above / 2) ** 4


def test_rational_powers_at_the_ends():
    assert base.rational_power(0.0, 0.5) == 0.0
    assert base.rational_power(0.0, 0.0) == 0.0
    assert base.rational_power(0.96, math.inf) == 0.0
    assert base.rational_power(0.96, 0.004) ** 250 == pytest.approx(0.96, rel=1e-14)


@pytest.mark.parametrize(
    ("name", "hyper", "state", "expected"),
    [
        ("RMSprop", {"rho": 0.999, "centered": True}, "v", 1 - 0.999),
        ("RMSprop", {"rho": 0.999, "centered": True}, "m", 1 - 0.999),
        ("Adadelta", {"rho": 0.999}, "v", 1 - 0.999),
        ("Adam", {"beta1": 0.99}, "m", 1 - 0.99),
        ("Adam", {}, "v", 1 - 0.999),
        ("AdamW", {}, "v", 1 - 0.999),
        ("Adamax", {"beta1": 0.99}, "m", 1 - 0.99),
        ("Nadam", {"beta1": 0.99}, "m", 1 - 0.99),
        ("Nadam", {}, "v", 1 - 0.999),
        ("Lion", {}, "m", 1 - 0.99),
        ("Momentum", {"dampening": 0.99, "dampen_first": True}, "b", 1 - 0.99),
        ("Momentum", {"velocity": "step", "lr": 0.1, "dampening": 0.99, "dampen_first": True}, "b", (1 - 0.99) * 0.1),
    ],
)
def test_scalars_are_formed_in_float64_and_rounded_once(name, hyper, state, expected):
    opt = getattr(reference, name)(**hyper)
    opt.step(np.ones(1, f32), np.ones(1, f32))
    assert opt.state[0][state].tolist() == [f32(expected)]
    assert f32(expected) not in (f32(1) - f32(0.999), f32(1) - f32(0.99), (f32(1) - f32(0.99)) * f32(0.1))


def test_decoupled_decay_is_multiplied_in_float64():
    p = np.ones(1, f32)
    reference.SGD(lr=0.7, weight_decay=0.3, decoupled=True).step(p, np.zeros(1, f32))
    assert p.tolist() == [f32(1) - f32(0.7 * 0.3)]
    assert f32(0.7 * 0.3) != f32(0.7) * f32(0.3)


def test_decoupled_decay_is_not_too_strong_in_float32():
    start = np.linspace(1, 2, 10_000, dtype=f32)
    p = start.copy()
    reference.SGD(lr=1e-3, weight_decay=1e-3, decoupled=True).step(p, np.zeros_like(p))
    lost = (start.astype(float) - p).sum() / start.astype(float).sum()
    assert lost == pytest.approx(1e-6, rel=2e-3)
    assert 1 - float(f32(1 - 1e-6)) > 1.013e-6


# The order of operations in float32. A few thousand elements after two updates: `right` must give all the bits, and
# `wrong`, which is the same mathematics, must not.
C1, C2 = 1 - 0.9 * 0.9, math.sqrt(1 - 0.999 * 0.999)  # bias corrections of the second update
MU2, MU3 = (0.9 * (1 - 0.5 * r) for r in (0.96 * 0.96, 0.96 * (0.96 * 0.96)))
MU12 = 0.9 * (1 - 0.5 * 0.96) * MU2
CM, CG = 0.1 * MU3 / (1 - MU12 * MU3) * C2, 0.1 * (1 - MU2) / (1 - MU12) * C2


def fused(a, b, c):
    """Return a*b + c, rounded once, as a contracting compiler makes it."""
    a, b, c = (np.asarray(x, np.longdouble) for x in (a, b, c))
    return (a * b + c).astype(f32)


# Class, hyperparameters, what is compared; then functions of p, g and the states, `s` before and `n` after the update.
ORDER = [
    ("SGD", {"lr": 0.1}, "p", lambda p, g, s, n: p - f32(0.1) * g, lambda p, g, s, n: fused(-f32(0.1), g, p)),
    (
        "SGD",
        {"lr": 0.1, "weight_decay": 0.3},
        "p",
        lambda p, g, s, n: p - f32(0.1) * (g + f32(0.3) * p),
        lambda p, g, s, n: p - (f32(0.1) * g + f32(0.1 * 0.3) * p),
    ),
    (
        "SGD",
        {"lr": 0.1, "weight_decay": 0.3, "decoupled": True},
        "p",
        lambda p, g, s, n: p - (f32(0.1) * g + f32(0.1 * 0.3) * p),
        lambda p, g, s, n: (p - f32(0.1 * 0.3) * p) - f32(0.1) * g,
    ),
    (
        "Momentum",
        {"lr": 0.1, "dampening": 0.3, "velocity": "step"},
        "b",
        lambda p, g, s, n: f32(0.9) * s.b + f32((1 - 0.3) * 0.1) * g,
        lambda p, g, s, n: f32(0.9) * s.b + f32(0.1) * (f32(1 - 0.3) * g),
    ),
    (
        "Momentum",
        {"lr": 0.1},
        "b",
        lambda p, g, s, n: f32(0.9) * s.b + g,
        lambda p, g, s, n: fused(f32(0.9), s.b, g),
    ),
    (
        "NAG",
        {"lr": 0.1},
        "p",
        lambda p, g, s, n: p - f32(0.1) * (g + f32(0.9) * n.b),
        lambda p, g, s, n: p - (f32(0.1) * g + f32(0.1) * (f32(0.9) * n.b)),
    ),
    (
        "NAG",
        {"lr": 0.1, "velocity": "step"},
        "p",
        lambda p, g, s, n: p - (f32(0.1) * g + f32(0.9) * n.b),
        lambda p, g, s, n: (p - f32(0.1) * g) - f32(0.9) * n.b,
    ),
    ("Adagrad", {}, "a", lambda p, g, s, n: s.a + g * g, lambda p, g, s, n: fused(g, g, s.a)),
    (
        "Adagrad",
        {"lr": 0.1, "eps": 0.01},
        "p",
        lambda p, g, s, n: p - (f32(0.1) * g) / (np.sqrt(n.a) + f32(0.01)),
        lambda p, g, s, n: p - f32(0.1) * (g / (np.sqrt(n.a) + f32(0.01))),
    ),
    (
        "Adagrad",
        {"lr": 0.1, "eps": 0.01, "eps_mode": "inside"},
        "p",
        lambda p, g, s, n: p - (f32(0.1) * g) / np.sqrt(n.a + f32(0.01)),
        lambda p, g, s, n: p - f32(0.1) / np.sqrt(n.a + f32(0.01)) * g,
    ),
    (
        "RMSprop",
        {"rho": 0.9},
        "v",
        lambda p, g, s, n: f32(0.9) * s.v + f32(1 - 0.9) * (g * g),
        lambda p, g, s, n: f32(0.9) * s.v + (f32(1 - 0.9) * g) * g,
    ),
    (
        "RMSprop",
        {"lr": 0.1},
        "p",
        lambda p, g, s, n: p - (f32(0.1) * g) / (np.sqrt(n.v) + f32(1e-8)),
        lambda p, g, s, n: p - f32(0.1) * (g / (np.sqrt(n.v) + f32(1e-8))),
    ),
    (
        "RMSprop",
        {"lr": 0.1, "centered": True},
        "p",
        lambda p, g, s, n: p - (f32(0.1) * g) / (np.sqrt(np.fmax(n.v - n.m * n.m, f32(0))) + f32(1e-8)),
        lambda p, g, s, n: p - (f32(0.1) * g) / (np.sqrt(np.fmax(fused(n.m, -n.m, n.v), f32(0))) + f32(1e-8)),
    ),
    (
        "RMSprop",
        {"lr": 0.1, "momentum": 0.9, "velocity": "step"},
        "b",
        lambda p, g, s, n: f32(0.9) * s.b + (f32(0.1) * g) / (np.sqrt(n.v) + f32(1e-8)),
        lambda p, g, s, n: f32(0.9) * s.b + f32(0.1) * (g / (np.sqrt(n.v) + f32(1e-8))),
    ),
    (
        "Adadelta",
        {},
        "p",
        lambda p, g, s, n: p - np.sqrt((s.x + f32(1e-6)) / (n.v + f32(1e-6))) * g,
        lambda p, g, s, n: p - np.sqrt(s.x + f32(1e-6)) / np.sqrt(n.v + f32(1e-6)) * g,
    ),
    (
        "Adadelta",
        {},
        "x",
        lambda p, g, s, n: (
            f32(0.9) * s.x + f32(1 - 0.9) * np.square(np.sqrt((s.x + f32(1e-6)) / (n.v + f32(1e-6))) * g)
        ),
        lambda p, g, s, n: s.x + f32(1 - 0.9) * (np.square(np.sqrt((s.x + f32(1e-6)) / (n.v + f32(1e-6))) * g) - s.x),
    ),
    (
        "Adam",
        {},
        "v",
        lambda p, g, s, n: f32(0.999) * s.v + f32(1 - 0.999) * (g * g),
        lambda p, g, s, n: f32(0.999) * s.v + (f32(1 - 0.999) * g) * g,
    ),
    (
        "Adam",
        {},
        "m",
        lambda p, g, s, n: f32(0.9) * s.m + f32(1 - 0.9) * g,
        lambda p, g, s, n: s.m + f32(1 - 0.9) * (g - s.m),
    ),
    (
        "Adam",
        {"lr": 0.1, "eps": 0.01},
        "p",
        lambda p, g, s, n: p - (f32(0.1 * C2 / C1) * n.m) / (np.sqrt(n.v) + f32(0.01 * C2)),
        lambda p, g, s, n: p - f32(0.1 * C2 / C1) * (n.m / (np.sqrt(n.v) + f32(0.01 * C2))),
    ),
    (
        "Adam",
        {"lr": 0.1, "eps": 0.01, "amsgrad": True, "beta2": 0.999},
        "p",
        lambda p, g, s, n: p - (f32(0.1 * C2 / C1) * n.m) / (np.sqrt(np.maximum(s.w, n.v)) + f32(0.01 * C2)),
        lambda p, g, s, n: p - (f32(0.1 / C1) * n.m) / (np.sqrt(np.maximum(s.w, n.v)) / f32(C2) + f32(0.01)),
    ),
    (
        "Adamax",
        {"lr": 0.1},
        "p",
        lambda p, g, s, n: p - (f32(0.1 / C1) * n.m) / n.w,
        lambda p, g, s, n: p - f32(0.1 / C1) * (n.m / n.w),
    ),
    (
        "Nadam",
        {"lr": 0.1, "schedule_decay": 1.0},
        "p",
        lambda p, g, s, n: p - (f32(CM) * n.m + f32(CG) * g) / (np.sqrt(n.v) + f32(1e-8 * C2)),
        lambda p, g, s, n: p - f32(0.1) * ((f32(CM / 0.1) * n.m + f32(CG / 0.1) * g) / (np.sqrt(n.v) + f32(1e-8 * C2))),
    ),
    (
        "Lion",
        {},
        "m",
        lambda p, g, s, n: f32(0.99) * s.m + f32(1 - 0.99) * g,
        lambda p, g, s, n: s.m + f32(1 - 0.99) * (g - s.m),
    ),
    (
        "Lion",
        {"lr": 0.1},
        "p",
        lambda p, g, s, n: p - f32(0.1) * np.sign(f32(0.9) * s.m + f32(1 - 0.9) * g),
        lambda p, g, s, n: p - f32(0.1) * np.sign(f32(0.9) * n.m + f32(1 - 0.9) * g),
    ),
]


@pytest.mark.parametrize(("name", "hyper", "what", "right", "wrong"), ORDER)
def test_order_of_operations(name, hyper, what, right, wrong):
    rng = np.random.default_rng(12)
    p, first, g = rng.normal(size=(3, 3000)).astype(f32)
    opt = getattr(reference, name)(**hyper)
    opt.step(p, first)
    before, s = p.copy(), SimpleNamespace(**{key: x.copy() for key, x in opt.state[0].items()})
    opt.step(p, g)
    n = SimpleNamespace(**opt.state[0])
    found = p if what == "p" else opt.state[0][what]
    assert found.dtype == f32
    assert found.tobytes() == right(before, g, s, n).tobytes()
    assert (found != wrong(before, g, s, n)).any()


def adam_outside(lr, t, m, v, g, p):
    c1, c2 = 1 - base.power(0.9, t), math.sqrt(1 - base.power(0.999, t))
    return (lr * c2 / c1 * m) / (math.sqrt(v) + 0.01 * c2), lr / c1 * m / (math.sqrt(v) / c2 + 0.01)


def adam_inside(lr, t, m, v, g, p):
    c1, c2 = 1 - base.power(0.9, t), math.sqrt(1 - base.power(0.999, t))
    return (lr * c2 / c1 * m) / math.sqrt(v + 0.01 * c2 * c2), (lr * c2 / c1 * m) / math.sqrt(v + 0.01 * (c2 * c2))


def nadam_scalars(lr, t, m, v, g, p):
    r, c2 = base.rational_power(0.96, 0.5), math.sqrt(1 - base.power(0.999, t))
    mu, mu1 = 0.9 * (1 - 0.5 * base.power(r, t)), 0.9 * (1 - 0.5 * base.power(r, t + 1))
    cm, cg = lr * mu1 / (1 - p * mu1) * c2, lr * (1 - mu) / (1 - p) * c2
    other = lr * c2 * (mu1 / (1 - p * mu1) * m + (1 - mu) / (1 - p) * g)
    return (cm * m + cg * g) / (math.sqrt(v) + 0.01 * c2), other / (math.sqrt(v) + 0.01 * c2)


@pytest.mark.parametrize(
    ("name", "hyper", "updates"),
    [
        ("Adam", {}, adam_outside),
        ("Adam", {"eps_mode": "inside"}, adam_inside),
        ("Nadam", {"schedule_decay": 0.5}, nadam_scalars),
    ],
)
def test_order_of_scalars(name, hyper, updates):
    opt, g, differ = getattr(reference, name)(lr=0.3, eps=0.01, **hyper), 0.7, 0
    for t in range(1, 50):
        p = np.zeros(1)
        opt.step(p, np.array([g]))
        state = opt.state[0]
        right, wrong = updates(0.3, t, state["m"].item(), state["v"].item(), g, opt.memory[0].get("product"))
        assert p.item() == -right
        differ += right != wrong
    assert differ


def test_order_is_tested_for_every_class():
    missing = set(NAMES) - {"AdamW"} - {name for name, *_ in ORDER}
    assert not missing, "public optimizers without an entry in ORDER"


# float32 flushes subnormals, float64 does not; the caller's mode comes back.


def flushes(dtype=f32):
    """Return whether arithmetic now takes a subnormal operand for zero."""
    return (np.array([np.finfo(dtype).smallest_subnormal], dtype) * dtype(2)).item() == 0


def in_mode(operation, *operands, dtype=f32):
    with reference.float_mode(dtype):
        return operation(*(np.array([x], dtype) for x in operands))[0]


def test_float_mode_flushes_float32_and_ends():
    assert not flushes()
    with reference.float_mode(f32):
        assert flushes()
        with reference.float_mode(np.float64):
            assert not flushes()
            assert not flushes(np.float64)
        assert flushes()
    assert not flushes()


def test_float_mode_ends_after_an_exception():
    before = np.geterr()
    with suppress(KeyError), reference.float_mode(f32):
        assert flushes()
        raise KeyError
    assert not flushes()
    assert np.geterr() == before


def test_a_step_leaves_the_mode_of_the_caller():
    reference.SGD().step(np.ones(1, f32), np.ones(1, f32))
    assert not flushes()
    with pytest.raises(ValueError, match="shape"):
        reference.SGD().step(np.ones(2, f32), np.ones(3, f32))
    assert not flushes()
    with reference.float_mode(f32):
        p = np.full(1, 5e-324)
        reference.SGD().step(p, np.zeros(1))
        assert flushes()
    assert p.item() == 5e-324


@both
@pytest.mark.parametrize(
    ("name", "hyper", "dtype", "g"),
    [
        ("SGD", {"lr": 2.0**-126 * (1 - 0.75 * 2.0**-24)}, f32, 2.0**100),  # rounds to the smallest normal float32
        ("Adam", {"lr": 1e-10, "eps": 1e-307, "beta2": 0.999999}, np.float64, 1e-200),  # eps*c2 is subnormal
    ],
)
def test_the_mode_of_the_caller_changes_nothing(classes, name, hyper, dtype, g):
    plain, flushed = np.zeros(1, dtype), np.zeros(1, dtype)
    getattr(classes, name)(**hyper).step(plain, np.full(1, g, dtype))
    with reference.float_mode(f32):
        getattr(classes, name)(**hyper).step(flushed, np.full(1, g, dtype))
    assert plain.tobytes() == flushed.tobytes() != np.zeros(1, dtype).tobytes()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_product_is_judged_after_rounding(sign):
    above, below = f32((1 + 2.0**-13) * 2.0**-63), f32((1 - 2.0**-13) * 2.0**-63)
    assert Fraction(float(above)) * Fraction(float(below)) < Fraction(2) ** -126
    assert in_mode(np.multiply, sign * above, below) == sign * SMALLEST


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("operation", "a", "b"),
    [
        (np.multiply, 2.0**-63, 2.0**-63 * (1 - 2.0**-24)),  # IEEE rounds this one up to the smallest normal number
        (np.multiply, 2.0**-63, 2.0**-64),
        (np.divide, 2.0**-63 * (1 - 2.0**-24), 2.0**63),
        (np.subtract, 2.0**-126 * 1.5, 2.0**-126),
        (np.add, 2.0**-127, 2.0**-127),
        (np.add, 2.0**-127, 0.0),
        (np.multiply, 2.0**-127, 2.0**127),
    ],
)
def test_tiny_results_and_operands_become_zeros_of_their_sign(operation, a, b, sign):
    a, b = (sign * a, b) if operation in (np.multiply, np.divide) else (sign * a, sign * b)
    assert f32(a) == a
    found = in_mode(operation, a, b)
    assert found == 0
    assert np.signbit(found) == (sign < 0)
    assert operation(f32(a), f32(b)) != 0


def test_tiny_numbers_compare_as_zeros_and_move_unchanged():
    tiny = f32(2.0**-130)
    assert not in_mode(np.greater, tiny, 0.0)
    assert in_mode(np.sqrt, tiny) == 0
    assert in_mode(np.abs, -tiny).tobytes() == tiny.tobytes()
    assert in_mode(np.negative, -tiny).tobytes() == tiny.tobytes()
    assert in_mode(base.larger, tiny, 0.0).tobytes() == f32(0).tobytes()
    assert base.larger(tiny, f32(0)) == tiny


def test_float64_is_full_ieee():
    assert in_mode(np.multiply, 2.0**-511, 2.0**-512, dtype=np.float64) == 2.0**-1023
    assert in_mode(np.add, 5e-324, 5e-324, dtype=np.float64) == 1e-323


@pytest.mark.parametrize("name", NAMES)
def test_a_subnormal_parameter_becomes_zero_at_its_first_update(name):
    p = np.array([2.0**-130, -(2.0**-130)], f32)
    getattr(reference, name)().step(p, np.zeros(2, f32))
    assert p.tobytes() == f32([0.0, -0.0]).tobytes()
    p = np.array([5e-324, -5e-324])
    getattr(reference, name)().step(p, np.zeros(2))
    assert p.tolist() == [5e-324, -5e-324]


def test_states_decay_to_zero():
    opt, p = reference.Momentum(), np.zeros(1, f32)
    opt.state[0] = {"b": np.ones(1, f32)}
    for _ in range(828):
        opt.step(p, np.zeros(1, f32))
    assert opt.state[0]["b"] >= SMALLEST
    opt.step(p, np.zeros(1, f32))
    assert opt.state[0]["b"] == 0


@pytest.mark.parametrize(("eps", "expected"), [(1e-38, True), (1.2e-38, False)])
def test_a_subnormal_scalar_counts_as_zero(eps, expected):
    p = np.ones(1, f32)
    reference.Adagrad(eps=eps).step(p, np.zeros(1, f32))
    assert np.isnan(p) == expected


# Values at the edges.


def test_larger_keeps_nan_and_signs():
    nan, inf = f32(np.nan), f32(np.inf)
    assert np.isnan(base.larger(nan, f32(1)))
    assert np.isnan(base.larger(f32(1), nan))
    assert np.isnan(base.larger(-inf, nan))
    assert base.larger(f32([1, 3, -inf]), f32([2, 2, inf])).tolist() == [2, 3, inf]
    plus, minus = np.zeros(37, f32), np.full(37, -0.0, f32)
    assert np.signbit(base.larger(plus, minus)).all()
    assert not np.signbit(base.larger(minus, plus)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_not_finite_concerns_its_element_alone(name, bad):
    p, clean = np.ones(3), np.ones(3)
    opt, other = getattr(reference, name)(), getattr(reference, name)()
    for first in (bad, 0.5):
        opt.step(p, np.array([0.5, first, -2.0]))
        other.step(clean, np.array([0.5, 0.5, -2.0]))
    assert p[::2].tolist() == clean[::2].tolist()
    assert np.isnan(p[1]) or np.isinf(bad)


@pytest.mark.parametrize(
    ("name", "hyper", "state"),
    [("Adam", {"amsgrad": True}, "w"), ("Adamax", {}, "w"), ("RMSprop", {"centered": True}, "v")],
)
def test_nan_passes_maximum_and_clamp(name, hyper, state):
    opt = getattr(reference, name)(**hyper)
    for g in (1.0, np.nan, 1.0):
        p = np.ones(2, f32)
        opt.step(p, f32([1.0, g]))
    assert np.isnan(opt.state[0][state]).tolist() == [False, True]
    assert np.isnan(p).tolist() == [False, True]


def test_centered_variance_is_never_negative():
    g = np.linspace(0.1, 9.7, 1000, dtype=f32)
    opt, negative = reference.RMSprop(lr=1.0, rho=0.9, eps=0.5, centered=True), 0
    for _ in range(200):
        p = np.zeros_like(g)
        opt.step(p, g)
        v, m = opt.state[0]["v"], opt.state[0]["m"]
        below = v < m * m
        negative += below.sum()
        assert p[below].tobytes() == (-g / f32(0.5))[below].tobytes()
        assert np.isfinite(p).all()
    assert negative > 0


def test_first_momentum_step():
    for velocity, factor in (("grad", 1.0), ("step", 0.5)):
        opt, damped = (
            reference.Momentum(lr=0.5, dampening=0.75, dampen_first=first, velocity=velocity) for first in (False, True)
        )
        for some, b in ((opt, 4.0), (damped, 1.0)):
            some.step(np.zeros(1), np.full(1, 4.0))
            assert some.state[0]["b"] == factor * b
    opt = reference.Momentum()
    opt.step(np.zeros(1), np.full(1, -0.0))
    assert not np.signbit(opt.state[0]["b"])


def test_velocities_agree_while_the_rate_is_constant_and_only_then():
    for name, hyper in (("Momentum", {}), ("NAG", {}), ("RMSprop", {"momentum": 0.9})):
        for lr, agree in ((0.1, True), (RATES.__getitem__, False)):
            p, q = np.ones(1), np.ones(1)
            opt, other = (getattr(reference, name)(lr=lr, velocity=v, **hyper) for v in ("grad", "step"))
            for g in GRADIENTS:
                opt.step(p, np.array([g]))
                other.step(q, np.array([g]))
            assert np.allclose(p, q, rtol=1e-12) == agree


def test_squares_overflow_and_flush_in_float32():
    edge_high, edge_low = f32(2.0**64), f32(2.0**-63)
    g = np.array([np.nextafter(edge_high, f32(0)), edge_high, edge_low, np.nextafter(edge_low, f32(0))])
    p, opt = np.zeros_like(g), reference.Adagrad(lr=1.0, eps=0.0)
    opt.step(p, g)
    a = opt.state[0]["a"]
    assert np.isfinite(a).tolist() == [True, False, True, True]
    assert (a == 0).tolist() == [False, False, False, True]
    assert p.tolist() == [-1.0, 0.0, -1.0, -np.inf]


def test_adadelta_stands_still_for_huge_gradients_in_float32():
    p = np.zeros(2, f32)
    reference.Adadelta().step(p, f32([1e15, 1e17]))
    assert p[0] < 0
    assert p[1] == 0


def test_lion_signs():
    tiny = 2.0**-130
    g = np.array([3.0, -3.0, 0.0, -0.0, np.inf, -np.inf, np.nan, tiny, -tiny], f32)
    p = np.zeros_like(g)
    reference.Lion(lr=0.5, beta1=0.0).step(p, g)
    expected = [-0.5, 0.5, 0.0, 0.0, -0.5, 0.5, np.nan, 0.0, 0.0]
    np.testing.assert_array_equal(p, expected)
    assert not np.signbit(p[[2, 3, 7, 8]]).any()
