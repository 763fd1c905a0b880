"""
Arrays and a dictionary in one file: written whole or not at all, and read as they were written or refused.

The seal, a SHA-256 of all other bytes, finds damage to a file. A digest of each array, taken before a library writes
it and after a library has read it, finds errors of the libraries, and tells which array is damaged.
"""

import errno
import hashlib
import json
import operator
import os
import re
import stat
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, BinaryIO

import numpy as np

from .arrays import is_bfloat16

__all__ = ["read", "write"]

FORMAT, VERSION = "fusedstep checkpoint", 2
_BLANK = b"0" * 64  # stands in place of the seal while the seal is computed
_PLAIN = re.compile(r"(?!__metadata__$)\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # names of arrays that every format can have

Get = Callable[[str], np.ndarray]


class _NamedError(Exception):
    """An error whose message names the damaged part, so that nobody wraps it."""


class _ReplacedError(Exception):
    """The error that another process has replaced the file while it was read."""


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

    @contextmanager
    def open(self, file: BinaryIO) -> Iterator[tuple[str | bytes, Get]]:
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("compressed, which may be a bomb")

            def get(key: str) -> np.ndarray:
                with archive.open(f"{key}.npy") as member:
                    array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
                    return array

            yield archive.read("checkpoint.json"), get


class _Safetensors:
    """A file of the safetensors library. The seal is an entry of its metadata, so it stands near the beginning."""

    def __init__(self) -> None:
        try:
            self.package = import_module("safetensors")
            self.save = import_module("safetensors.numpy").save_file
        except ImportError as error:
            message = 'safetensors is not installed: python -m pip install "fusedstep[checkpoint]", or use .npz'
            raise ImportError(message, name="safetensors") from error

    def write(self, path: str, members: Mapping[str, np.ndarray], header: str) -> None:
        try:
            self.save(dict(members), path, {"checkpoint": header, "seal": _BLANK.decode()})
        except self.package.SafetensorError as error:
            raise OSError(str(error)) from error

    def find_seal(self, file: BinaryIO) -> int:
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        # Quotes inside of strings are escaped, so nothing but the seal looks like this. safetensors refuses headers of
        # more than 100,000,000 bytes.
        found = re.search(rb'"seal"\s*:\s*"([0-9a-f]{64})"', file.read(min(length, 100_000_000)))
        return 8 + found.start(1) if found else -1

    @contextmanager
    def open(self, file: BinaryIO) -> Iterator[tuple[str | bytes, Get]]:
        with self.package.safe_open(file.name, framework="np") as archive:
            if not os.path.samestat(os.stat(file.name), os.fstat(file.fileno())):
                raise _ReplacedError
            yield archive.metadata()["checkpoint"], archive.get_tensor


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], meta: dict[str, Any]) -> None:
    """
    Write `arrays` and `meta` to a file that is afterwards the old one or the new one, whatever happens in between.

    Parameters
    ----------
    path : str or os.PathLike
        The ending chooses the format, .safetensors or .npz. An existing file is replaced and its permissions are
        kept; a symbolic link stays one.
    arrays : mapping of str to ndarray
        Bools, integers and floats of up to 8 bytes, or bfloat16 of ml_dtypes, of any shape and order. The arrays must
        not change meanwhile. In .safetensors, bfloat16 is BF16; in .npz, it is uint16, and the header tells it apart.
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

    # The draft is in a folder, since safetensors makes a temporary file beside it, with a mode of its own.
    with tempfile.TemporaryDirectory(prefix=f".{filename}.", suffix=".tmp", dir=folder) as temporary:
        draft = os.path.join(temporary, filename)
        with open(draft, "xb"):
            mode = os.stat(target if os.path.exists(target) else draft).st_mode
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
    if os.name == "posix":  # other systems cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """
    Return the arrays and the dictionary that `write` has put into a file. Nothing in it is ever executed.

    Parameters
    ----------
    path : str or os.PathLike
        The ending tells the format, .safetensors or .npz.

    Returns
    -------
    arrays : dict of str to ndarray
        In the order in which they were written, C-contiguous and writable.
    meta : dict
        As json makes it: tuples have become lists, and keys strings.

    Raises
    ------
    ValueError
        If a single bit is not as `write` wrote it, the format is of a newer version, the ending is another, or
        `path` is something other than a file.
    ImportError
        If the ending is .safetensors and that package is not installed, or there is bfloat16 and ml_dtypes is not.
    OSError
        As the system gives it, for example FileNotFoundError.
    """
    target, form = _locate(path)
    with open(target, "rb") as file:
        start = form.find_seal(file)
        sealed = start >= 0 and operator.eq(*_seals(file, start))
        try:
            if sealed:
                return _load(file, form, VERSION)
            _load(file, form, None)  # may raise an error that names the damaged array
            raise ValueError("broken seal")
        except _NamedError as error:
            raise ValueError(f"{os.fspath(path)} {error}") from error.__cause__
        except _ReplacedError:
            return read(path)
        except Exception as error:  # a library that reads damaged bytes may raise anything
            if sealed and isinstance(error, (ImportError, MemoryError)):
                raise
            message = f"{os.fspath(path)} is damaged or no checkpoint, expected a file as it was saved"
            raise ValueError(message) from error


def _load(file: BinaryIO, form: _Npz | _Safetensors, newest: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    with form.open(file) as (text, get):
        header = json.loads(text)
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}")
        if newest is not None and header["version"] not in range(1, newest + 1):
            raise _NamedError(f"has format version {header['version']}, expected 1 to {newest}")
        arrays = {}
        for entry in header["arrays"]:
            cause = None
            try:
                dtype = (
                    _bfloat16() if entry["dtype"] == "bfloat16" else None
                )  # imported first: safetensors needs ml_dtypes too
                array = get(entry["key"])
                if dtype is not None and array.dtype == np.uint16:
                    array = array.view(dtype)
                arrays[entry["name"]] = array
                fits = {**entry, **_identity(array)} == entry
            except (ImportError, MemoryError):
                raise
            except Exception as error:  # for example the checksum of a zip file
                fits, cause = False, error
            if not fits:
                raise _NamedError(f"is damaged: {entry['name']} does not match its digest") from cause
        return arrays, dict(header["meta"])


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
    known = dtype.isbuiltin == 1 and dtype.kind in "biuf" and dtype.itemsize <= 8
    if not (known or is_bfloat16(dtype)) or not array.dtype.isnative:
        wanted = "bool, int or float of up to 8 bytes, or bfloat16, in native byte order"
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
