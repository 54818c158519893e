# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, an exception for each status of the library (icma/status.h)."""
from __future__ import annotations


class Error(Exception):
    """Anything that libicma refuses or fails to do. `file` is the file that it is about, or None."""

    def __init__(self, message: str, file: str | None = None) -> None:
        super().__init__(f'{file}: {message}' if file else message)
        self.file = file


class LibraryError(Error, ImportError):
    """libicma cannot be found or loaded, or is of another version."""


class InputOutputError(Error, OSError):
    """Reading or writing failed."""


class UsageError(Error, ValueError):
    """An argument that cannot be."""


class PartialError(Error):
    """Done in part."""


class FormatError(Error):
    """The file is no archive, or no safetensors file."""


class CorruptError(Error):
    """The file is damaged."""


class BoundError(Error):
    """No packing holds what was asked for."""


class UnsupportedError(Error):
    """A version, dtype or kind of file that this library does not know."""


class NotFoundError(Error, LookupError):
    """No such file, task, checkpoint or tensor."""


class ExistsError(Error, FileExistsError):
    """The output exists."""


class OutOfMemoryError(Error, MemoryError):
    """Not enough memory, here or on the device."""


class DeviceError(Error):
    """No such device."""


class LimitError(Error):
    """Over a limit; see `icma.open`."""


class CancelledError(Error):
    """The work was stopped by its progress callback."""


# In the order of ICMA_STATUS_TABLE; ICMA_OK is 0.
BY_STATUS: tuple[type[Error], ...] = (
    Error, InputOutputError, UsageError, PartialError, FormatError, CorruptError, BoundError, UnsupportedError, NotFoundError, ExistsError, OutOfMemoryError,
    DeviceError, LimitError, CancelledError)
