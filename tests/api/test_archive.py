"""What goes into a checkpoint file comes out of it, and what no format can hold is refused."""

import hashlib
import json
import os
import sys
import tempfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusedstep.core import archive
from tests.api.archives import ARRAYS, META, assert_same, read, refusal, run, save
from tests.api.formats import BFLOAT16, ENDINGS, needs_bfloat16


def test_every_kind_of_array(path):
    archive.write(path, ARRAYS, META)
    arrays, meta = read(str(path))
    assert_same(arrays, ARRAYS)
    assert meta == META
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_every_kind_of_complex_number(path, dtype):
    grid = (np.arange(24) * (1 - 2j) + np.nan * 1j).astype(dtype).reshape(2, 3, 4)
    arrays = {
        "scalar": np.array(3.5 - 2j, dtype),
        "empty": np.zeros(0, dtype),
        "nothing": np.zeros((3, 0, 2), dtype),
        "fortran": np.asfortranarray(grid),
        "strided": grid[:, ::2, 1:],
        "conjugate": grid.conj(),
        "unaligned": np.arange(33, dtype=np.uint8)[1:].view(dtype),
        "pairs": np.ones((4, 2), dtype(0).real.dtype),
    }
    archive.write(path, arrays, {})
    assert_same(read(path)[0], arrays)


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
    found, _ = read(path)
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
from tests.api.archives import read
assert "ml_dtypes" not in sys.modules
w = read(sys.argv[1])[0]["params/w"]
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
        read(path)
    assert caught.value.name == "ml_dtypes"
    read(plain)
    data = path.read_bytes()
    refusal(path, data.replace(expected["state/w/m"].tobytes(), bytes(24)))  # damage is reported first
    monkeypatch.undo()
    path.write_bytes(data)
    assert_same(read(path)[0], expected)


def test_no_arrays_at_all_and_a_nan(path):
    archive.write(path, {}, {"nan": float("nan")})
    arrays, meta = read(path)
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
    found, meta = read(path)
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
        found, found_meta = read(path)
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
    """The seal is the SHA-256 of the file with zeros in its place, so that other programs can check files."""
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
        "w is >f4, expected bool, int or float of up to 8 bytes, complex of two of them, or bfloat16, in native",
    ),
    ({"w": np.array([None])}, "w is object, expected bool"),
    (
        {"w": np.ones(2, np.clongdouble)},
        "w is complex256, expected bool",
    ),
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
    assert_same(read(path)[0], expected)
    assert os.listdir(path.parent) == [path.name]


def test_floats_that_are_not_numpys(path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("float8_e5m2", "float8_e4m3fn", "int4"):  # npz would give these dtypes back as void
        with pytest.raises(TypeError, match=f"^w is {name}, expected bool"):
            archive.write(path, {"w": np.ones(2, getattr(ml_dtypes, name))}, {})
    forged = type("bfloat16", (np.void,), {"__module__": "ml_dtypes"})
    for dtype in (np.dtype(BFLOAT16).newbyteorder(), np.dtype((forged, 2)), np.dtype((forged, 0))):
        with pytest.raises(TypeError, match="expected bool"):
            archive.write(path, {"w": np.zeros(2, dtype)}, {})


@pytest.mark.parametrize("name", ["x", "x.npy", "x.pt", "x.npz.gz", ".npz", "x.NPZ", "npz/x"])
def test_other_endings(tmp_path, name):
    for call in (read, lambda path: archive.write(path, {}, {})):
        with pytest.raises(ValueError, match=r"x.* ends in '.*', expected \.safetensors or \.npz|\.npz ends in ''"):
            call(tmp_path / name)


@pytest.mark.parametrize("module", ["safetensors", "safetensors.numpy"])
def test_safetensors_is_missing(tmp_path, monkeypatch, module):
    pytest.importorskip(module)
    path = tmp_path / "x.safetensors"
    expected = save(path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"^safetensors is not installed: .*fusedstep\[checkpoint\].*\.npz$"):
        archive.write(path, {}, {})
    assert_same(read(path)[0], expected)  # reading needs no package
    save(tmp_path / "x.npz")
    read(tmp_path / "x.npz")
