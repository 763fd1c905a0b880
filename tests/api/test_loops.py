"""
Loops as people write them by hand, beside the same loops with fusedstep.

Each kind of loop keeps its parameters as its authors do, in public code: a flat vector, locals in a list, dicts, layers
and parameters as objects, one array for each optimizer. By hand, arrays are made anew; the rounding of the loop by hand
is its own, so values are compared closely, and not by their bits.
"""

import collections
import dataclasses

import numpy as np
import pytest

import fusedstep as fs

STEPS = 7


def adam_by_hand(lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-8):
    """Return a function that makes Adam's next value of a parameter, whose moments it keeps by a name."""
    moments = collections.defaultdict(lambda: (0, 0.0, 0.0))

    def stepped(name, p, g):
        t, m, v = moments[name]
        t, m, v = t + 1, beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        moments[name] = t, m, v
        return p - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)

    return stepped


def equal(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


class Network:
    """Two dense layers, and a batch of data; gradients as a backward pass makes them."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.x, self.y = rng.standard_normal((12, 5)), rng.standard_normal((12, 2))
        self.shapes = {"W1": (5, 4), "b1": (4,), "W2": (4, 2), "b2": (2,)}
        self.start = {key: rng.standard_normal(shape) for key, shape in self.shapes.items()}

    def params(self):
        return {key: p.copy() for key, p in self.start.items()}

    def grads(self, params):
        w1, b1, w2, b2 = params.values()
        h = np.maximum(self.x @ w1 + b1, 0)
        d2 = 2 * (h @ w2 + b2 - self.y) / len(self.x)
        d1 = (d2 @ w2.T) * (h > 0)
        return {"W1": (d1.T @ self.x).T, "b1": d1.sum(0), "W2": (d2.T @ h).T, "b2": d2.sum(0)}

    def trained_by_hand(self):
        params, stepped = self.params(), adam_by_hand()
        for _ in range(STEPS):
            params = {key: stepped(key, params[key], g) for key, g in self.grads(params).items()}
        return params


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def opt():
    return fs.Adam(lr=1e-2)


# How parameters are held.


def test_one_flat_vector(opt):
    """Evolution strategies, fits of curves, regressions: the whole of the parameters is one array."""
    theta, by_hand, stepped = np.zeros(9), np.zeros(9), adam_by_hand()
    target = np.arange(9.0)
    for _ in range(STEPS):
        by_hand = stepped(0, by_hand, by_hand - target)
        opt.step(theta, theta - target)
    equal(theta, by_hand)


def test_equal_keys_of_parameters_and_gradients(network, opt):
    params = network.params()
    for _ in range(STEPS):
        opt.step(params, network.grads(params))
    for key, p in network.trained_by_hand().items():
        equal(params[key], p)
    assert list(opt.t) == ["W1", "b1", "W2", "b2"]


@pytest.mark.parametrize("grad_key", ["d{}", lambda name: "d" + name])
def test_gradients_of_other_names(network, opt, grad_key):
    """``grads["dW1"]`` belongs to ``params["W1"]`` in the notes of many courses."""
    params = network.params()
    for _ in range(STEPS):
        derivatives = {"d" + key: g for key, g in network.grads(params).items()}
        opt.step(params, derivatives, grad_key=grad_key)
    for key, p in network.trained_by_hand().items():
        equal(params[key], p)


def test_locals_in_a_list(network, opt):
    params = network.params()
    w1, b1, w2, b2 = params.values()
    for _ in range(STEPS):
        dw1, db1, dw2, db2 = network.grads(params).values()
        opt.step([w1, b1, w2, b2], [dw1, db1, dw2, db2])
    for ours, theirs in zip((w1, b1, w2, b2), network.trained_by_hand().values(), strict=True):
        equal(ours, theirs)


def test_pairs_of_weights_and_biases(network, opt):
    """``params = [(W, b), ...]``, and gradients in the same pairs: loops in the manner of JAX and autograd."""
    params = network.params()
    pairs = [(params["W1"], params["b1"]), (params["W2"], params["b2"])]
    for _ in range(STEPS):
        g = network.grads(params)
        opt.step(pairs, [(g["W1"], g["b1"]), (g["W2"], g["b2"])])
    for key, p in network.trained_by_hand().items():
        equal(params[key], p)
    assert list(opt.t) == ["0/0", "0/1", "1/0", "1/1"]


@dataclasses.dataclass
class Dense:
    W: np.ndarray
    b: np.ndarray


Weights = collections.namedtuple("Weights", "W b")


@pytest.mark.parametrize("layer", [Dense, Weights, lambda *pair: dict(zip("Wb", pair, strict=True))])
def test_layers_in_a_dict(network, opt, layer):
    params = network.params()
    layers = {"l1": layer(params["W1"], params["b1"]), "l2": layer(params["W2"], params["b2"])}
    for _ in range(STEPS):
        g = network.grads(params)
        opt.step(layers, {"l1": layer(g["W1"], g["b1"]), "l2": layer(g["W2"], g["b2"])})
    for key, p in network.trained_by_hand().items():
        equal(params[key], p)
    assert list(opt.t) == ["l1/W", "l1/b", "l2/W", "l2/b"]


def test_values_of_dicts(network, opt):
    params = network.params()
    for _ in range(STEPS):
        opt.step(params.values(), network.grads(params).values())
    for key, p in network.trained_by_hand().items():
        equal(params[key], p)
    with pytest.raises(TypeError, match=r"params is of type generator.*expected a list of its items: list\(...\)"):
        opt.step((p for p in params.values()), list(network.grads(params).values()))


class Layer:
    """A layer whose backward pass makes new gradient arrays."""

    def __init__(self, *pair):
        self.W, self.b = pair


def test_layers_as_objects(network, opt):
    """``layer.W -= lr * layer.dW``: layers that have no gradients yet, or None, keep their place."""
    params = network.params()
    layers = [Layer(params["W1"], params["b1"]), Layer(params["W2"], params["b2"])]
    bound = fs.bind(layers, param="W b", grad="dW db")
    opt.step(bound)  # before the first backward pass: nothing happens
    for _ in range(STEPS):
        g = network.grads(params)
        for k, one in enumerate(layers, 1):
            one.dW, one.db = g[f"W{k}"], g[f"b{k}"]
        opt.step(bound)
    layers[0].dW, layers[0].db = None, None
    del layers[1].dW, layers[1].db
    opt.step(bound)
    for key, p in network.trained_by_hand().items():
        equal(params[key], p)
    assert list(opt.t.values()) == [STEPS] * 4


class Parameter:
    """A parameter that holds its gradient, as the tensors of small frameworks do."""

    def __init__(self, data):
        self.data, self.grad = data, None


def test_parameters_as_objects_without_some_gradients(network, opt):
    """Where a framework drops parameters without gradients from its list, here they keep their keys and states."""
    tensors = {key: Parameter(p) for key, p in network.params().items()}
    bound = fs.bind(tensors, param="data", grad="grad")
    stepped, by_hand = adam_by_hand(), network.params()
    for k in range(STEPS):
        g = network.grads({key: one.data for key, one in tensors.items()})
        used = [key for key in g if k % 2 == 0 or key != "b1"]
        for key, one in tensors.items():
            one.grad = g[key] if key in used else None
        opt.step(bound)
        by_hand |= {key: stepped(key, by_hand[key], g[key]) for key in used}
    for key, p in by_hand.items():
        equal(tensors[key].data, p)
    assert dict(opt.t) == {"W1/data": 7, "b1/data": 4, "W2/data": 7, "b2/data": 7}


def test_one_optimizer_for_each_array(network):
    """``self.W = self.W_opt.update(self.W, dW)`` becomes a step in place."""
    params = network.params()
    opts = {key: fs.Adam(lr=1e-2) for key in params}
    for _ in range(STEPS):
        for key, g in network.grads(params).items():
            opts[key].step(params[key], g)
    for key, p in network.trained_by_hand().items():
        equal(params[key], p)


# What gradients are.


def test_the_convolution_of_a_textbook(opt):
    """The weight gradient of a convolution by a matrix product is transposed and reshaped: it is no dense array."""
    rng = np.random.default_rng(1)
    filters = rng.standard_normal((6, 3, 2, 2))
    col, out = rng.standard_normal((40, 12)), rng.standard_normal((40, 6))
    g = np.dot(col.T, out).transpose(1, 0).reshape(6, 3, 2, 2)
    stepped, by_hand = adam_by_hand(), filters.copy()
    for _ in range(STEPS):
        by_hand = stepped(0, by_hand, g)
        opt.step(filters, g)
    equal(filters, by_hand)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_another_precision_by_accident(opt, dtype):
    """A float32 array times a `np.float64` is float64: the gradient of a parameter need not have its type."""
    p = np.linspace(-1, 1, 8).astype(dtype)
    q = p.copy()
    other = fs.Adam(lr=1e-2)
    for _ in range(STEPS):
        opt.step(p, (p - dtype(1)) * np.float64(2))
        other.step(q, (q - dtype(1)) * 2.0)
    assert (p == q).all()


def test_a_scale_and_its_gradient_as_a_number(opt):
    params = {"scale": np.array(2.0), "shift": np.zeros(3)}
    for _ in range(STEPS):
        opt.step(params, {"scale": float(params["scale"]) - 1, "shift": np.broadcast_to(np.float64(0.5), 3)})
    assert opt.t["scale"] == STEPS
    assert abs(params["scale"] - 1.93) < 1e-2


# Habits of some fields.


def test_rows_of_a_table(opt):
    """Word vectors and recommenders step ``W[idx]``: gradients of equal rows are added up in an array of all rows."""
    rng = np.random.default_rng(3)
    table, by_hand, stepped = np.ones((20, 3)), np.ones((20, 3)), adam_by_hand()
    grad = np.zeros((20, 3))
    opt.zero_grad = True
    for _ in range(STEPS):
        idx, rows = rng.integers(0, 20, 8), rng.standard_normal((8, 3))
        np.add.at(grad, idx, rows)
        by_hand = stepped(0, by_hand, grad)
        opt.step(table, grad)
    equal(table, by_hand)


def test_reinforcement_learning_climbs_and_zeroes_its_buffer():
    rng = np.random.default_rng(2)
    model = {"W1": rng.standard_normal((4, 6)), "W2": rng.standard_normal(4)}
    by_hand = {key: w.copy() for key, w in model.items()}
    grad_buffer = {key: np.zeros_like(w) for key, w in model.items()}
    cache = {key: np.zeros_like(w) for key, w in model.items()}
    opt = fs.RMSprop(lr=1e-3, rho=0.99, eps=1e-5, maximize=True, zero_grad=True)
    for _ in range(STEPS):
        for key, w in by_hand.items():
            g = np.cos(w)
            cache[key] = 0.99 * cache[key] + 0.01 * g**2
            by_hand[key] = w + 1e-3 * g / (np.sqrt(cache[key]) + 1e-5)
            grad_buffer[key] += np.cos(model[key])
        opt.step(model, grad_buffer)
    for key, w in by_hand.items():
        equal(model[key], w)
        assert not grad_buffer[key].any()


def test_the_ratio_of_an_evolution_strategy():
    """Evolution strategies watch the norm of the step beside that of the parameters."""
    theta = np.linspace(1, 2, 50)
    opt = fs.Adam(lr=1e-2, measure="update")
    for _ in range(STEPS):
        before = theta.copy()
        result = opt.step(theta, np.sin(theta))
        assert result.update_norm == pytest.approx(np.linalg.norm(theta - before), rel=1e-12)


def test_a_fit_within_bounds():
    """Physical parameters that are clipped after each step are kept within bounds in the step."""
    x, by_hand, stepped = np.full(4, 0.5), np.full(4, 0.5), adam_by_hand(lr=0.2)
    opt = fs.Adam(lr=0.2, bounds=(0.0, 1.0))
    slopes = np.array([-1.0, 1.0, 0.1, -0.1])
    for _ in range(STEPS):
        by_hand = np.clip(stepped(0, by_hand, slopes), 0.0, 1.0)
        opt.step(x, slopes)
    equal(x, by_hand)


def test_decay_for_matrices_only(network):
    params, by_hand = network.params(), network.params()
    opt = fs.AdamW(lr=1e-2, weight_decay=0.1, overrides={fs.where(lambda key, p: p.ndim < 2): {"weight_decay": 0.0}})
    stepped = adam_by_hand()
    for _ in range(STEPS):
        opt.step(params, network.grads(params))
        for key, g in network.grads(by_hand).items():
            decayed = by_hand[key] * (1 - 1e-2 * 0.1) if by_hand[key].ndim == 2 else by_hand[key]
            by_hand[key] = stepped(key, decayed, g)
    for key, p in by_hand.items():
        equal(params[key], p)


def test_tied_weights_are_one_parameter(opt):
    table = np.ones((3, 2))
    with pytest.raises(ValueError, match="of one array with two names, step one with the sum of both gradients"):
        opt.step({"in": table, "out": table}, {"in": np.ones((3, 2)), "out": np.ones((3, 2))})
    opt.step({"table": table}, {"table": np.ones((3, 2)) + np.ones((3, 2))})


def test_the_inside_of_an_array_is_no_parameter(opt):
    """A parameter with gaps is refused, and the message names the way: the whole array, with zeros around."""
    w = np.ones((5, 5))
    with pytest.raises(ValueError, match="step the whole array with a gradient that is 0 elsewhere"):
        opt.step(w[1:-1, 1:-1], np.ones((3, 3)))
    opt.step(w, np.pad(np.ones((3, 3)), 1))
    assert (w[0] == 1).all()
    assert (w[1:-1, 1:-1] != 1).all()
