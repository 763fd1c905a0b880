"""A file that is not as it was written is refused."""

import json
import os
import random
import zipfile

import numpy as np
import pytest

from fusedstep.core import archive
from tests.api.archives import DAMAGED, read, refusal, save, seal
from tests.api.formats import BFLOAT16, needs_bfloat16


def test_every_flipped_byte(path):
    save(path, dtype=BFLOAT16 or np.float32)
    data = path.read_bytes()
    rng = random.Random(0)
    messages = []
    for i, byte in enumerate(data):
        for flip in (0x01, 0x20, 0x80, rng.randrange(1, 256)):
            messages.append(refusal(path, data[:i] + bytes([byte ^ flip]) + data[i + 1 :]))
    named = [message for message in messages if "state/w/m does not match its digest" in message]
    assert len(named) >= 24 * 4  # at least for every byte of the 24 in the array


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


def test_another_version(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(archive, "VERSION", 3)
        save(path)
        read(path)
    with pytest.raises(ValueError, match=r"checkpoint\.\w+ has format version 3, expected 1 to 2$"):
        read(path)
    data = path.read_bytes()
    damaged = data.replace(b"\0\0\x40\x40", b"\0\0\x40\x41")
    assert damaged != data
    refusal(path, damaged)  # damage is reported before the version, which may be the damage


def test_a_library_that_writes_something_else(path):
    """An array that a library wrote wrongly does not match its digest, though the seal fits."""
    save(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(np.float64(-3).tobytes(), np.float64(-4).tobytes()))
    seal(path)
    with pytest.raises(ValueError, match=r"checkpoint\.\w+ is damaged: state/w/m does not match its digest$"):
        read(path)


@needs_bfloat16
@pytest.mark.parametrize("stored", [np.ones(2, np.float16), np.ones(2, np.int16), np.ones((2, 1), np.uint16)], ids=str)
def test_what_is_stored_as_bfloat16_with_a_seal_but_is_none(path, stored):
    entry = {"name": "w", "key": "w", **archive._identity(stored), "dtype": "bfloat16", "shape": [2]}
    header = {"format": "fusedstep checkpoint", "version": 1, "meta": {}, "arrays": [entry]}
    archive._locate(path)[1].write(str(path), {"w": stored}, json.dumps(header))
    seal(path)
    with pytest.raises(ValueError, match=r"is damaged: w does not match its digest$"):
        read(path)


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
        read(path)


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
        read(path)

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
            read(path)
    with pytest.raises(ValueError, match=DAMAGED):
        read(path)


def entry(name, key, array):
    return {"name": name, "key": key, **archive._identity(array)}


def test_members_that_are_not_those_of_the_header(path):
    """A header that names one array often, or a file that has further ones, would fill the memory."""
    w = np.ones(3)
    header = {"format": "fusedstep checkpoint", "version": 2, "meta": {}}
    often = [entry(f"w{i}", "w", w) for i in range(400)]
    for members, entries in (({"w": w}, often), ({"w": w, "x": w}, often[:1]), ({"w": w}, [])):
        archive._locate(path)[1].write(str(path), members, json.dumps({**header, "arrays": entries}))
        seal(path)
        with pytest.raises(ValueError, match=DAMAGED):
            read(path)


def test_members_that_lie_in_the_same_bytes(path):
    w, names = np.ones(3), ("a", "b")
    header = {"format": "fusedstep checkpoint", "version": 2, "meta": {}, "arrays": [entry(n, n, w) for n in names]}
    if path.suffix == ".npz":
        archive._locate(path)[1].write(str(path), {"a": w, "b": w}, json.dumps(header))
        with zipfile.ZipFile(path) as file:
            begin, end = (file.getinfo(f"{name}.npy").header_offset for name in names)
        data = bytearray(path.read_bytes())
        data[end : end + end - begin] = data[begin:end].replace(b"a.npy", b"b.npy")
        i = data.rindex(b"b.npy") - 46  # the entry in the directory of the zip file
        assert data[i : i + 4] == b"PK\1\2"
        data[i + 42 : i + 46] = data[data.rindex(b"a.npy") - 4 : data.rindex(b"a.npy")]
        path.write_bytes(data)
    else:
        entries = {name: {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]} for name in names}
        meta = {"checkpoint": json.dumps(header), "seal": "0" * 64}
        text = json.dumps({"__metadata__": meta, **entries}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + w.tobytes())
    seal(path)
    with pytest.raises(ValueError, match=DAMAGED):
        read(path)


def test_deeply_nested_json_with_a_seal(path):
    archive._locate(path)[1].write(str(path), {}, "[" * 100_000)
    seal(path)
    with pytest.raises(ValueError, match=DAMAGED):
        read(path)


def test_too_little_memory_is_no_damage(path, monkeypatch):
    def fail(*args):
        raise MemoryError

    save(path)
    monkeypatch.setattr(archive, "_is_as_written", fail)
    with pytest.raises(MemoryError):
        read(path)
