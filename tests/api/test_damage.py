"""A file that is not as it was written is refused."""

import json
import os
import random
import zipfile

import numpy as np
import pytest

from fusedstep.core import archive
from tests.api.archives import DAMAGED, refusal, save, seal
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
        archive.read(path)
    with pytest.raises(ValueError, match=r"checkpoint\.\w+ has format version 3, expected 1 to 2$"):
        archive.read(path)
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
