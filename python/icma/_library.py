# SPDX-License-Identifier: Apache-2.0
"""Finds and loads libicma, on first use, and calls it. ctypes lets other Python threads run meanwhile."""
from __future__ import annotations

import ctypes
import os
import pathlib
import threading
from typing import Any, Iterator

from . import _structures as s
from .errors import BY_STATUS, LibraryError, UsageError

ABI = '0.1'  # what the structs are of (icma/version.h)
VARIABLE = 'ICMA_LIBRARY'
_lock = threading.Lock()
_loaded: ctypes.CDLL | None = None


def _candidates() -> Iterator[str]:
    """Names to load, the first that there is wins: what the user says, beside this file (a wheel that carries it), the loader's own places, a build of the source tree."""
    name = f'libicma.so.{ABI}'
    said = os.environ.get(VARIABLE)
    if said:
        yield os.path.join(said, name) if os.path.isdir(said) else said
        return
    here = pathlib.Path(__file__).resolve().parent
    yield str(here / name)
    yield name
    for build in sorted((here.parents[1] / 'build').glob('*/' + name), key=lambda path: path.parent.name != 'release'):
        yield str(build)


def _load() -> ctypes.CDLL:
    tried = []
    for name in _candidates():
        if '/' in name and not os.path.exists(name):
            tried.append(f'{name} does not exist')
            continue
        try:
            library = ctypes.CDLL(name)
        except OSError as error:
            tried.append(str(error))
            continue
        return _declare(library, name)
    raise LibraryError(f'libicma was not found ({"; ".join(tried)}); install icma (cmake --install, or its Debian package), or set {VARIABLE} to libicma.so or its folder')


def _declare(library: ctypes.CDLL, name: str) -> ctypes.CDLL:
    missing = [f for f in s.FUNCTIONS if not hasattr(library, f)]
    if missing:
        raise LibraryError(f'{name} has no {missing[0]}; it is of another version than this package, which needs libicma {ABI}')
    for function, (result, arguments) in s.FUNCTIONS.items():
        getattr(library, function).restype = result
        getattr(library, function).argtypes = arguments
    version = library.icma_version().decode()
    if version.rsplit('.', 1)[0] != ABI:
        raise LibraryError(f'{name} is libicma {version}; this package needs {ABI}')
    return library


def library() -> ctypes.CDLL:
    """libicma, loaded once."""
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _load()
        return _loaded


def call(function: str, *arguments: Any) -> None:
    """Calls what returns a status and takes an error last; raises the status's exception."""
    error = s.Error()
    status = getattr(library(), function)(*arguments, ctypes.byref(error))
    if status:
        raise exception_of(status, error)


def exception_of(status: int, error: s.Error) -> Exception:
    kind = BY_STATUS[status] if 0 < status < len(BY_STATUS) else BY_STATUS[0]
    return kind(text(error.message) or str(kind.__doc__), text(error.file) or None)


def text(value: bytes | None) -> str:
    """Names come from files: what is no UTF-8 survives as os.fsdecode has it."""
    return os.fsdecode(value or b'')


def bytes_of(value: str | os.PathLike[str], what: str) -> bytes:
    encoded = os.fsencode(value)
    if b'\0' in encoded:
        raise UsageError(f'a NUL in {what}; leave it out')
    return encoded


def set_number(structure: Any, name: str, value: Any) -> None:
    """Into a field of a struct; ctypes would cut off what does not fit."""
    setattr(structure, name, value)
    if getattr(structure, name) != value:
        raise UsageError(f'{name} {value} is out of range')


_device_lock = threading.Lock()


def open_device(name: str, precision: str = 'f32', operations: float = 0, size: float = 0) -> Any:
    """The op table of "cpu", "reference", "cuda", "cuda:N", or of "auto" for so much work."""
    kind, out = ctypes.c_int(), ctypes.c_void_p()
    call('icma_precision_from_name', bytes_of(precision, 'a precision'), ctypes.byref(kind))
    with _device_lock:
        call('icma_device_open', bytes_of(name, 'a device'), kind, s.DeviceWork(operations, size), ctypes.byref(out))
    return out


def version() -> str:
    """That of libicma: "0.1.0"."""
    return text(library().icma_version())


def set_threads(threads: int) -> None:
    """How many threads libicma uses on the CPU from now on, in the whole process; 0: as many as there are processors. Results never depend on it."""
    library().icma_set_threads(threads)
