"""Random programs have the bits of the functions that they are made of, called with arrays."""

import random

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu
from fusedstep.tools.verify import difference, values

pytestmark = pytest.mark.usefixtures("both_ways")

SEEDS = 150  # further ones with -m exhaustive
CONSTANTS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-40, 1e38, 3.0, -0.3)


def random_rule(seed):
    """Return a class made of a function with random statements; the same for the same seed."""
    rng = random.Random(seed)
    states = "abcd"[: rng.randint(0, 4)]
    reads_param = rng.random() < 0.4
    plan = [(rng.randrange(14), rng.random(), rng.random(), rng.random()) for _ in range(rng.randint(1, 14))]

    def computed(arrays, numbers):
        elements, scalars = list(arrays), list(numbers)

        def pick(x):
            """Return an element most of the time, otherwise a number or a constant."""
            if x < 0.65:
                return elements[int(x / 0.65 * len(elements))]
            if x < 0.9:
                return scalars[int((x - 0.65) / 0.25 * len(scalars))]
            return CONSTANTS[int((x - 0.9) / 0.1 * len(CONSTANTS))]

        for kind, x, y, z in plan:
            e, a, b = elements[int(x * len(elements))], pick(y), pick(z)
            s, n = scalars[int(x * len(scalars))], scalars[int(y * len(scalars))]
            if kind == 0:
                elements.append(e + a)
            elif kind == 1:
                elements.append(a - e)
            elif kind == 2:
                elements.append(a * e + b)
            elif kind == 3:
                elements.append(e / a if z < 0.5 else a / e)
            elif kind == 4:
                elements.append(fs.sqrt(abs(e)) if z < 0.7 else fs.sqrt(e))
            elif kind == 5:
                elements.append(np.maximum(e, a) if z < 0.5 else np.minimum(a, e))
            elif kind == 6:
                elements.append(np.where((e < a) | ~(e <= b), e, b))
            elif kind == 7:
                elements.append(np.where((e == a) & (e != b), a, -e))
            elif kind == 8:
                elements.append(np.sign(e) * s if z < 0.5 else (e > a) * e)
            elif kind == 9:
                elements.append(np.where(s > n, e, a))
            elif kind == 10:
                elements.append(np.clip(e, -abs(s), 1.0) if z < 0.5 else e**2)
            elif kind == 11:
                scalars.append(s * n + 1.0 if z < 0.5 else s / (1 - n))
            elif kind == 12:
                scalars.append(np.where(s < n, n, 1e-40) if z < 0.5 else fs.sqrt(abs(n)))
            else:
                scalars.append(numbers[0] ** 3 - s)
        chosen = [elements[-1 - k % len(elements)] for k in range(1 + len(states))]
        return [*chosen, scalars[-1]]

    if reads_param:

        def mine(p, g, *args, **numbers):
            return computed([p, g, *args], list(numbers.values()))
    else:

        def mine(g, *args, **numbers):
            return computed([g, *args], list(numbers.values()))

    arrays = ", ".join([*("p" * reads_param), "g", *states])
    source = f"def mine({arrays}, *, t, k, lr=0.3, rate=0.9): return inner({arrays}, lr=lr, rate=rate, t=t, k=k)"
    namespace = {"inner": mine}
    exec(source, namespace)
    return fs.rule(states=" ".join(states), memory={"k": 0.5})(namespace["mine"])


def outcome(optimizer, dtype, seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 300))
    p = values(rng, n, dtype)
    for _ in range(3):
        optimizer.step([p], [values(rng, n, dtype)])
    return [p, *(np.asarray(optimizer.state[0][name]) for name in sorted(optimizer.state[0]))]


def check(seeds):
    defined = 0
    for seed in seeds:
        try:
            cls = random_rule(seed)
        except ValueError as error:
            assert "expected" in str(error)  # noqa: PT017 (most programs are small enough)
            continue
        defined += 1
        for dtype in (np.float32, np.float64):
            with np.errstate(all="ignore"):
                expected = outcome(cls.reference(), dtype, seed)
            for isa in _cpu.isas:
                fs.use_isa(isa)
                found = outcome(cls(), dtype, seed)
                assert difference(found, expected) == 0, (seed, dtype, isa, cls.program.show())
    assert defined > 0.9 * len(seeds)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("part", range(3))
def test_random_programs(part):
    check(range(part * SEEDS, (part + 1) * SEEDS))


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(3, 9))
def test_many_random_programs(part):
    check(range(part * SEEDS, (part + 1) * SEEDS))
