"""Memory that ranks of one machine have in common: ranks that are threads, and ranks of MPI."""

import os
import shutil
import signal
import subprocess
import sys
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import distributed
from fusedstep.distributed import Alone, gathered, like, on_threads, shared, threads
from fusedstep.distributed.windows import Place, array_at, place_of
from tests.distributed import window_ranks

ROOT = Path(__file__).parents[2]
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
MODULE = sys.modules["fusedstep.distributed.windows"]


def worlds(size):
    """Return a function that calls another one on each rank: of threads, or of the world of one rank."""
    return (lambda function: on_threads(size, function)) if size else (lambda function: [function(Alone())])


# Memory.


@pytest.mark.parametrize("size", range(5))
@pytest.mark.parametrize("name", ["sizes", "pass_on", "one_way", "wrong_number"])
def test_memory_of_threads(size, name):
    if not size and name == "wrong_number":
        with pytest.raises(ValueError, match=r"^nbytes is -1, expected 0 or more$"):
            Alone().window(-1)
        return
    worlds(size)(getattr(window_ranks, name))


def test_a_rank_that_has_left_is_not_waited_for():
    def leave(world):
        if world.rank == 1:
            raise KeyError("gone")
        world.window(10)

    with pytest.raises(KeyError, match="gone"):
        on_threads(3, leave)


def test_memory_outlives_the_world():
    def own(world):
        return world.window(1000)

    first, second = on_threads(2, own)
    first[0][...] = 5
    assert (second[0] == 5).all()


def test_a_program_by_itself_has_memory_too(monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    distributed.windows.cache_clear()
    world = distributed.windows()
    assert (world.rank, world.size) == (0, 1)
    assert world is distributed.windows()
    assert [room.nbytes for room in world.window(10)] == [10]


# Parameters and gradients.

Layer = namedtuple("Layer", "weight bias")


@dataclass(frozen=True)
class Model:
    scale: Any
    layers: Any


class Names(Mapping):
    """A mapping of somebody else's."""

    def __init__(self, items):
        self._items = dict(items)

    def __getitem__(self, key):
        return self._items[key]

    def __iter__(self):
        return iter(self._items)

    def __len__(self):
        return len(self._items)

    def __eq__(self, other):
        return type(other) is Names and self._items == other._items

    __hash__ = None


def filled(rank):
    """Return two arrays, others on each rank and equal ones at each call."""
    return np.arange(6.0).reshape(2, 3) + 100 * rank, np.full(5, rank, np.float32)


KINDS = {
    "array": lambda a, b: a,
    "dict": lambda a, b: {"b": a, "a": None, 3: b},
    "list": lambda a, b: [a, b, None],
    "tuple": lambda a, b: (a, [b]),
    "named tuple": lambda a, b: Layer(a, {"b": b}),
    "dataclass": lambda a, b: Model(a, [Layer(b, None)]),
    "ordered": lambda a, b: OrderedDict(z=a, y=OrderedDict(x=b)),
    "default": lambda a, b: defaultdict(list, z=a, y=b),
    "proxy": lambda a, b: MappingProxyType({"z": a, "y": b}),
    "mapping": lambda a, b: Names({"z": a, "y": b}),
    "views": lambda a, b: [{"z": a, "y": b}.values()],
    "empty": lambda a, b: [{}, (), a],
}


def same(some, other):
    """Return whether containers are of the same kinds, and their arrays have the same bytes."""
    if isinstance(other, np.ndarray):
        return type(some) is np.ndarray and (some.dtype, some.shape, some.tobytes()) == (
            other.dtype,
            other.shape,
            other.tobytes(),
        )
    if type(some) is not (list if isinstance(other, type({}.values())) else type(other)):
        return False
    if isinstance(other, Model):
        return same([some.scale, some.layers], [other.scale, other.layers])
    if isinstance(other, Mapping):
        return list(some) == list(other) and all(same(some[key], other[key]) for key in other)
    if other is None:
        return some is None
    return len(some) == len(other) and all(same(a, b) for a, b in zip(some, other, strict=True))


@pytest.mark.parametrize("size", [0, 1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_containers_come_back_as_they_are(size, kind):
    def make(world):
        params = KINDS[kind](*filled(world.rank))
        common, zeros = shared(params, world), like(params, world)
        arrays = fs._cpu.leaves(params)[1], fs._cpu.leaves(KINDS[kind](*filled(world.rank)))[1]
        assert same(*arrays)  # what was given stays as it is
        return common, zeros

    for common, zeros in worlds(size)(make):
        assert same(common, KINDS[kind](*filled(0)))
        assert same(zeros, KINDS[kind](*(np.zeros_like(array) for array in filled(0))))


def test_a_default_dictionary_keeps_its_default():
    assert shared(KINDS["default"](*filled(0)), Alone())["new"] == []


def test_bound_objects_become_mappings():
    class Linear:
        w, dw = np.ones(3), None

    found = shared(fs.bind([Linear(), Linear()], "w", "dw"), Alone())
    assert {key: {name: array.tolist() for name, array in some.items()} for key, some in found.items()} == {
        0: {"w": [1, 1, 1]},
        1: {"w": [1, 1, 1]},
    }


DTYPES = ("float32", "float64", "float16", ml_dtypes.bfloat16, "complex64", "complex128", "int8", ">f4", "bool")
SHAPES = ((), (0,), (3, 0, 2), (1,), (7,), (5, 3), (2, 3, 4), (1, 5), (5, 1), (2, 1, 4))
ORDERS = {
    "rows": lambda a: a,
    "columns": lambda a: np.asfortranarray(a),
    "mixed": lambda a: np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0) if a.ndim else a,
    "gaps": lambda a: np.repeat(a, 2, axis=0)[::2] if a.ndim else a,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: getattr(dtype, "__name__", dtype))
@pytest.mark.parametrize("order", ORDERS)
def test_dtypes_shapes_and_orders(dtype, order):
    def made(rank):
        random = np.random.default_rng(rank)
        raw = [random.integers(0, 2, (*shape, np.dtype(dtype).itemsize), np.uint8) for shape in SHAPES]
        return [ORDERS[order](array.view(dtype)[..., 0]) for array in raw]

    def make(world):
        common, zeros = shared(made(world.rank), world), like(made(world.rank), world)
        places = [place_of(array, world) for array in common]
        gathered(world, b"")
        return common, zeros, places

    results = on_threads(2, make)
    for common, zeros, places in results:
        assert places == results[0][2]
        for array, zero, place, wanted in zip(common, zeros, places, made(0), strict=True):
            assert array.dtype == zero.dtype == wanted.dtype
            assert array.shape == zero.shape == wanted.shape
            assert array.tobytes() == wanted.tobytes()
            assert not zero.any()
            packed, axes = np.empty_like(wanted), [axis for axis, length in enumerate(wanted.shape) if length > 1]
            for laid in (array, zero):
                assert laid.flags.writeable
                if laid.size:
                    assert laid.ctypes.data % 64 == 0
                    assert [laid.strides[axis] for axis in axes] == [packed.strides[axis] for axis in axes]
            assert (place is None) == (wanted.size == 0)
            if place:
                assert place[:2] == (0, 0)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shared_is_one_memory_and_like_is_memory_of_each(size):
    def make(world):
        params = {"w": np.zeros((3, 4), np.float32), "b": np.zeros(5)}
        common, grads = shared(params, world), like(params, world)
        common["b"][world.rank] = world.rank + 1
        grads["w"][...] = world.rank + 1
        gathered(world, b"")
        assert common["b"].tolist() == [*range(1, size + 1), *[0] * (5 - size)]
        assert (grads["w"] == world.rank + 1).all()
        views = [grads["w"], grads["w"].T[1:, ::2], grads["w"][::-1], grads["b"][2:3]]
        told = [(place_of(view, world), view.dtype, view.shape, view.strides) for view in views]
        assert [place[0].rank for place in told] == [world.rank] * 4
        assert place_of(common["b"], world).rank == 0
        for rank in range(size):
            for view, (place, *form) in zip(views, told, strict=True):
                other = array_at(world, place._replace(rank=rank), *form)
                assert (other.shape, other.strides, other.dtype) == (view.shape, view.strides, view.dtype)
                assert (other == (rank + 1 if view is not views[3] else 0)).all()
            own = array_at(world, told[0][0]._replace(rank=rank), *told[0][1:3])
            assert np.shares_memory(own, views[0]) == (rank == world.rank)
        gathered(world, b"")

    on_threads(size, make)


def test_steps_on_shared_parameters_have_the_bits_of_ordinary_ones():
    def train(params, grads):
        opt = fs.AdamW(lr=0.1)
        for step in range(3):
            for key, grad in grads.items():
                np.multiply(params[key], np.float32(step + 0.5), out=grad)
            opt.step(params, grads)
        return {key: array.tobytes() for key, array in params.items()}

    params = {"w": np.linspace(-1, 1, 3000, dtype=np.float32).reshape(50, 60), "b": np.ones(7, np.float32)}
    world = Alone()
    common = shared(params, world)
    assert train(common, like(params, world)) == train(params, {key: np.empty_like(p) for key, p in params.items()})


# What is refused.


def refusals(size, function):
    """Return the error of each rank."""

    def call(world):
        with pytest.raises((TypeError, ValueError, RuntimeError, MemoryError)) as caught:
            function(world)
        assert world.windows == []
        assert shared(np.ones(2), world).tolist() == [1, 1]  # ranks are still of one mind
        return caught.value

    return on_threads(size, call)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"w": np.zeros((2, 3))}, "keys of params ['w'], and rank 0 ['w', 'b']"),
        ({"b": np.zeros(2), "w": np.zeros((2, 3))}, "keys of params ['b', 'w'], and rank 0 ['w', 'b']"),
        (
            {"w": np.zeros((3, 2)), "b": np.zeros(2)},
            "params['w'] float64 of shape (3, 2), and rank 0 float64 of shape (2,",
        ),
        (
            {"w": np.zeros((2, 3)), "b": np.zeros(2, "f4")},
            "params['b'] float32 of shape (2,), and rank 0 float64 of shape",
        ),
        ({"w": np.zeros((2, 3)), "b": None}, "params['b'] None, and rank 0 float64 of shape (2,)"),
        (
            {"w": np.zeros((2, 3), order="F"), "b": np.zeros(2)},
            "params['w'] float64 of shape (2, 3), axes from slow to fast [1, 0], and rank 0 float64 of shape (2, 3):",
        ),
    ],
    ids=["keys", "order of keys", "shape", "dtype", "None", "order"],
)
@pytest.mark.parametrize("odd", [1, 2])
def test_other_parameters_on_a_rank_are_refused(other, words, odd):
    params = {"w": np.zeros((2, 3)), "b": np.zeros(2)}
    for error in refusals(3, lambda world: shared(other if world.rank == odd else params, world)):
        assert type(error) is ValueError
        assert f"rank {odd} has {words}" in str(error)


def test_axes_of_length_1_may_lie_anywhere():
    apart = np.lib.stride_tricks.as_strided(np.zeros(8), (1, 4, 1, 2), (8, 8, 999, 32))
    near = np.zeros((1, 2, 1, 4)).transpose(0, 3, 2, 1)
    assert on_threads(2, lambda world: shared([near, apart][world.rank], world).tolist()) == [near.tolist()] * 2


@pytest.mark.parametrize("function", [shared, like])
@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        ([np.zeros(2, object)], TypeError, "params[0] has dtype object, expected numbers"),
        ([3.5], TypeError, "params[0]"),
        (iter([]), TypeError, "params is of type list_iterator, which can be read only once"),
    ],
    ids=["objects", "number", "iterator"],
)
def test_an_error_on_one_rank_is_told_to_all(function, wrong, kind, words):
    errors = refusals(3, lambda world: function(wrong if world.rank == 1 else [np.zeros(2)], world))
    assert type(errors[1]) is kind
    assert str(errors[1]).startswith(words)
    for error in (errors[0], errors[2]):
        assert type(error) is RuntimeError
        assert f"rank 1 has raised {kind.__name__}: {words}" in str(error)
        assert str(error).endswith("no rank has got memory")


def test_arrays_on_a_gpu_are_refused():
    class OnGPU:
        __cuda_array_interface__ = None
        dtype, shape, ndim, size = np.dtype("f4"), (1,), 1, 1

    with pytest.raises(TypeError, match=r"^params\['w'\] is on a GPU, expected host memory"):
        MODULE._check("w", OnGPU())


def test_too_little_memory_on_a_rank_of_threads(monkeypatch):
    errors = refusals(2, lambda world: world.window(1 << 60 if world.rank == 0 else 5))
    assert isinstance(errors[0], MemoryError)
    assert str(errors[1]).startswith("rank 0 has raised ")


@pytest.mark.parametrize("function", [shared, like])
def test_worlds_without_common_memory_are_refused(function):
    class Elsewhere:
        rank, size, timeout = 0, 1, 1.0

    with pytest.raises(TypeError, match=r"^world is Elsewhere, whose ranks have no memory in common, expected distrib"):
        function([np.zeros(1)], Elsewhere())


def test_places():
    world = Alone()
    (first,), (second,) = world.window(1000), world.window(128)
    assert place_of(first[3:], world) == Place(0, 0, 3)
    assert place_of(second.view(np.float64)[::-4], world) == Place(0, 1, 120)
    assert place_of(second[:0], world) is None
    assert place_of(np.zeros(3), world) is None
    assert place_of(np.zeros(3), threads(1)[0]) is None
    line = np.zeros(3000, np.uint8)
    world.windows[0][0] = line[1000:2000]  # memory with something of somebody else's before and after it
    for begin, end, is_in in ((999, 1001, False), (1000, 2000, True), (1999, 2001, False), (2000, 2001, False)):
        assert (place_of(line[begin:end], world) is not None) == is_in
    assert place_of(line[2100:900:-50], world) is None


@pytest.mark.parametrize(
    ("place", "dtype", "shape", "strides"),
    [
        ((0, 0, 97), "f4", (1,), None),
        ((0, 0, 0), "f4", (26,), None),
        ((0, 0, 0), "f4", (13, 2), (4, 64)),
        ((0, 0, 8), "f4", (4,), (-4,)),
        ((0, 0, -4), "f4", (1,), None),
        ((1, 0, 0), "f4", (1,), None),
        ((-1, 0, 0), "f4", (1,), None),
        ((0, 1, 0), "f4", (1,), None),
        ((0, -1, 0), "f4", (1,), None),
        ((0, 0, 1 << 40), "f4", (1,), None),
    ],
)
def test_places_outside_of_memory_are_refused(place, dtype, shape, strides):
    world = Alone()
    world.window(100)
    with pytest.raises(ValueError, match=r"^place is Place\(rank="):
        array_at(world, Place(*place), dtype, shape, strides)


def test_places_of_objects_are_refused():
    world = Alone()
    world.window(100)
    with pytest.raises(TypeError, match=r"^dtype is object, expected numbers$"):
        array_at(world, Place(0, 0, 0), object, (1,))


# Room for shared memory.


@pytest.mark.parametrize(
    ("free", "total", "wanted", "fits"),
    [(1600, 1600, 1500, True), (1600, 1600, 1501, False), (0, 1600, 1, False), (0, 0, 1 << 50, True)],
)
def test_room_is_looked_at(monkeypatch, free, total, wanted, fits):
    asked = []

    def look(folder):
        asked.append(folder)
        return type("", (), {"f_bavail": free // 16, "f_frsize": 16, "f_blocks": total // 16})

    monkeypatch.setattr(os, "statvfs", look)
    monkeypatch.delenv("OMPI_MCA_osc_sm_backing_directory", raising=False)
    if fits:
        MODULE._check_room(wanted)
    else:
        text = rf"^nbytes of all ranks are {wanted:,} and /dev/shm has {free:,} bytes left, expected more: docker run "
        with pytest.raises(MemoryError, match=text):
            MODULE._check_room(wanted)
    monkeypatch.setenv("OMPI_MCA_osc_sm_backing_directory", "/elsewhere")
    MODULE._check_room(0)
    assert asked == ["/dev/shm", "/elsewhere"]


def test_systems_where_shared_memory_is_no_file(monkeypatch):
    monkeypatch.setenv("OMPI_MCA_osc_sm_backing_directory", "/not/there")
    MODULE._check_room(1 << 60)
    monkeypatch.delattr(os, "statvfs")
    MODULE._check_room(1 << 60)


SHORT = """
import mmap, sys, tempfile
import numpy as np
from fusedstep.distributed.windows import _make_present

with tempfile.TemporaryFile() as file:
    file.truncate(1 << 20)
    own = np.frombuffer(mmap.mmap(file.fileno(), 1 << 20), np.uint8)[5000:-3000]
    own[...] = 1
    _make_present(own[:0])
    _make_present(own)
    assert not own.any()
    file.truncate(1 << 19)  # a write to what is behind it would end the process by SIGBUS
    _make_present(own[: 1 << 18])
    try:
        _make_present(own)
    except MemoryError as error:
        assert "shared memory has come to its end, expected more: docker run --shm-size=2g" in str(error)
        print("refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_pages_that_are_not_there_are_an_error_and_no_signal():
    end = subprocess.run([sys.executable, "-c", SHORT], capture_output=True, text=True, timeout=60)
    if end.returncode == -signal.SIGBUS and tuple(map(int, os.uname().release.split(".")[:2])) < (5, 14):
        pytest.skip("this kernel cannot be asked")
    assert (end.returncode, end.stdout) == (0, "refused\n"), end.stderr


# Ranks of MPI.

needs_mpi = pytest.mark.skipif(not find_spec("mpi4py") or not MPIEXEC, reason="needs mpi4py and an mpiexec")
PRIVATE = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && "$@"; code=$?; ls -As /dev/shm | sed "s/^/left /"; exit $code'


def environment(**more):
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    root |= {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "FUSEDSTEP_NUM_THREADS": "1"}
    return os.environ | root | {"PYTHONPATH": paths} | more


def run(command, **more):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment(**more))


def ranks(size, *names):
    return [MPIEXEC, "-n", str(size), sys.executable, "-m", "mpi4py", "-m", "tests.distributed.window_ranks", *names]


@pytest.fixture
def private():
    """Return what a command begins with that has 64 MB of shared memory of its own, and tells what it leaves there."""
    start = ["unshare", "--map-root-user", "--mount", "sh", "-c", PRIVATE, "sh"]
    if not shutil.which("unshare") or subprocess.run([*start, "true"], capture_output=True).returncode:
        pytest.skip("needs a mount of its own")
    return start


@needs_mpi
@pytest.mark.parametrize("size", [1, 2, 4])
def test_memory_of_ranks(size):
    end = run(ranks(size, "sizes", "pass_on", "one_way", "wrong_number"))
    # Lines of several ranks may be mixed up.
    assert (end.returncode, [end.stdout.count(f"rank {rank} of {size} is done") for rank in range(size)]) == (
        0,
        [1] * size,
    ), end.stderr


@needs_mpi
def test_too_little_shared_memory_is_told_to_all_ranks(private):
    end = run([*private, *ranks(2, "too_much", "too_late")])
    assert (end.returncode, end.stdout.count("is done")) == (0, 2), end.stderr
    assert "left mpich_sh" not in end.stdout


@needs_mpi
@pytest.mark.parametrize("names", [("sizes",), ("killed",)], ids=lambda names: names[0])
def test_no_memory_is_left(private, names):
    end = run([*private, *ranks(2, *names)])
    assert bool(end.returncode) == (names == ("killed",)), end.stderr
    left = [line.split() for line in end.stdout.splitlines() if line.startswith("left ")]
    assert (
        sum(int(line[1]) for line in left if line[1] != "total") < 10_000
    )  # KB; a killed MPICH leaves 2 MB of messages
    if names != ("killed",):
        assert left == [["left", "total", "0"]]


@needs_mpi
def test_the_command_that_starts_ranks_leaves_nothing_of_a_killed_job(private):
    command = [
        sys.executable,
        "-m",
        "fusedstep",
        "run",
        "--ranks",
        "2",
        "-m",
        "tests.distributed.window_ranks",
        "killed",
    ]
    end = run([*private, *command])
    assert end.returncode, end.stdout
    assert "left total 0\n" in end.stdout, end.stdout + end.stderr


@needs_mpi
def test_ranks_without_common_memory_are_refused():
    end = run(ranks(4, "refused"), MPIR_CVAR_NUM_CLIQUES="2")
    assert end.returncode == 0, end.stderr
