"""Presets make the updates of the libraries themselves: the rows of the page of dialects whose library is installed."""

import os

import numpy as np
import pytest

from tests.presets.page import make, rows
from tests.presets.problem import RATES, START, cut, distance, path, steps_of

# A function for each library: the parameters after each update of a call, with learning rates or without.


def keras3(call, rates):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    jax = pytest.importorskip("jax")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("needs Keras on JAX")
    before = keras.config.floatx()
    keras.config.set_floatx("float64")  # of hyperparameters
    try:
        with jax.enable_x64(True):
            opt = eval(call, {"keras": keras})
            variables = {name: keras.Variable(p, dtype="float64") for name, p in cut(START).items()}

            def step(params, grads, rate):
                if rate is not None:
                    opt.learning_rate = rate
                opt.apply([grads[name] for name in variables], list(variables.values()))
                return {name: np.array(variable.value) for name, variable in variables.items()}

            return path(step, rates)
    finally:
        keras.config.set_floatx(before)


def optax(call, rates):
    jax, module = pytest.importorskip("jax"), pytest.importorskip("optax")
    with jax.enable_x64(True):
        lr = 0.01 if rates is None else lambda done: jax.numpy.asarray(rates)[done]
        opt = eval(call, {"optax": module, "lr": lr})
        state = opt.init(cut(START))

        @jax.jit
        def update(state, params, grads):
            updates, state = opt.update(grads, state, params)
            return state, module.apply_updates(params, updates)

        def step(params, grads, rate):
            nonlocal state
            state, params = update(state, params, grads)
            return params

        return path(step, rates)


def torch(call, rates):
    module = pytest.importorskip("torch")
    before = module.get_default_dtype()
    module.set_default_dtype(module.float64)
    try:
        params = {name: module.tensor(p) for name, p in cut(START).items()}
        opt = eval(call, {"torch": module, "params": list(params.values())})

        def step(_, grads, rate):
            if rate is not None:
                opt.param_groups[0]["lr"] = rate
            for name, p in params.items():
                p.grad = module.tensor(grads[name])
            opt.step()
            return {name: p.numpy() for name, p in params.items()}

        return path(step, rates)
    finally:
        module.set_default_dtype(before)


def thinc(call, rates):
    thinc = pytest.importorskip("thinc")
    api = pytest.importorskip("thinc.api")
    opt = eval(call, {"thinc": thinc, "lr": 0.01})

    def step(params, grads, rate):
        if rate is not None:
            opt.learn_rate = api.constant(rate)
        return {name: opt((0, name), params[name].copy(), grads[name])[0] for name in params}

    return path(step, rates, np.float32)


def sklearn(call, rates):
    pytest.importorskip("sklearn")
    from sklearn.neural_network import MLPClassifier, _stochastic_optimizers

    net = eval(call, {"MLPClassifier": MLPClassifier})
    params = cut(START)
    if net.solver == "sgd":
        options = net.learning_rate, net.momentum, net.nesterovs_momentum, net.power_t
        opt = _stochastic_optimizers.SGDOptimizer(list(params.values()), net.learning_rate_init, *options)
    else:
        options = net.beta_1, net.beta_2, net.epsilon
        opt = _stochastic_optimizers.AdamOptimizer(list(params.values()), net.learning_rate_init, *options)

    def step(_, grads, rate):
        if rate is not None:
            opt.learning_rate_init = opt.learning_rate = rate
        opt.update_params(list(params.values()), list(grads.values()))
        return params

    return path(step, rates)


def mlx(call, rates):
    mx = pytest.importorskip("mlx.core", exc_type=ImportError)
    optimizers = pytest.importorskip("mlx.optimizers", exc_type=ImportError)
    opt = eval(call.replace("mlx.optimizers", "optimizers"), {"optimizers": optimizers, "lr": 0.01})

    def step(params, grads, rate):
        if rate is not None:
            opt.learning_rate = rate
        made = [{name: mx.array(np.asarray(x)) for name, x in arrays.items()} for arrays in (grads, params)]
        return {name: np.array(p) for name, p in opt.apply_gradients(*made).items()}

    with mx.stream(mx.cpu):
        return path(step, rates, np.float32)


LIBRARIES = {function.__name__: function for function in (keras3, optax, torch, thinc, sklearn, mlx)}
FLOAT32 = ("mlx", "thinc")


CASES = [(row, rates) for row in rows() if row.library in LIBRARIES for rates in row.limits]


@pytest.mark.parametrize(("row", "rates"), CASES, ids=lambda case: getattr(case, "theirs", case))
def test_updates(row, rates):
    theirs = LIBRARIES[row.library](row.theirs, RATES[rates])
    opt, dtype = make(row.preset), np.float32 if row.library in FLOAT32 else np.float64
    if RATES[rates] and callable(opt.lr):  # the presets of MLX, whose `lr` is a schedule
        opt.lr = type(opt.lr)(RATES[rates].__getitem__, opt.lr.beta1, opt.lr.beta2)
        ours = path(steps_of(opt), dtype=dtype)
    else:
        ours = path(steps_of(opt), RATES[rates], dtype)
    # Compilers of these libraries may contract operations, on another machine in another way.
    assert distance(ours, theirs, dtype) <= 4 * row.limits[rates] + 64
