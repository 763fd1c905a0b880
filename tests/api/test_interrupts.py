"""A step that is interrupted has happened as a whole or not at all, and the next one works."""

import subprocess
import sys
from itertools import count

import numpy as np
import pytest

import fusedstep as fs
from tests.api.runs import snapshot
from tests.interrupts import interrupted

F32 = np.float32


def params_of(*keys):
    return {key: np.linspace(-1, 1, 4, dtype=F32) for key in keys}


def grads_of(params):
    return {key: np.arange(4, dtype=F32) for key in params}


def first():
    return fs.Nadam(ema=0.5), params_of("a", "b")


def later():
    opt, params = first()
    opt.step(params, grads_of(params))
    opt.step(params, grads_of(params))
    return opt, params


def other_arrays():
    opt, params = later()
    return opt, {key: p.copy() for key, p in params.items()}


def new_tensors():
    opt, params = later()
    return opt, params | params_of("c", "d")


def among_many_new_tensors():
    """There is room for further step counts, which are shared with the progress before."""
    opt, params = later()
    opt.step(params_of("x"), grads_of("x"))
    return opt, params | params_of("c")


def fewer_tensors():
    opt, params = later()
    del params["a"]
    return opt, params


def tensors_in_turn():
    opt, params = later()
    opt.step(params_of("x"), grads_of("x"))
    return opt, params


def changed_rate():
    opt, params = later()
    opt.lr = 0.25
    return opt, params


def changed_overrides():
    opt, params = later()
    opt.overrides = {"a": {"lr": 0.5}, "[bc]": {"weight_decay": 0.1}}
    return opt, params


def changed_rule():
    opt, params = fs.RMSprop(), params_of("a", "b")
    opt.step(params, grads_of(params))
    opt.centered = True
    return opt, params


def changed_average():
    opt, params = fs.Adam(), params_of("a", "b")
    opt.step(params, grads_of(params))
    opt.ema = 0.5
    return opt, params


def slower(done):
    return 0.1 / (done + 1)


def schedule():
    opt = fs.Momentum(lr=fs.schedules.cosine(0.1, steps=10), skip_nonfinite=True, overrides={"a": {"lr": slower}})
    params = params_of("a", "b")
    opt.step(params, grads_of(params))
    return opt, params


def loaded():
    opt, params = later()
    again = fs.Nadam()
    again.load_state_dict(opt.state_dict(), hyperparameters="saved")
    return again, params


def loaded_in_another_order():
    opt, params = fs.Nadam(ema=0.5), {"a": np.ones((3, 2), F32)}
    opt.step(params, {"a": np.ones((3, 2), F32)})
    return opt, {"a": np.asfortranarray(params["a"])}


def clipped():
    opt, params = fs.Adam(clip_global_norm=1.0), params_of("a", "b")
    opt.step(params, grads_of(params))
    return opt, params


def taken():
    opt, params = later()
    opt.take("a", [0, 3])
    return opt, params | {"a": params["a"][[0, 3]]}


def grads_like(params):
    return {key: np.arange(p.size, dtype=F32).reshape(p.shape) for key, p in params.items()}


BEGINNINGS = [
    first,
    later,
    other_arrays,
    new_tensors,
    among_many_new_tensors,
    fewer_tensors,
    tensors_in_turn,
    changed_rate,
    changed_overrides,
    changed_rule,
    changed_average,
    schedule,
    loaded,
    loaded_in_another_order,
    clipped,
    taken,
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("make", BEGINNINGS, ids=lambda make: make.__name__)
def test_a_step_that_is_interrupted_at_any_line(make):
    opt, params = make()
    grads = grads_like(params)
    found = [snapshot(opt, params)]
    for _ in range(3):
        opt.step(params, grads)
        found.append(snapshot(opt, params))
    seen = set()
    for number in count(1):
        opt, params = make()
        if not interrupted(lambda opt=opt, params=params: opt.step(params, grads), number):
            break
        done = found.index(snapshot(opt, params))
        assert done < 2
        seen.add(done)
        for k in (1, 2):
            opt.step(params, grads)
            assert snapshot(opt, params) == found[done + k], number
    assert 0 in seen
    assert number > 5  # lines


# Real signals.

SIGNALS = """
import signal, sys
import numpy as np, fusedstep as fs

rng = np.random.default_rng(0)
signal.signal(signal.SIGALRM, signal.default_int_handler)
ones = np.ones(4, np.float32)

def params_of(*keys):
    return {key: np.zeros(4, np.float32) for key in keys}

def same(opt, known):
    '''Step the same arrays again and again.'''
    while True:
        opt.step(known[0], {key: ones for key in known[0]})

def in_turn(opt, known):
    '''Step two dicts in turn.'''
    known.append(params_of("c"))
    while True:
        for params in known:
            opt.step(params, {key: ones for key in params})

def new(opt, known):
    '''Step a new tensor each time.'''
    while True:
        known.append(params_of(len(known)))
        opt.step(known[-1], {len(known) - 1: ones})

def changed(opt, known):
    '''Change hyperparameters in between.'''
    while True:
        opt.weight_decay = 0.0
        opt.overrides = {"a": {"maximize": False}}
        opt.step(known[0], {key: ones for key in known[0]})

def loaded(opt, known):
    '''Load what was saved, and read.'''
    while True:
        opt.load_state_dict(opt.state_dict())
        opt.step(known[0], {key: ones for key in known[0]})
        opt.t["a"] = opt.t["a"]

interrupts = 0
for number in range(int(sys.argv[1])):
    for loop in (same, in_turn, new, changed, loaded):
        opt, known = fs.Momentum(lr=1.0, momentum=0.0), [params_of("a", "b")]
        if number % 2:
            opt.step(known[0], {"a": ones, "b": ones})
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 4e-4))
            loop(opt, known)
        except KeyboardInterrupt:
            interrupts += 1
        for params in known:
            for key, p in params.items():
                t = opt.t.get(key, 0)
                assert (p == -t).all(), (loop, key, p, t)
                assert not t or (opt.state[key]["b"] == 1).all(), (loop, key)
            opt.step(params, {key: ones for key in params})
            assert all((p == -opt.t[key]).all() for key, p in params.items()), loop
print(interrupts)
"""


@pytest.mark.parametrize("rounds", [100, pytest.param(5000, marks=pytest.mark.exhaustive)])
def test_signals(rounds):
    done = subprocess.run([sys.executable, "-c", SIGNALS, str(rounds)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert int(done.stdout) == 5 * rounds
