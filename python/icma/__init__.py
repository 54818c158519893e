# SPDX-License-Identifier: Apache-2.0
"""Archives of LoRA adapters that a conditional VAE packs.

    import icma

    with icma.open('loras.icma') as bundle:
        print(bundle.tasks)
        weights = bundle.load('cat', framework='torch')    # tensors by name, in memory

    weights = icma.load_file('loras.icma', 'cat')
    model = icma.peft.load(model, 'loras.icma', 'cat')     # needs torch and peft
    result = icma.pack(['loras'], 'loras.icma', progress=print)

All of it is done by libicma, which is looked for when it is first needed, not on import: where the variable ICMA_LIBRARY says, beside this package, in the system's places, in a build of
the source tree. Errors are exceptions, below `icma.Error`.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._bundle import (Adapter, Bundle, CheckpointInfo, Generated, GeneratorInfo, SectionInfo, TaskInfo, TensorInfo, load_file, open)
from ._library import set_threads, version
from ._pack import AddedGroup, AddResult, PackedTask, PackResult, Progress, RemoveResult, add, pack, remove
from .errors import (BoundError, CancelledError, CorruptError, DeviceError, Error, ExistsError, FormatError, InputOutputError, LibraryError, LimitError,
                     NotFoundError, OutOfMemoryError, PartialError, UnsupportedError, UsageError)

if TYPE_CHECKING:
    from . import peft

__all__ = ['AddResult', 'AddedGroup', 'Adapter', 'BoundError', 'Bundle', 'CancelledError', 'CheckpointInfo', 'CorruptError', 'DeviceError', 'Error', 'ExistsError', 'FormatError', 'Generated',
           'GeneratorInfo', 'InputOutputError', 'LibraryError', 'LimitError', 'NotFoundError', 'OutOfMemoryError', 'PackResult', 'PackedTask', 'PartialError',
           'Progress', 'RemoveResult', 'SectionInfo', 'TaskInfo', 'TensorInfo', 'UnsupportedError', 'UsageError', 'add', 'load_file', 'open', 'pack', 'peft',
           'remove', 'set_threads', 'version']


def __getattr__(name: str) -> Any:
    """icma.peft without an import of its own; PEFT itself is imported when it is used."""
    if name == 'peft':
        return importlib.import_module('.peft', __name__)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
