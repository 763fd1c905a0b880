"""A checkpoint file is read as it was written or refused, and is the old one or the new one at any moment."""

import errno
import hashlib
import itertools
import json
import os
import random
import stat
import subprocess
import sys
import tempfile
import zipfile
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusedstep.core import archive

ENDINGS = [
    ".npz",
    pytest.param(".safetensors", marks=pytest.mark.skipif(not find_spec("safetensors"), reason="not installed")),
]
BFLOAT16 = import_module("ml_dtypes").bfloat16 if find_spec("ml_dtypes") else None
needs_bfloat16 = pytest.mark.skipif(not BFLOAT16, reason="not installed")
DAMAGED = "is damaged or no checkpoint, expected a file as it was saved"


@pytest.fixture(params=ENDINGS)
def path(request, tmp_path):
    return tmp_path / f"checkpoint{request.param}"


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert type(found[name]) is np.ndarray
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.c_contiguous
        assert found[name].flags.writeable
        assert found[name].flags.aligned


def save(path, k=3, n=3, dtype=np.float32):
    arrays = {"params/w": np.full(n, k, dtype), "state/w/m": np.full(n, -k, np.float64)}
    archive.write(path, arrays, {"t": k})
    return arrays


# What goes in comes out.

GRID = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
ARRAYS = {
    **{f"dtype/{code}": np.arange(5).astype(code) for code in "?bBhHiIlLqQefd"},
    "special": np.array([np.nan, -np.nan, np.inf, -0.0, 5e-324]),
    "scalar": np.array(3.5),
    "empty": np.zeros(0, np.float32),
    "nothing": np.zeros((3, 0, 2)),
    "fortran": np.asfortranarray(GRID),
    "transposed": GRID.T,
    "strided": GRID[:, ::2, 1:],
    "reversed": GRID[::-1],
    "broadcast": np.broadcast_to(np.float32(2), (3, 4)),
    "unaligned": np.arange(17, dtype=np.uint8)[1:].view(np.float64),
    "metadata": np.ones(2, np.dtype("f4", metadata={"unit": "m"})),
    "subclass": np.ones(3).view(type("Named", (np.ndarray,), {})),
}
META = {"t": 3, "lr": [1e-3, float("inf")], "rule": 'ad"am', "grüße": {"a": None, "b": True}, "tiny": 5e-324}


def test_every_kind_of_array(path):
    archive.write(path, ARRAYS, META)
    arrays, meta = archive.read(str(path))
    assert_same(arrays, ARRAYS)
    assert meta == META
    assert os.listdir(path.parent) == [path.name]


@needs_bfloat16
def test_every_kind_of_bfloat16(path):
    grid = np.arange(24).astype(BFLOAT16).reshape(2, 3, 4)
    arrays = {
        "all": np.arange(2**16, dtype=np.uint16).view(BFLOAT16),  # every payload of NaN among them
        "scalar": np.array(3.5, BFLOAT16),
        "empty": np.zeros(0, BFLOAT16),
        "nothing": np.zeros((3, 0, 2), BFLOAT16),
        "fortran": np.asfortranarray(grid),
        "strided": grid[:, ::2, 1:],
        "reversed": grid[::-1],
        "broadcast": np.broadcast_to(grid[0, 0], (3, 4)),
        "unaligned": np.arange(17, dtype=np.uint8)[1:].view(BFLOAT16),
        "metadata": np.ones(2, np.dtype(BFLOAT16, metadata={"unit": "m"})),
        "subclass": np.ones(3, BFLOAT16).view(type("Named", (np.ndarray,), {})),
        "words": np.arange(5, dtype=np.uint16),
        "large": np.tile(grid, (1, 1, 10_000)),
    }
    archive.write(path, arrays, {})
    found, _ = archive.read(path)
    assert_same(found, arrays)
    assert {array.dtype.type for name, array in found.items() if name != "words"} == {BFLOAT16}


@needs_bfloat16
def test_bfloat16_as_other_readers_see_it(path):
    expected = save(path, dtype=BFLOAT16)["params/w"]
    if path.suffix == ".npz":
        with np.load(path) as found:
            assert_same({"w": found["params/w"]}, {"w": expected.view(np.uint16)})
    else:
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert header["params/w"]["dtype"] == "BF16"
        begin, end = header["params/w"]["data_offsets"]
        assert data[len(data) - 6 - 24 :][begin:end] == expected.tobytes()


@needs_bfloat16
def test_bfloat16_where_nobody_has_imported_it(path):
    save(path, dtype=BFLOAT16)
    code = """
import sys
from fusedstep.core import archive
assert "ml_dtypes" not in sys.modules
w = archive.read(sys.argv[1])[0]["params/w"]
assert (w.dtype.name, w.tolist()) == ("bfloat16", [3] * 3)
"""
    run(code, path)


@needs_bfloat16
def test_bfloat16_where_it_is_not_installed(path, monkeypatch):
    expected, plain = save(path, dtype=BFLOAT16), path.with_stem("plain")
    save(plain)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    message = r'^ml_dtypes, which has bfloat16, is not installed: python -m pip install "fusedstep\[bf16\]"$'
    with pytest.raises(ImportError, match=message) as caught:
        archive.read(path)
    assert caught.value.name == "ml_dtypes"
    archive.read(plain)
    data = path.read_bytes()
    refusal(path, data.replace(expected["state/w/m"].tobytes(), bytes(24)))  # damage comes first
    monkeypatch.undo()
    path.write_bytes(data)
    assert_same(archive.read(path)[0], expected)


def test_no_arrays_at_all_and_a_nan(path):
    archive.write(path, {}, {"nan": float("nan")})
    arrays, meta = archive.read(path)
    assert arrays == {}
    assert np.isnan(meta["nan"])


NAMES = [
    "",
    " ",
    ".",
    "..",
    "../../etc/passwd",
    "/root",
    "C:\\x",
    "file",
    "a",
    "A",
    "a.npy",
    "a/b",
    "a//b",
    "a/",
    "checkpoint.json",
    "__metadata__",
    "seal",
    '"seal":"' + "0" * 64 + '"',
    "#0",
    "#1",
    "0",
    "1",
    "é",
    "e\u0301",
    "名前/🙂",
    "nul\0nul",
    "line\nend\n",
    "\u202e",
    "x" * 70_000,
    "y/" * 300,
]


def test_odd_names(path):
    arrays = {name: np.full(2, i, np.float32) for i, name in enumerate(NAMES)}
    archive.write(path, arrays, {name: name for name in NAMES})
    found, meta = archive.read(path)
    assert_same(found, arrays)
    assert meta == {name: name for name in NAMES}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(NAMES[:-2])
CODES = st.sampled_from(["?", "u1", "i2", "i8", "f2", "f4", "f8"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=150, deadline=None)
@given(
    arrays=st.dictionaries(
        TEXT, CODES.flatmap(lambda code: hnp.arrays(code, hnp.array_shapes(min_dims=0, min_side=0)))
    ),
    meta=st.dictionaries(TEXT, JSON, max_size=3),
    transposed=st.booleans(),
)
def test_any_names_shapes_and_meta(ending, arrays, meta, transposed):
    if transposed:
        arrays = {name: array.T[::-1] if array.ndim else array for name, array in arrays.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"x{ending}")
        archive.write(path, arrays, meta)
        found, found_meta = archive.read(path)
    assert_same(found, arrays)
    assert found_meta == meta


def test_other_readers_open_it_too(path):
    expected = save(path)
    if path.suffix == ".npz":
        with np.load(path) as found:
            assert_same({name: found[name] for name in expected}, expected)
            assert json.loads(found["checkpoint.json"])["meta"] == {"t": 3}
    else:
        from safetensors.numpy import load_file

        assert_same({name: load_file(path)[name] for name in expected}, expected)


def test_an_npz_has_the_same_bytes_each_time(tmp_path):
    save(tmp_path / "a.npz")
    save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        assert {member.date_time for member in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_seal_is_what_the_format_says(path):
    """The SHA-256 of the file in which zeros stand for the seal, so that another program can check it."""
    save(path)
    data = path.read_bytes()
    if path.suffix == ".npz":
        value = data[-64:]
    else:
        length = int.from_bytes(data[:8], "little")
        value = json.loads(data[8 : 8 + length])["__metadata__"]["seal"].encode()
    assert data.count(value) == 1
    assert hashlib.sha256(data.replace(value, b"0" * 64)).hexdigest().encode() == value


REFUSED = [
    (
        {"w": np.ones(2, ">f4")},
        "w is >f4, expected bool, int or float of up to 8 bytes, or bfloat16, in native byte order",
    ),
    ({"w": np.array([None])}, "w is object, expected bool"),
    ({"w": np.ones(2, "c8")}, "w is complex64, expected bool"),
    ({"w": np.ones(2, np.longdouble)}, "w is "),
    ({"w": np.zeros(2, "V2")}, "w is |V2, expected bool"),
    ({"w": np.zeros(2, [("x", "f4")])}, "w is [('x', '<f4')], expected bool"),
    ({"w": np.array("text")}, "w is <U4, expected bool"),
    ({"w": np.zeros(2, "M8[s]")}, "w is datetime64[s], expected bool"),
    ({"w": [1.0]}, "w is of type list, expected an array"),
    ({3: np.ones(2)}, "name is 3, expected a string"),
]


@pytest.mark.parametrize(("arrays", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_no_format_can_hold(path, arrays, message):
    expected = save(path)
    with pytest.raises(TypeError) as caught:
        archive.write(path, {"first": np.ones(2), **arrays}, {})
    assert str(caught.value).startswith(message)
    with pytest.raises(TypeError, match="JSON"):
        archive.write(path, {}, {"array": np.ones(2)})
    assert_same(archive.read(path)[0], expected)
    assert os.listdir(path.parent) == [path.name]


def test_floats_that_are_not_numpys(path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("float8_e5m2", "float8_e4m3fn", "int4"):  # npz would give them back as void
        with pytest.raises(TypeError, match=f"^w is {name}, expected bool"):
            archive.write(path, {"w": np.ones(2, getattr(ml_dtypes, name))}, {})
    forged = type("bfloat16", (np.void,), {"__module__": "ml_dtypes"})
    for dtype in (np.dtype(BFLOAT16).newbyteorder(), np.dtype((forged, 2)), np.dtype((forged, 0))):
        with pytest.raises(TypeError, match="expected bool"):
            archive.write(path, {"w": np.zeros(2, dtype)}, {})


@pytest.mark.parametrize("name", ["x", "x.npy", "x.pt", "x.npz.gz", ".npz", "x.NPZ", "npz/x"])
def test_other_endings(tmp_path, name):
    for call in (archive.read, lambda path: archive.write(path, {}, {})):
        with pytest.raises(ValueError, match=r"x.* ends in '.*', expected \.safetensors or \.npz|\.npz ends in ''"):
            call(tmp_path / name)


@pytest.mark.parametrize("module", ["safetensors", "safetensors.numpy"])
def test_safetensors_is_missing(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "x.safetensors"
    for call in (archive.read, lambda path: archive.write(path, {}, {})):
        with pytest.raises(ImportError, match=r"^safetensors is not installed: .*fusedstep\[checkpoint\].*\.npz$"):
            call(path)
    save(tmp_path / "x.npz")
    archive.read(tmp_path / "x.npz")


# What is not as it was written is refused.


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"checkpoint\.\w+ is damaged( or no checkpoint, expected|: .+ its digest$)"
    ) as caught:
        archive.read(path)
    return str(caught.value)


def test_every_flipped_byte(path):
    save(path, dtype=BFLOAT16 or np.float32)
    data = path.read_bytes()
    rng = random.Random(0)
    messages = []
    for i, byte in enumerate(data):
        for flip in (0x01, 0x20, 0x80, rng.randrange(1, 256)):
            messages.append(refusal(path, data[:i] + bytes([byte ^ flip]) + data[i + 1 :]))
    named = [message for message in messages if "state/w/m does not match its digest" in message]
    assert len(named) >= 24 * 4  # at least wherever its numbers are


def test_truncated_or_longer(path):
    save(path)
    data = path.read_bytes()
    for n in range(len(data)):
        refusal(path, data[:n])
    for tail in (b"\0", b" ", b"\n", b"0" * 64, data):
        refusal(path, data + tail)
        refusal(path, tail + data)


def test_two_bytes_swapped(path):
    save(path)
    data = path.read_bytes()
    for i in range(len(data) - 1):
        if data[i] != data[i + 1]:
            refusal(path, data[:i] + data[i + 1 : i + 2] + data[i : i + 1] + data[i + 2 :])


def test_files_that_are_no_checkpoints(path):
    rng = random.Random(0)
    others = [b"", b"\0" * 1000, b"text\n" * 100, b"[]", b"{}" * 100, rng.randbytes(5000), b"\xff" * 200, b"0" * 64]
    np.savez(path.with_name("y.npz"), w=np.ones(30))
    others.append(path.with_name("y.npz").read_bytes())
    if path.suffix == ".safetensors":
        from safetensors.numpy import save as to_bytes

        others.append(to_bytes({"w": np.ones(30)}))
        others.append(to_bytes({"w": np.ones(30)}, {"seal": "0" * 64}))
    for data in others:
        assert refusal(path, data) == f"{path} {DAMAGED}"


def seal(path):
    """Seal a file again after its bytes were changed."""
    form = archive._locate(path)[1]
    with open(path, "r+b") as file:
        start = form.find_seal(file)
        _, value = archive._seals(file, start)
        file.seek(start)
        file.write(value)


def test_another_version(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(archive, "VERSION", 3)
        save(path)
        archive.read(path)
    with pytest.raises(ValueError, match=r"checkpoint\.\w+ has format version 3, expected 1 to 2$"):
        archive.read(path)
    data = path.read_bytes()
    damaged = data.replace(b"\0\0\x40\x40", b"\0\0\x40\x41")
    assert damaged != data
    refusal(path, damaged)  # damage comes first, as the version may be the damage


def test_a_library_that_writes_something_else(path):
    """The seal fits, but the array is not the one that was given."""
    save(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(np.float64(-3).tobytes(), np.float64(-4).tobytes()))
    seal(path)
    with pytest.raises(ValueError, match=r"checkpoint\.\w+ is damaged: state/w/m does not match its digest$"):
        archive.read(path)


@needs_bfloat16
@pytest.mark.parametrize("stored", [np.ones(2, np.float16), np.ones(2, np.int16), np.ones((2, 1), np.uint16)], ids=str)
def test_what_is_stored_as_bfloat16_with_a_seal_but_is_none(path, stored):
    entry = {"name": "w", "key": "w", **archive._identity(stored), "dtype": "bfloat16", "shape": [2]}
    header = {"format": "fusedstep checkpoint", "version": 1, "meta": {}, "arrays": [entry]}
    archive._locate(path)[1].write(str(path), {"w": stored}, json.dumps(header))
    seal(path)
    with pytest.raises(ValueError, match=r"is damaged: w does not match its digest$"):
        archive.read(path)


class Trap:
    def __reduce__(self):
        return os.abort, ()


HOSTILE = [
    {"format": "fusedstep checkpoint", "version": 1, "meta": {}, "arrays": [{"name": "w", "key": "missing"}]},
    {"format": "fusedstep checkpoint", "version": 1, "meta": {}, "arrays": [{"name": [], "key": "w"}]},
    {"format": "fusedstep checkpoint", "version": 1, "meta": {}, "arrays": [3]},
    {"format": "fusedstep checkpoint", "version": 1, "meta": {}, "arrays": None},
    {"format": "fusedstep checkpoint", "version": 1, "meta": 3, "arrays": []},
    {"format": "another", "version": 1, "meta": {}, "arrays": []},
    {},
    [],
    None,
]


@pytest.mark.parametrize("i", range(len(HOSTILE)))
def test_hostile_headers_with_a_seal(path, i):
    archive._locate(path)[1].write(str(path), {"w": np.ones(3)}, json.dumps(HOSTILE[i]))
    seal(path)
    with pytest.raises(ValueError, match=r"^.*checkpoint\.\w+ is damaged"):
        archive.read(path)


def test_pickles_and_bombs_with_a_seal(tmp_path):
    path = tmp_path / "checkpoint.npz"
    entry = {"name": "w", "key": "w", "dtype": "object", "shape": [1], "sha256": ""}
    header = json.dumps({**HOSTILE[0], "arrays": [entry]})
    trap = np.array([Trap()])
    with zipfile.ZipFile(path, "w") as file:
        file.comment = b"0" * 64
        file.writestr("checkpoint.json", header)
        with file.open("w.npy", "w") as member:
            np.lib.format.write_array(member, trap, allow_pickle=True)
    seal(path)
    with pytest.raises(ValueError, match=r"is damaged: w does not match its digest$"):
        archive.read(path)

    save(path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", compression) as file:
            file.comment = b"0" * 64
            for name, data in members.items():
                file.writestr(name, data)
        seal(path)
        if compression == zipfile.ZIP_STORED:
            archive.read(path)
    with pytest.raises(ValueError, match=DAMAGED):
        archive.read(path)


def test_deeply_nested_json_with_a_seal(path):
    archive._locate(path)[1].write(str(path), {}, "[" * 100_000)
    seal(path)
    with pytest.raises(ValueError, match=DAMAGED):
        archive.read(path)


def test_too_little_memory_is_no_damage(path, monkeypatch):
    def fail(array):
        raise MemoryError

    save(path)
    monkeypatch.setattr(archive, "_identity", fail)
    with pytest.raises(MemoryError):
        archive.read(path)


# The file is the old one or the new one.


def test_paths_that_are_no_regular_files(path):
    path.mkdir()
    for call in (archive.read, save):
        with pytest.raises(ValueError, match=r"checkpoint\.\w+ is no regular file"):
            call(path)
    path.rmdir()
    os.mkfifo(path)
    for call in (archive.read, save):
        with pytest.raises(ValueError, match=r"checkpoint\.\w+ is no regular file"):
            call(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        archive.read(path)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*nowhere'$"):
        save(path.parent / "nowhere" / path.name)
    assert not os.listdir(path.parent)


def test_symbolic_links_stay(path):
    link, folder = path.with_name(f"latest{path.suffix}"), path.parent / "elsewhere"
    folder.mkdir()
    link.symlink_to(os.path.join("elsewhere", f"target{path.suffix}"))  # dangling at first
    for k in (1, 2):
        expected = save(link, k)
        assert link.is_symlink()
        assert_same(archive.read(link)[0], expected)
        assert os.listdir(folder) == [f"target{path.suffix}"]


def test_modes(path):
    old = os.umask(0o027)
    try:
        save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        for mode in (0o600, 0o444, 0o666):
            path.chmod(mode)
            save(path)
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(old)


def test_path_relative_to_the_working_directory(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    expected = save(path.name)
    assert_same(archive.read(path.name)[0], expected)


def test_the_order_of_events(path, monkeypatch):
    save(path, 1)
    events, seen, fsync, replace = [], [], os.fsync, os.replace

    def spy_fsync(descriptor):
        status = os.fstat(descriptor)
        events.append(("fsync", status.st_ino))
        if stat.S_ISREG(status.st_mode):
            seen.append(os.pread(descriptor, 1 << 20, 0))
        fsync(descriptor)

    def spy_replace(source, target):
        assert not seen or seen[-1] != path.read_bytes()
        events.append(("replace", os.stat(source).st_ino, target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    save(path, 2)
    file, folder = path.stat().st_ino, path.parent.stat().st_ino
    assert events == [("fsync", file), ("replace", file, os.path.realpath(path)), ("fsync", folder)]
    assert seen == [path.read_bytes()]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), MemoryError()], ids=repr
)
@pytest.mark.parametrize("where", ["write", "_seals", "fsync", "replace", "chmod"])
def test_a_write_that_fails(path, monkeypatch, where, error):
    owner = {"write": type(archive._locate(path)[1]), "_seals": archive}.get(where, os)
    written = getattr(owner, where)

    def fail(*args):
        if where == "write":
            written(*args)
        raise error

    for before in ([], [path.name]):
        with monkeypatch.context() as patch:
            patch.setattr(owner, where, fail)
            with pytest.raises(type(error)):
                save(path, 2)
        assert os.listdir(path.parent) == before
        if before:
            assert archive.read(path)[1] == {"t": 1}
        save(path, 1)


def run(code, *arguments):
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # the fewer threads, the better is fork defined
    result = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, env=environment)
    assert not result.returncode, result.stderr.decode()


DISK_FULL = """
import os, resource, sys
import numpy as np
from fusedstep.core import archive

path = sys.argv[1]
archive.write(path, {"w": np.ones(100)}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for n in (12_000, 12_499, 50_000):
    try:
        archive.write(path, {"w": np.zeros(n)}, {})
    except OSError as error:
        assert n > 12_000 and "File too large" in str(error), error
    else:
        assert n == 12_000
assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
assert len(archive.read(path)[0]["w"]) == 12_000
"""


def test_a_disk_that_is_full(path):
    """As good as: the system lets no file grow above 100 kB."""
    run(DISK_FULL, path)


KILL = """
import os, random, shutil, signal, sys, time
import numpy as np
from fusedstep.core import archive

path = sys.argv[1]
folder, name = os.path.split(path)
versions = [{"w": np.full((200, 100), k, np.float32), "m": np.full(15_000, -k)} for k in (0.0, 1.0)]
rng = random.Random(0)

def child():
    try:
        k = rng.randrange(2)
        while True:
            archive.write(path, versions[k], {"k": k})
            k = 1 - k
    finally:
        os._exit(1)

begin = time.perf_counter()
for k in (0, 1, 0, 1):
    archive.write(path, versions[k], {"k": k})
once = (time.perf_counter() - begin) / 4
rounds = max(20, min(300, int(8 / (2.5 * once))))  # hundreds, where the disk is not slow
seen, hits = set(), 0
for _ in range(rounds):
    rng.random()
    pid = os.fork()
    if not pid:
        child()
    time.sleep(rng.uniform(0, 5 * once))
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    arrays, meta = archive.read(path)
    assert all((arrays[key] == array).all() for key, array in versions[meta["k"]].items())
    seen.add(meta["k"])
    left = [other for other in os.listdir(folder) if other != name]
    assert all(other.startswith(f".{name}.") and other.endswith(".tmp") for other in left)
    hits += len(left)
    for other in left:
        shutil.rmtree(os.path.join(folder, other))
assert seen == {0, 1}
assert rounds / 10 < hits <= rounds, hits
"""


def test_kill_9(path):
    """Whenever a process is killed while it saves, the file is one of the two that it saves in turn."""
    run(KILL, path)


def test_a_file_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors")
    path, opened = tmp_path / "x.safetensors", safetensors.safe_open
    save(path, 1)
    calls = itertools.count()

    def late(*args, **options):
        if next(calls) == 0:
            save(path, 2)
        return opened(*args, **options)

    monkeypatch.setattr(safetensors, "safe_open", late)
    arrays, meta = archive.read(path)
    assert meta == {"t": 2}
    assert (arrays["params/w"] == 2).all()
    assert next(calls) == 2


def test_a_reader_beside_a_writer(path):
    code = f"""
import sys, numpy as np
from fusedstep.core import archive
for k in range(100):
    archive.write({str(path)!r}, {{"w": np.full(10_000, k)}}, {{"k": k}})
"""
    archive.write(path, {"w": np.zeros(10_000)}, {"k": 0})
    with subprocess.Popen([sys.executable, "-c", code]) as writer:
        while writer.poll() is None:
            arrays, meta = archive.read(path)
            assert (arrays["w"] == meta["k"]).all()
    assert writer.returncode == 0
    assert meta["k"] > 0
