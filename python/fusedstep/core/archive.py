"""
Arrays and a dictionary in one file: written whole or not at all, and read as they were written or refused.

The seal, a SHA-256 of all other bytes, finds damage to a file. A digest of each array, taken before a library writes
it, finds errors of the library, and tells which array is damaged. A file is checked before any of its arrays is read,
and each array is then read straight to where it will stay.
"""

import errno
import hashlib
import json
import math
import operator
import os
import re
import shutil
import stat
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .arrays import Array, Stored, is_bfloat16

__all__ = ["opened", "write"]

FORMAT, VERSION = "fusedstep checkpoint", 2
_BLANK = b"0" * 64  # stands in place of the seal while the seal is computed
_PLAIN = re.compile(r"(?!__metadata__$)\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # names of arrays that every format can have

# What safetensors calls the dtypes of NumPy.
_CODES = {"BOOL": "bool", "F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}
_CODES |= {f"{code}{bits}": f"{name}{bits}" for code, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)}
_PARTS = {"complex64": "float32", "complex128": "float64"}  # of complex numbers, which not every safetensors has

# What systems say that cannot flush a folder, or do not let this user.
_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}


class _NamedError(Exception):
    """An error whose message names the damaged part, so that nobody wraps it."""


class _Member(NamedTuple):
    """An array in a file: the bytes from `begin` to before `end`, in C order."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _Npz:
    """A zip file that np.load reads too. The seal is its comment, so it stands at the end."""

    def write(self, path: str, members: Mapping[str, np.ndarray], header: str) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.comment = _BLANK
            archive.writestr(
                zipfile.ZipInfo("checkpoint.json"), header
            )  # a ZipInfo has no time: files are reproducible
            for key, array in members.items():
                with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
                    if is_bfloat16(array.dtype):  # NumPy would read bfloat16 as bytes without a type
                        array = array.view(np.uint16)
                    np.lib.format.write_array(member, array, allow_pickle=False)

    def find_seal(self, file: BinaryIO) -> int:
        return file.seek(0, os.SEEK_END) - len(_BLANK)

    def read(self, file: BinaryIO) -> tuple[str | bytes, dict[str, _Member]]:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                raise ValueError("compressed, which may be a bomb")
            header = archive.read("checkpoint.json")
        members = {}
        for info in infos:
            if info.filename != "checkpoint.json":
                file.seek(info.header_offset)
                begin = file.tell() + 30 + sum(struct.unpack("<26x2H", file.read(30)))  # lengths of a name and extras
                file.seek(begin)
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError("another version of the format npy")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                key = info.filename.removesuffix(".npy")
                members[key] = _Member(dtype.name, shape, file.tell(), begin + info.file_size)
        if len(members) != len(infos) - 1:
            raise ValueError("two members of one name")
        return header, members

    def in_file(self, dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        return "uint16" if dtype == "bfloat16" else dtype, shape


class _Safetensors:
    """A file of the safetensors library. The seal is an entry of its metadata, so it stands near the beginning."""

    def write(self, path: str, members: Mapping[str, np.ndarray], header: str) -> None:
        try:
            package, save = import_module("safetensors"), import_module("safetensors.numpy").save_file
        except ImportError as error:
            message = 'safetensors is not installed: python -m pip install "fusedstep[checkpoint]", or use .npz'
            raise ImportError(message, name="safetensors") from error
        try:
            seen = {
                key: array.reshape(*array.shape, 1).view(array.real.dtype) if array.dtype.kind == "c" else array
                for key, array in members.items()
            }
            save(seen, path, {"checkpoint": header, "seal": _BLANK.decode()})
        except package.SafetensorError as error:
            raise OSError(str(error)) from error

    def find_seal(self, file: BinaryIO) -> int:
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        # Quotes inside of strings are escaped, so nothing but the seal looks like this. safetensors refuses headers of
        # more than 100,000,000 bytes.
        found = re.search(rb'"seal"\s*:\s*"([0-9a-f]{64})"', file.read(min(length, 100_000_000)))
        return 8 + found.start(1) if found else -1

    def read(self, file: BinaryIO) -> tuple[str | bytes, dict[str, _Member]]:
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, 100_000_000)))
        meta = header.pop("__metadata__")
        members = {}
        for key, entry in header.items():
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            members[key] = _Member(_CODES[entry["dtype"]], tuple(entry["shape"]), begin, end)
        return meta["checkpoint"], members

    def in_file(self, dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        return (_PARTS[dtype], (*shape, 2)) if dtype in _PARTS else (dtype, shape)


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], meta: dict[str, Any]) -> None:
    """
    Write `arrays` and `meta` to a file that is afterwards the old one or the new one, whatever happens in between.

    Parameters
    ----------
    path : str or os.PathLike
        The ending chooses the format, .safetensors or .npz. An existing file is replaced and its permissions are
        kept; a symbolic link stays one.
    arrays : mapping of str to ndarray
        Bools, integers and floats of up to 8 bytes, bfloat16 of ml_dtypes, or complex numbers of two such floats, of
        any shape and order. The arrays must not change meanwhile. In .safetensors, bfloat16 is BF16, and a complex
        number is a row of two floats; in .npz, bfloat16 is uint16. The header tells them apart.
    meta : dict
        What the module json can write; infinities and NaN are fine.

    Raises
    ------
    TypeError
        If a name is no string, an array is none or of another dtype, or json cannot write `meta`.
    ValueError
        If the ending is another, or `path` is something other than a file.
    ImportError
        If the ending is .safetensors and that package is not installed.
    OSError
        As the system gives it, for example FileNotFoundError for the folder. The old file is untouched.
    """
    target, form = _locate(path)
    folder, filename = os.path.split(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
    members: dict[str, np.ndarray] = {}
    entries = []
    for name, array in arrays.items():
        array = _plain(name, array)
        key = name if len(name) < 256 and _PLAIN.fullmatch(name) else f"#{len(members)}"
        members[key] = array
        entries.append({"name": name, "key": key, **_identity(array)})
    header = json.dumps({"format": FORMAT, "version": VERSION, "meta": meta, "arrays": entries})

    try:
        mode = os.stat(target).st_mode  # refuses a name that is too long
    except FileNotFoundError:
        mode = None

    # The draft is in a folder, since safetensors makes a temporary file beside it, with a mode of its own.
    prefix = f".{os.fsencode(filename)[:200].decode(errors='ignore')}."
    _remove_dead_drafts(folder, prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, suffix=".tmp", dir=folder) as temporary, _lock(temporary):
        draft = os.path.join(temporary, "draft")
        with open(draft, "xb"):
            mode = mode or os.stat(draft).st_mode
        form.write(draft, members, header)
        with open(draft, "r+b") as file:
            start = form.find_seal(file)
            _, seal = _seals(file, start)
            file.seek(start)
            file.write(seal)
            file.flush()
            os.chmod(draft, stat.S_IMODE(mode))
            os.fsync(file.fileno())
        os.replace(draft, target)
    _flush(folder)


def _flush(folder: str) -> None:
    """Flush a folder to the disk, where the system can do that."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


@contextmanager
def _lock(folder: str) -> Iterator[bool]:
    """Lock a folder until the end, also that of the process, and yield whether it could be locked."""
    descriptor, locked = None, False
    with suppress(ImportError, OSError):
        fcntl = import_module("fcntl")
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    try:
        yield locked
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _remove_dead_drafts(folder: str, prefix: str) -> None:
    """Remove folders of drafts that have been left by processes that were killed: nobody holds their locks."""
    name = re.compile(re.escape(prefix) + r"\w{8}\.tmp")
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if name.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                is_new = time.time() - entry.stat().st_mtime < 60  # its process may not have come to lock it yet
                with _lock(entry.path) as locked:
                    if locked and not is_new:
                        shutil.rmtree(entry.path, ignore_errors=True)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Stored], dict[str, Any]]]:
    """
    Open a file that `write` has made, after checking all of it. Nothing in it is ever executed.

    Parameters
    ----------
    path : str or os.PathLike
        The ending tells the format, .safetensors or .npz.

    Yields
    ------
    arrays : dict of str to Stored
        In the order in which they were written. They can be read, each without further memory, as long as the file is
        open.
    meta : dict
        As json makes it: tuples have become lists, and keys strings.

    Raises
    ------
    ValueError
        If a single bit is not as `write` wrote it, the format is of a newer version, the ending is another, or
        `path` is something other than a file.
    ImportError
        If there is bfloat16 and ml_dtypes is not installed.
    OSError
        As the system gives it, for example FileNotFoundError.
    """
    target, form = _locate(path)
    with open(target, "rb") as file:
        start = form.find_seal(file)
        sealed = start >= 0 and operator.eq(*_seals(file, start))
        try:
            contents = _checked(file, form, VERSION if sealed else None)  # may name the array that is damaged
            if not sealed:
                raise ValueError("broken seal")
        except _NamedError as error:
            raise ValueError(f"{os.fspath(path)} {error}") from error.__cause__
        except Exception as error:  # damaged bytes may raise anything
            if sealed and isinstance(error, (ImportError, MemoryError)):
                raise
            message = f"{os.fspath(path)} is damaged or no checkpoint, expected a file as it was saved"
            raise ValueError(message) from error
        yield contents


def _checked(file: BinaryIO, form: _Npz | _Safetensors, newest: int | None) -> tuple[dict[str, Stored], dict[str, Any]]:
    text, members = form.read(file)
    header = json.loads(text)
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']}")
    if newest is not None and header["version"] not in range(1, newest + 1):
        raise _NamedError(f"has format version {header['version']}, expected 1 to {newest}")
    entries = header["arrays"]
    if sorted(entry["key"] for entry in entries) != sorted(members):
        raise ValueError("other members than those of the header")
    spans = sorted((member.begin, member.end) for member in members.values())
    if any(end > begin for (_, end), (begin, _) in pairwise([*spans, (file.seek(0, os.SEEK_END),) * 2])):
        raise ValueError("members that overlap, or end behind the file")
    for entry in entries:
        if not _is_as_written(file, form, members[entry["key"]], entry):
            raise _NamedError(f"is damaged: {entry['name']} does not match its digest")
    arrays = {}
    for entry in entries:
        member = members[entry["key"]]
        dtype = _bfloat16() if entry["dtype"] == "bfloat16" else np.dtype(entry["dtype"])
        arrays[entry["name"]] = Stored(dtype, tuple(entry["shape"]), partial(_read, file, member))
    return arrays, dict(header["meta"])


def _is_as_written(file: BinaryIO, form: _Npz | _Safetensors, member: _Member, entry: dict[str, Any]) -> bool:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if dtype not in (*_CODES.values(), *_PARTS) or (member.dtype, member.shape) != form.in_file(dtype, shape):
        return False
    itemsize = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    if member.end - member.begin != math.prod(shape) * itemsize:
        return False
    digest = hashlib.sha256()
    file.seek(member.begin)
    _update(digest, file, member.end - member.begin)
    return bool(digest.hexdigest() == entry["sha256"])


def _read(file: BinaryIO, member: _Member, target: Array) -> None:
    view = target.reshape(-1).view(np.uint8).data
    file.seek(member.begin)
    while len(view):
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise OSError(f"{file.name} has become shorter while it was read, expected it to stay as it is")
        view = view[count:]


def _locate(path: str | os.PathLike[str]) -> tuple[str, _Npz | _Safetensors]:
    """Return the file that `path` leads to, or that will be made there, and the format that the ending stands for."""
    formats: dict[str, type[_Npz | _Safetensors]] = {".safetensors": _Safetensors, ".npz": _Npz}
    path = os.fspath(path)
    ending = os.path.splitext(path)[1]
    if ending not in formats:
        raise ValueError(f"{path} ends in {ending!r}, expected .safetensors or .npz")
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        raise ValueError(f"{path} is no regular file, expected one or none")
    return target, formats[ending]()


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    """Return a C-contiguous array of NumPy's own class and dtype, without a copy where none is needed."""
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}, expected a string")
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is of type {type(array).__name__}, expected an array")
    dtype = np.dtype(array.dtype.type)  # drops metadata, which no format can hold
    # float8_e5m2 of ml_dtypes says that it is a float, but NumPy would read it from a file as bytes without a type.
    known = dtype.isbuiltin == 1 and dtype.kind in "biufc" and dtype.itemsize <= (16 if dtype.kind == "c" else 8)
    if not (known or is_bfloat16(dtype)) or not array.dtype.isnative:
        wanted = "bool, int or float of up to 8 bytes, complex of two of them, or bfloat16, in native byte order"
        raise TypeError(f"{name} is {array.dtype}, expected {wanted}")
    return np.asarray(array, order="C").view(dtype)  # np.ascontiguousarray would give 0-d arrays a dimension


def _bfloat16() -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(import_module("ml_dtypes").bfloat16)
        return dtype
    except ImportError as error:
        message = 'ml_dtypes, which has bfloat16, is not installed: python -m pip install "fusedstep[bf16]"'
        raise ImportError(message, name="ml_dtypes") from error


def _identity(array: np.ndarray) -> dict[str, Any]:
    digest = hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": digest}


def _seals(file: BinaryIO, start: int) -> tuple[bytes, bytes]:
    """Return the seal that the file has at `start`, and the one that it should have."""
    digest = hashlib.sha256()
    file.seek(0)
    _update(digest, file, start)
    found = file.read(len(_BLANK))
    digest.update(_BLANK)
    _update(digest, file, sys.maxsize)
    return found, digest.hexdigest().encode()


def _update(digest: Any, file: BinaryIO, count: int) -> None:
    while chunk := file.read(min(count, 1 << 18)):
        digest.update(chunk)
        count -= len(chunk)
