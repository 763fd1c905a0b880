"""Objects as arguments: arrays of other libraries, subclasses, and whatever calls back or changes while it is read."""

import array
import collections
import contextlib

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import functional
from tests.api.arrays import F32, ones


class Strange:
    """Raises wherever it is touched."""

    def __getattribute__(self, name):
        raise OverflowError(name)

    def __repr__(self):
        raise OverflowError

    def __hash__(self):
        return 1

    def __eq__(self, other):
        raise OverflowError


class Liar(np.ndarray):
    @property
    def __class__(self):
        raise OverflowError

    @property
    def shape(self):
        return (10**9,)

    @property
    def dtype(self):
        return np.dtype(np.float64)


class BadDLPack:
    def __init__(self, device, capsule=None):
        self.device, self.capsule = device, capsule

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        return self.capsule


class Shrinking(collections.abc.Sequence):
    def __len__(self):
        return 5

    def __getitem__(self, i):
        if i > 2:
            raise IndexError
        return ones()


STRANGE = [
    Strange(),
    Strange,
    Liar(4),
    BadDLPack((1, 0)),
    BadDLPack((1, 0), object()),
    BadDLPack(None),
    BadDLPack("ab"),
    BadDLPack((1,)),
    BadDLPack((2**80, 0)),
    Shrinking(),
    type,
    object(),
    np.ndarray,
    np.generic,
    ...,
    {1, 2},
    range(3),
    {"a": Strange()},
    {Strange(): ones()},
    [Strange()],
    [[ones()]],
    collections.ChainMap(),
    array.array("f", [1.0]),
    memoryview(b"12345678"),
    np.array("text"),
    np.array([None, ones()], dtype=object),
    np.zeros((), "M8[s]"),
]


@pytest.mark.parametrize("i", range(len(STRANGE)))
def test_no_object_crashes_the_interpreter(i):
    """Whatever is passed, the outcome is an exception or, for what is merely unusual, a step."""
    thing = STRANGE[i]
    for call in (
        lambda: fs.Adam().step(thing, thing),
        lambda: fs.Adam().step(thing, ones()),
        lambda: fs.Adam().step(ones(), thing),
        lambda: fs.Adam().step({"a": ones()}, thing),
        lambda: fs.Adam().step([thing], [thing]),
        lambda: fs.Adam().step({"a": ones()}, {"a": thing}),
        lambda: functional.sgd(thing, thing, lr=0.1),
        lambda: functional.sgd(ones(), thing, lr=0.1),
        lambda: functional.sgd([thing], [thing], lr=0.1),
        lambda: functional.sgd(ones(), ones(), lr=thing),
        lambda: functional.adam(ones(), ones(), ones(), thing, t=1, lr=0.1),
        lambda: functional.adam(ones(), ones(), ones(), ones(), t=thing, lr=0.1),
        lambda: functional.nadam(ones(), ones(), ones(), ones(), t=1, product=thing, lr=0.1),
        lambda: fs.SGD(lr=thing),
        lambda: fs.SGD(overrides=thing),
        lambda: fs.SGD(overrides={"a": thing}),
        lambda: fs.use_isa(thing),
        lambda: fs.set_num_threads(thing),
    ):
        with contextlib.suppress(TypeError, ValueError, BufferError, RuntimeError, OverflowError):
            call()


def test_containers_that_change_while_they_are_read():
    params = {"a": ones(), "b": ones()}

    class Popping(collections.abc.Mapping):
        def __init__(self, inner):
            self.inner = inner

        def __len__(self):
            return len(self.inner)

        def __iter__(self):
            return iter(self.inner)

        def __getitem__(self, key):
            params.pop("b", None)
            params.update({f"x{i}": ones() for i in range(100)})
            return ones()

    optimizer = fs.Adam()
    with pytest.raises(RuntimeError, match=r"^params .*changed while they were looked at"):
        optimizer.step(params, Popping({"a": 0, "b": 0}))
    assert all((p == 1).all() for p in params.values())
    assert not optimizer.state


def test_reentry_from_a_foreign_array_is_refused():
    optimizer = fs.Adam()
    p = ones()
    optimizer.step([p], [ones()])
    seen = []

    class Reentrant:
        def __dlpack_device__(self):
            try:
                optimizer.step([p], [ones()])
            except RuntimeError as error:
                seen.append(str(error))
            return (1, 0)

        def __dlpack__(self, **options):
            return ones().__dlpack__(**options)

    optimizer.step([p], [Reentrant()])
    assert seen == ["this optimizer is already in a step, expected one step at a time"]
    assert optimizer.t[0] == 2


def test_keys_whose_comparison_changes_the_mapping():
    grads = {}

    class Key:
        def __hash__(self):
            return hash("w")

        def __eq__(self, other):
            grads.clear()
            return False

    grads.update({"v": ones(), Key(): ones()})
    p = ones()
    fs.SGD().step({"w": p}, grads)  # the gradient is gone by the time it is looked up
    assert (p == 1).all()
    grads.update({Key(): ones(), "u": ones()})
    with pytest.raises(ValueError, match=r"^grads\[.*\] belongs to no parameter"):
        fs.SGD().step({0: p}, grads)


def test_a_schedule_that_steps_its_own_optimizer_is_refused():
    p = ones()
    optimizer = fs.SGD(lr=lambda done: optimizer.step(p, ones()))
    with pytest.raises(RuntimeError, match="already in a step"):
        optimizer.step(p, ones())
    assert (p == 1).all()
    assert not optimizer.t


class Foreign:
    """An array of another library, on the CPU."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


def test_arrays_of_other_libraries_are_updated_in_place():
    p, g = ones(), ones()
    optimizer = fs.SGD(lr=1.0)
    optimizer.step(Foreign(p), Foreign(g))
    optimizer.step({"w": Foreign(p)}, {"w": g})
    assert (p == -1).all()
    functional.sgd(Foreign(p), g, lr=1.0)
    assert (p == -2).all()


def test_a_foreign_array_that_does_not_export():
    class Refusing(Foreign):
        def __dlpack__(self, **options):
            raise BufferError("requires grad")

    with pytest.raises(
        BufferError, match=r"^param is of type .*Refusing and does not export its memory; .*detach"
    ) as caught:
        fs.SGD().step(Refusing(ones()), ones())
    assert "requires grad" in str(caught.value.__cause__)


def test_subclasses_of_ndarray_and_memory_maps(tmp_path):
    class Named(np.ndarray):
        pass

    p = ones().view(Named)
    fs.SGD(lr=1.0).step(p, ones())
    assert (p == 0).all()
    mapped = np.memmap(tmp_path / "p", F32, "w+", shape=(8,))
    fs.SGD(lr=1.0).step(mapped, ones())
    assert (mapped == -1).all()
    with pytest.raises(ValueError, match="read-only"):
        fs.SGD().step(np.memmap(tmp_path / "p", F32, "r"), ones())
