"""Arrays and pickles from strangers: numbers are read, nothing is run, and nothing is believed before it is there.

NumPy and pickle allocate what a file declares, and a pickle may call any function. Here a declared size counts only as
far as bytes follow, objects are never loaded, and of a pickle only plain data and arrays of numbers come back.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

__all__ = ["Array", "load_npy", "load_npz", "load_pickle"]

MAX_ARRAY = 2**30  # bytes of an array


def _line(error):
    """What an error of a library says, in one short line."""
    return " ".join(str(error).split())[:150] or type(error).__name__


def _npy(stream: BinaryIO, size: int, what: str) -> np.ndarray:
    """One .npy array of numbers from a stream of `size` bytes; the header is believed only as far as bytes follow."""
    try:
        version = np.lib.format.read_magic(stream)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in header:
            raise ValueError(f"version {version} of the format is not known")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files written by Python 2
            shape, fortran, dtype = header[version](stream)
    except Exception as error:  # a header is Python text, and its parser fails in many ways
        raise ValueError(f"{what} cannot be read ({_line(error)}); copy it again") from error
    if dtype.hasobject or dtype.kind not in "fiubUS":
        raise ValueError(f"{what} holds {dtype}, expected numbers; objects are never loaded, save it as numbers")
    count = 1
    for length in shape:
        count *= length
    needed = count * dtype.itemsize
    if min(shape, default=0) < 0 or needed > MAX_ARRAY or needed > size - stream.tell():
        found = f"{what} declares {shape} of {dtype} ({needed} bytes)"
        raise ValueError(f"{found}, expected at most what the file holds and {MAX_ARRAY}; it is cut off or broken")
    values = np.frombuffer(stream.read(needed), dtype, count=count) if count else np.empty(0, dtype)
    return values.reshape(shape, order="F" if fortran else "C")


def load_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file, numbers or text.

    Raises:
        ValueError: a file that cannot be read, holds objects, or declares more than it holds or than 1 GiB.
    """
    with open(path, "rb") as stream:
        return _npy(stream, path.stat().st_size, str(path))


def load_npz(path: Path) -> tuple[list[str], Callable[[str], np.ndarray | None]]:
    """Keys of a `.npz` file, and a function that reads the array of a key, None where there is none.

    Raises:
        ValueError: (also by the function) as `load_npy`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename[:-4]: info for info in archive.infolist() if info.filename.endswith(".npy")}
        if not members:
            raise ValueError("there are no arrays in it")
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no archive of arrays ({_line(error)}); copy it again") from error

    def array(key):
        info = members.get(key)
        if info is None:
            return None
        what = f"{path}, array {key}"
        if info.file_size > MAX_ARRAY:
            raise ValueError(f"{what} declares {info.file_size} bytes, expected at most {MAX_ARRAY}; cut it into parts")
        try:
            with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
                raw = stream.read(info.file_size)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, OSError) as error:
            raise ValueError(f"{what} cannot be read ({_line(error)}); copy it again") from error
        return _npy(io.BytesIO(raw), len(raw), what)

    return sorted(members), array


class _Dtype:
    """Stands for numpy.dtype in a pickle: a plain kind of number, nothing else."""

    def __init__(self, code, *_):
        self.dtype = np.dtype(code) if re.fullmatch(r"[<>|=]?[fiub][1248]", str(code)) else None
        if self.dtype is None:
            raise ValueError(f"arrays of {str(code)[:40]!r} are not read, expected numbers")

    def __setstate__(self, state):
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class Array:
    """An array in what `load_pickle` returns: `value`, made of bytes and a shape that were checked together."""

    value: np.ndarray = np.empty(0)

    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        self.value = self._from(raw, dtype, shape, "F" if fortran else "C")

    @staticmethod
    def _from(raw, dtype, shape, order):
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise ValueError("an array is not made of numbers")
        if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
            raise ValueError(f"an array has the shape {str(shape)[:40]}")
        return np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


def _new_array(*_):
    return Array()


def _buffer_array(raw, dtype, shape, order):
    made = Array()
    made.value = Array._from(raw, dtype, shape, order)
    return made


def _number(dtype, raw):
    return Array._from(raw, dtype, (1,), "C")[0].item()


def _latin(text, encoding):
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise ValueError(f"text in the encoding {str(encoding)[:40]!r}")
    return text.encode("latin-1")


class _Nothing:
    """Stands for the type numpy.ndarray, which a pickle names and must not call."""


class _Unpickler(pickle._Unpickler):
    """Reads plain data and arrays of numbers, and runs nothing of what a file names.

    The interpreter in Python serves, because that in C allocates what a broken file declares. Names of numpy stand for
    the small classes above; no function of numpy is ever called with what a file says.
    """

    _names = {("numpy", "dtype"): _Dtype, ("numpy", "ndarray"): _Nothing, ("_codecs", "encode"): _latin}
    for _module in ("numpy.core.", "numpy._core."):
        _names[_module + "multiarray", "_reconstruct"] = _new_array
        _names[_module + "multiarray", "scalar"] = _number
        _names[_module + "numeric", "_frombuffer"] = _buffer_array
    # not those that make objects of any class, or refer to something outside of the file
    dispatch = {
        code: call
        for code, call in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in (pickle.PERSID, pickle.BINPERSID, pickle.INST, pickle.OBJ, pickle.NEWOBJ,
                                 pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER,
                                 pickle.READONLY_BUFFER)
    }  # fmt: skip

    def find_class(self, module, name):
        if (module, name) not in self._names:
            raise ValueError(f"it names {module}.{name}"[:80] + ", expected arrays of numpy and plain data only")
        return self._names[module, name]

    def load_reduce(self):
        arguments, call = self.stack.pop(), self.stack[-1]
        if call not in self._names.values() or call is _Nothing or not isinstance(arguments, tuple):
            raise ValueError("it calls something that is no array of numpy")
        self.stack[-1] = call(*arguments)

    def load_build(self):
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, Array | _Dtype):
            raise ValueError("it sets the state of something that is no array of numpy")
        made.__setstate__(state)

    def load_bytes(self):  # where the original makes room for as much as is declared
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytes
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build


class _Bounded:
    """A file that is never asked for more bytes than it has."""

    def __init__(self, stream, size):
        self.stream, self.size = stream, size

    def read(self, count):
        if count > self.size - self.stream.tell():
            raise EOFError(f"{count} bytes are declared, fewer follow")
        return self.stream.read(count)

    def readline(self):
        return self.stream.readline(2**20)


def load_pickle(path: Path) -> Any:
    """Plain data of a pickle: dicts, lists, tuples, texts, numbers, and `Array` in place of NumPy arrays.

    Raises:
        ValueError: anything else in the file, with its place in bytes; nothing of it has been called then.
    """
    with open(path, "rb") as stream:
        try:
            return _Unpickler(_Bounded(stream, path.stat().st_size)).load()
        except MemoryError:
            raise
        except Exception as error:  # a broken pickle may fail anywhere in the interpreter: one line says where
            raise ValueError(
                f"byte {stream.tell()}: the pickle cannot be read ({_line(error)}); it is broken, or holds more than "
                "annotations: save dict(split, annotations) of numbers, texts and numpy arrays"
            ) from error
