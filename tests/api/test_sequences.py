"""Random sequences of all that may be done to an optimizer, which have the bits of the reference after each of them."""

import copy
import math
import pickle

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import reference
from fusedstep.tools import verify

F32, BF16 = np.float32, ml_dtypes.bfloat16
KEYS = ["a", "b", "n/a", "n/b", "n/c/0", "n/c/1", "x/W"]
DTYPES = [F32, F32, np.float64, BF16, np.complex64]
CLASSES = ["SGD", "Momentum", "Nadam", "Adam", "AdamW", "Adagrad", "RMSprop", "RAdam", "Lion"]
EXTRAS = {"Adagrad": {"initial_accumulator": 0.25}, "RMSprop": {"momentum": 0.5}, "Nadam": {"schedule_decay": 0.01}}
VALUES = {
    "lr": [0.1, 0.01, fs.schedules.cosine(0.1, steps=20), fs.schedules.step(0.1, 0.5, every=3)],
    "weight_decay": [0.0, 0.1],
    "ema": [None, 0.5, 0.9, fs.schedules.step(0.9, 0.5, every=2)],
    "clip_global_norm": [None, 0.5],
    "maximize": [False, True],
    "skip_nonfinite": [False, True],
    "master_weights": [False, True, "split"],
    "state_dtype": ["float32", "same"],
    "bounds": [None, (-1.0, 0.5)],
    "rounding": ["nearest", "stochastic"],
}
RULES = {"Adam": ("amsgrad", [False, True]), "AdamW": ("amsgrad", [False, True])}
RULES |= {"RMSprop": ("centered", [False, True]), "Momentum": ("velocity", ["grad", "step"])}
OVERRIDES = [
    {},
    {fs.where("a", optional=True): {"lr": 0.5}},
    {fs.where("n/*", optional=True): {"weight_decay": 0.2, "frozen": True}},
    {fs.where("*", optional=True): {"l1": 0.01}, fs.where("n/a", optional=True): {"maximize": True}},
    {fs.where("?", optional=True): {"ema": 0.25, "lr": fs.schedules.step(0.1, 0.5, every=2)}},
]


def real(array):
    return np.stack([array.real, array.imag]) if array.dtype.kind == "c" else np.ascontiguousarray(array)


def nested(flat):
    """Return a mapping of paths as containers of containers."""
    tree = {}
    for key, value in flat.items():
        *path, name = key.split("/")
        into = tree
        for part in path:
            into = into.setdefault(part, {})
        into[name] = value
    return tree


class Run:
    """An optimizer and its reference, with parameters of their own."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        cls = self.pick(CLASSES)
        options = EXTRAS.get(cls, {}) | {"lr": 0.1, "state_dtype": self.pick(VALUES["state_dtype"])}
        self.cls, self.options = cls, options
        self.opt, self.ref = getattr(fs, cls)(**options), getattr(reference, cls)(**options)
        self.mine, self.theirs = {}, {}
        for key in KEYS[: self.rng.integers(1, 4)]:
            self.appear(key)

    def pick(self, some):
        return some[self.rng.integers(len(some))]

    def values(self, shape, dtype):
        x = self.rng.standard_normal(shape)
        if np.dtype(dtype).kind == "c":
            x = x + 1j * self.rng.standard_normal(shape)
        axes = self.rng.permutation(len(shape))
        return np.asarray(x, dtype).transpose(axes).copy().transpose(np.argsort(axes))

    def appear(self, key):
        shape = tuple(self.rng.integers(1, 5, self.rng.integers(0, 4)))
        self.mine[key] = self.values(shape, self.pick(DTYPES))
        self.theirs[key] = self.mine[key].copy(order="K")

    def set(self, key, array):
        self.mine[key], self.theirs[key] = array.copy(order="K"), array.copy(order="K")

    # What may be done.

    def step(self, likely=0.7):
        keys = [key for key in self.mine if self.rng.random() < likely] or list(self.mine)[:1]
        grads = {}
        for key in keys:
            p, chance = self.mine[key], self.rng.random()
            if chance < 0.8:
                dtype = p.dtype if p.dtype.kind == "c" else self.pick([F32, np.float64, p.dtype])
                grads[key] = self.values(p.shape, dtype)
            elif chance < 0.9:
                grads[key] = None
        if self.rng.random() < 0.1 and grads:
            some = self.pick(list(grads))
            if grads[some] is not None:
                grads[some].flat[:1] = self.pick([math.inf, math.nan])
        mine, theirs = ({key: params[key] for key in keys} for params in (self.mine, self.theirs))
        shaped = nested if self.rng.random() < 0.5 else dict
        scale = float(self.pick([1.0, 0.5]))
        found = self.opt.step(shaped(mine), shaped(grads), grad_scale=scale)
        wanted = self.ref.step(shaped(theirs), shaped(grads), grad_scale=scale)
        assert found.skipped == wanted.skipped
        assert found.nonfinite == wanted.nonfinite
        assert verify.difference([np.float64(found.grad_norm or 0)], [np.float64(wanted.grad_norm or 0)]) == 0

    def steps(self):
        self.step()
        self.step()

    def change(self):
        options = VALUES | {"overrides": OVERRIDES} | dict([RULES[self.cls]] if self.cls in RULES else [])
        name = self.pick(list(options))
        value = self.pick(options[name])
        setattr(self.opt, name, value)
        setattr(self.ref, "ema_decay" if name == "ema" else name, value)

    def come(self):
        new = [key for key in KEYS if key not in self.mine]
        if new:
            self.appear(self.pick(new))

    def move(self):
        key = self.pick(list(self.mine))
        p = self.mine[key]
        axes = self.rng.permutation(p.ndim)
        self.set(key, p.transpose(axes).copy().transpose(np.argsort(axes)))

    def drop(self, key):
        for known in (self.ref.state, self.ref.t, self.ref.ema, self.ref.memory):
            known.pop(key, None)

    def known(self):
        known = [key for key in self.mine if key in self.opt.t]
        return self.pick(known) if known else None

    def reset(self):
        if (key := self.known()) is not None:
            self.opt.reset(key)
            self.drop(key)

    def forget(self):
        if (key := self.known()) is not None and len(self.mine) > 1:
            self.opt.forget(key)
            self.drop(key)
            del self.mine[key], self.theirs[key]

    def each_array(self, key, change):
        if key in self.ref.state:
            self.ref.state[key] = {name: change(name, array) for name, array in self.ref.state[key].items()}
        if key in self.ref.ema:
            self.ref.ema[key] = change(None, self.ref.ema[key])

    def take(self):
        key = self.known()
        if key is None or not self.mine[key].ndim:
            return
        n = len(self.mine[key])
        index = self.pick(
            [self.rng.integers(-n, n, 3), self.rng.random(n) < 0.7, slice(None, None, 2), slice(1, None)] if n else [[]]
        )
        self.opt.take(key, index)
        index = np.array(index, np.intp) if isinstance(index, list) else index
        self.set(key, self.mine[key][index])
        self.each_array(key, lambda _, array: array[index])

    def grow(self):
        key = self.known()
        if key is None or not self.mine[key].ndim:
            return
        n, p = int(self.rng.integers(0, 3)), self.mine[key]
        new = self.values((n, *p.shape[1:]), p.dtype)
        self.opt.grow(key, n, average=new if key in self.opt.ema else None)
        self.set(key, np.concatenate([p, new]))

        def more(name, array):
            rows = np.zeros(new.shape, array.dtype)
            if name is None:
                rows[...] = new
            elif self.cls == "Adagrad" and name == "a":
                rows[...] = 0.25 + 0.25j if array.dtype.kind == "c" else 0.25
            return np.concatenate([array, rows])

        self.each_array(key, more)

    def set_count(self):
        if (key := self.known()) is not None and key in self.ref.t:
            self.opt.t[key] = self.ref.t[key] = int(self.rng.integers(1, 9))

    def copied(self):
        self.opt = self.pick([copy.deepcopy, copy.copy, lambda opt: pickle.loads(pickle.dumps(opt))])(self.opt)
        self.step(1)  # one that has none of the keys that were copied is refused

    def restored(self):
        other = self.opt if self.rng.random() < 0.5 else getattr(fs, self.cls)(**self.options)
        other.load_state_dict(self.opt.state_dict(), hyperparameters="saved")
        self.opt = other
        self.step(1)

    def filed(self):
        if any(key not in self.mine for key in self.opt.t):
            return
        other = self.opt if self.rng.random() < 0.5 else getattr(fs, self.cls)(**self.options)
        fs.save(self.path, self.opt, nested(self.mine))
        fs.load(self.path, other, self.mine, hyperparameters="file")
        self.opt = other
        self.step(1)

    def evaluate(self):
        some = {key: p for key, p in self.mine.items() if key in self.opt.ema and self.opt.ema[key].shape == p.shape}
        with self.opt.averaged(nested(some)):
            for key, p in some.items():
                with np.errstate(over="ignore"):
                    assert verify.difference([real(p)], [real(self.ref.ema[key].astype(p.dtype))]) == 0

    # What must hold.

    def check(self):
        for key, p in self.mine.items():
            pairs = [(p, self.theirs[key])]
            for name, array in self.ref.state.get(key, {}).items():
                pairs.append((self.opt.state[key][name], array))
            assert (key in self.ref.ema) == (key in self.opt.ema), key
            if key in self.ref.ema:
                pairs.append((self.opt.ema[key], self.ref.ema[key]))
            for mine, theirs in pairs:
                assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), key
                assert verify.difference([real(mine)], [real(theirs)]) == 0, key
            assert self.opt.t.get(key, 0) == self.ref.t.get(key, 0), key


ACTIONS = [*(["step"] * 6), *(["steps", "change"] * 3), "come", "move", "reset", "forget", "take", "grow", "set_count"]
ACTIONS += ["copied", "restored", "filed", "evaluate"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(300))
def test_sequences(seed, tmp_path):
    run = Run(seed)
    run.path = tmp_path / f"run{run.pick(['.npz', '.safetensors'])}"
    for _ in range(40):
        action = run.pick(ACTIONS)
        getattr(run, action)()
        run.check()
