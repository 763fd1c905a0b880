"""
Files as version 0.1.0 wrote them, and what 0.1.0 computed when it went on from there.

Run with that version installed, in this folder. `test_older_versions.py` reads the files, makes
the same steps, and compares the bits.
"""

import pickle

import numpy as np

SHAPES = {"w": (5,), "layer/b": (2, 3), 7: (), ("c", None): (1,)}
BEFORE, AFTER = 3, 3  # updates before and after the files were written


def grads(step):
    """Return the gradients of a step, exact in every dtype; one parameter lacks its gradient in every other step."""
    some = {}
    for place, (key, shape) in enumerate(SHAPES.items()):
        size = int(np.prod(shape, dtype=int))
        values = ((np.arange(size) * 7 + step * 5 + place * 3) % 11 - 5) / 8
        some[key] = values.reshape(shape).astype(np.float64 if place % 2 else np.float32)
    return {key: g for key, g in some.items() if key != 7 or step % 2}


def params():
    return {key: np.ones_like(g) for key, g in grads(1).items()}


def adam(fs):
    overrides = {"layer/*": {"weight_decay": 0.1, "ema": None}, "w": {"lr": fs.schedules.exponential(0.1, 0.5, 2)}}
    lr = fs.schedules.warmup(0.0, fs.schedules.polynomial(0.1, 0.01, 9), 2)
    return fs.Adam(lr, amsgrad=True, eps_mode="hat", ema=0.9, clip_global_norm=1.5, overrides=overrides)


def nadam(fs):
    lr = fs.schedules.plateau(0.05, 0.5, patience=0)
    return fs.Nadam(lr, beta1=0.8, schedule_decay=0.1, l1=1e-3, maximize=True, overrides={7: {"lr": 1 / 3}})


def rmsprop(fs):
    lr = fs.schedules.product(0.5, fs.schedules.step(0.1, 0.5, 4))
    return fs.RMSprop(lr, momentum=0.9, centered=True, velocity="step", initial_accumulator=0.25, skip_nonfinite=True)


MAKE = {"adam": adam, "nadam": nadam, "rmsprop": rmsprop}


def advance(opt, some, first, steps):
    """Make steps, and tell each plateau a loss that gets worse."""
    for step in range(first, first + steps):
        opt.step(some, grads(step))
        if hasattr(opt.lr, "observe"):
            opt.lr.observe(float(step))


def outcome(opt, some):
    """Return the bits of parameters, states and averages by name."""
    found = {f"params[{key!r}]": p for key, p in some.items()}
    found |= {f"state[{key!r}][{name!r}]": a for key, states in opt.state.items() for name, a in states.items()}
    found |= {f"ema[{key!r}]": a for key, a in opt.ema.items()}
    return {name: (a.dtype.name, a.shape, a.tobytes()) for name, a in found.items()}


def main():
    import fusedstep as fs

    assert fs.__version__ == "0.1.0"
    for name, make in MAKE.items():
        opt, some = make(fs), params()
        advance(opt, some, 1, BEFORE)
        for ending in (".npz", ".safetensors"):
            fs.save(name + ending, opt, some, extra={"done": BEFORE})
        known = pickle.dumps({"optimizer": opt, "state_dict": opt.state_dict(), "params": some})
        advance(opt, some, BEFORE + 1, AFTER)
        with open(f"{name}.pickle", "wb") as file:
            pickle.dump({"known": known, "expected": outcome(opt, some)}, file)


if __name__ == "__main__":
    main()
