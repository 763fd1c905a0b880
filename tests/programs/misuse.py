"""Wrong arguments of `define`, drawn at random, and arrays that end where memory ends. Run in a process of its own."""

import ctypes
import mmap
import random
import sys
from collections import Counter
from struct import pack

import numpy as np

import fusedstep as fs
from fusedstep import _cpu
from tests.programs.lists import drawn

LISTS = ("memory_start", "constants", "numbers", "memory_after", "scalars", "elements", "states_after")
TUPLES = ("states", "hypers", "memory")
REFUSED = (TypeError, ValueError, OverflowError)
AROUND = _cpu.rules["sgd"].hypers[1:]  # behind the hyperparameters of a rule
OFF = dict.fromkeys(("clip_value", "clip_norm", "clip_global_norm", "high", "ema"), np.inf)
OFF |= {"grad_scale": 1.0, "low": -np.inf}


class Index:
    """Is a number for whoever asks, and meanwhile changes the lists that it is in."""

    def __init__(self, value, lists=None, change=None):
        self.value, self.lists, self.change, self.left = value, lists or {}, change, 10_000

    def __index__(self):
        self.left -= 1
        for each in self.lists.values() if self.left > 0 else ():
            if isinstance(each, list):
                each.append(self) if self.change == "grow" else each.clear()
        return self.value

    def __float__(self):
        return float(self.__index__())


class Text(str):
    """Is an identifier, as it says."""

    def isidentifier(self):
        return True


class Broken:
    """Fails, whatever is asked of it."""

    def __index__(self):
        raise LookupError("broken")

    __float__ = __iter__ = __len__ = __index__


def full(rng):
    """Return a valid program that also has hyperparameters, numbers and memory."""
    states, scalars = rng.randint(0, 4), rng.choice([0, 1, 4, 24])
    lists = drawn(rng, rng.choice([0, 1, 5, 20, 64]), states, scalars, rng.choice([0, 3, 8]))
    hypers, memory, operations = rng.randint(0, 12), rng.randint(0, 4), rng.choice([0, 1, 5, 64])
    constants = rng.choice([1, 3, 32])
    first = hypers + 1 + memory + constants
    lists["hypers"] = tuple(f"h{i}" for i in range(hypers))
    lists["memory"] = tuple(f"k{i}" for i in range(memory))
    lists["memory_start"] = [rng.uniform(-2, 2) for _ in range(memory)]
    lists["constants"] = [
        rng.choice([0.5, -1e308, float("nan"), float("inf"), -0.0, 5e-324, 2]) for _ in range(constants)
    ]
    ops = len(_cpu.operations)
    lists["numbers"] = [(rng.randrange(ops), *(rng.randrange(first + i) for _ in range(3))) for i in range(operations)]
    lists["memory_after"] = [rng.randrange(first + operations) for _ in range(memory)]
    lists["scalars"] = [rng.randrange(first + operations) for _ in range(scalars)]
    return lists


# fmt: off
WRONG = (
    None, "x", b"xxxx", (), [], {}, True, 1.5, 1j, np.nan, np.int64(3), np.float32(2), object(), Broken(),
    -1, -2, -24, -25, -26, -1000, 5, 6, 7, 69, 70, 71, 72, 112, 113, 114, 255, 256, 32767, 32768, 65536,
    2**31, -(2**31), 2**32, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400, -(10**400),
    (0, 0, 0), (0, 0, 0, 0, 0), (0, 0, 0, None), [0, 0, 1, 1], (17, 0, 0, 0), (18, 0, 0, 0), (256, 0, 0, 0),
    (-1, 0, 0, 0), (2**64, 0, 0, 0), (0, 2**64, 0, 0), (0, 6, 6, 6), (0, 69, 0, 0), (0, -1, -1, 0), (0, 5, 5, 0),
    Text("a b"), Text("a\0b"), Text(""), "é", "\ud800", "lr", Index(0), Index(2**70),
)
# fmt: on


def wrong_item(rng, lists):
    changing = Index(1, lists, rng.choice(["grow", "clear"]))
    return rng.choice([*WRONG, changing, changing, (0, changing, 0, 0), (changing, 0, 0, 0), iter([0, 1, 1, 1])])


def another_item(rng, lists):
    """Return an item that is wrong, or a number that may be an operand."""
    return rng.choice([wrong_item(rng, lists), rng.randint(-30, 120), rng.randint(-3, 9)])


def spoil(rng, lists):
    """Make one thing of a program wrong, or at least another one."""
    name = rng.choice([*LISTS, *LISTS, *TUPLES, "update"])
    value, way = lists[name], rng.randrange(8)
    if not isinstance(value, (list, tuple)) or way == 0:
        lists[name] = wrong_item(rng, lists)
        return
    items = list(value)
    place = rng.randrange(len(items) + 1)
    if way == 1:
        items.insert(place, wrong_item(rng, lists))
    elif way == 2 and items:
        items.pop(place % len(items))
    elif way == 3 and items:
        items += items * rng.choice([1, 2, 40])
    elif way == 4:
        items += [items[0] if items else 0] * rng.choice([1, 13, 70, 300, 100_000])
    elif items:
        at = place % len(items)
        if isinstance(items[at], tuple) and items[at]:
            parts = list(items[at])
            parts[rng.randrange(len(parts))] = another_item(rng, lists)
            items[at] = tuple(parts)
        else:
            items[at] = another_item(rng, lists)
    lists[name] = items if isinstance(value, list) else tuple(items)


class Pages:
    """Memory between two pages that nobody may touch."""

    def __init__(self, size):
        page = mmap.PAGESIZE
        self.size = -(-max(size, 1) // page) * page
        self.map = mmap.mmap(-1, self.size + 2 * page)
        self.place = ctypes.addressof(ctypes.c_char.from_buffer(self.map)) + page
        libc = ctypes.CDLL(None)
        for edge in (self.place - page, self.place + self.size):
            assert libc.mprotect(ctypes.c_void_p(edge), page, 0) == 0  # PROT_NONE

    def array(self, n, dtype, at_end):
        """Return an array of n elements that begins or ends where the memory does, and the bytes beside it."""
        whole = np.frombuffer((ctypes.c_char * self.size).from_address(self.place), np.uint8)
        whole[:] = 0xA5
        size = n * np.dtype(dtype).itemsize
        first = self.size - size if at_end else 0
        beside = whole[:first] if at_end else whole[size:]
        return whole[first : first + size].view(dtype), beside


PAGES = [Pages(8 * 300) for _ in range(6)]


def steps(rule, rng, seed):
    """Step a rule that was defined, with every instruction set and way: nothing outside arrays, and equal bits."""
    n = rng.choice([*range(71), 128, 129, 257, 300])
    at_end, dtype = rng.random() < 0.5, rng.choice([np.float32, np.float64])
    options = rng.choice([{}, {"weight_decay": 0.1}, {"clip_value": 0.5, "low": -1.0}])  # the loops for them
    hypers = [rng.uniform(-2, 2) for _ in rule.hypers[: -len(AROUND)]]
    hypers += [(OFF | options).get(name, 0.0) for name in AROUND]
    memory, t = tuple(rng.uniform(-2, 2) for _ in rule.memory), rng.choice([1, 2])
    expected = None
    for isa in _cpu.isas:
        for way in ("machine", "auto"):
            fs.use_isa(isa)
            fs.use_rules(way)
            made = [pages.array(n, dtype, at_end) for pages in PAGES[: 2 + len(rule.states)]]
            arrays = [each for each, _ in made]
            numbers = np.random.default_rng(seed)
            for each in arrays:
                each[:] = numbers.standard_normal(n) * numbers.choice(
                    [0, 1, np.inf, 1e-40, np.nan], n, p=[0.1, 0.6, 0.1, 0.1, 0.1]
                )
            grad = arrays[1].tobytes()
            after = _cpu.update(rule.id, tuple(arrays), pack(f"{len(hypers) + 1}d", *hypers, 1.0), t, memory)
            assert len(after) == len(memory)
            assert arrays[1].tobytes() == grad, "the gradient has changed"
            assert all((beside == 0xA5).all() for _, beside in made), "something beside an array has changed"
            found = [np.where(np.isnan(each), np.nan, each).tobytes() for each in arrays]
            expected = expected or found
            assert found == expected, (isa, way)


def main(seed, first, count):
    """Define so many wrong programs, and step those that turn out to be right."""
    outcomes = Counter()
    for i in range(first, first + count):
        print(f"program {seed}:{i}", flush=True)  # the last one is the one that went wrong
        rng = random.Random(f"{seed}:{i}")
        lists = full(rng)
        for _ in range(rng.choice([0, 1, 1, 2, 4])):
            spoil(rng, lists)
        name = (
            rng.choice(["", "x", "two words", "\0", "x" * 10_000, None, "\ud800", 3])
            if rng.random() < 0.05
            else f"misuse:{i}"
        )
        try:
            rule = _cpu.define(name, **lists)
        except REFUSED as error:
            outcomes[type(error).__name__] += 1
            continue
        outcomes["defined"] += 1
        steps(rule, rng, i)
    print(dict(outcomes))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
