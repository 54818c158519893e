# SPDX-License-Identifier: Apache-2.0
"""The bytes of a safetensors file as arrays of numpy or torch: views, nothing is copied where nothing need be."""
from __future__ import annotations

import json
import math
from typing import Any, Dict, Iterator, Tuple

from .errors import UnsupportedError

Tensors = Dict[str, Any]

# As numpy calls them; others are of ml_dtypes, or their bits.
NUMPY = {'BOOL': 'bool', 'U8': 'uint8', 'I8': 'int8', 'I16': 'int16', 'U16': 'uint16', 'F16': 'float16', 'I32': 'int32', 'U32': 'uint32', 'F32': 'float32',
         'I64': 'int64', 'U64': 'uint64', 'F64': 'float64', 'C64': 'complex64'}
ML_DTYPES = {'BF16': 'bfloat16', 'F8_E4M3': 'float8_e4m3fn', 'F8_E5M2': 'float8_e5m2', 'F8_E8M0': 'float8_e8m0fnu'}
TORCH = {'BOOL': 'bool', 'U8': 'uint8', 'I8': 'int8', 'I16': 'int16', 'U16': 'uint16', 'F16': 'float16', 'BF16': 'bfloat16', 'I32': 'int32', 'U32': 'uint32',
         'F32': 'float32', 'I64': 'int64', 'U64': 'uint64', 'F64': 'float64', 'C64': 'complex64', 'F8_E4M3': 'float8_e4m3fn', 'F8_E5M2': 'float8_e5m2',
         'F8_E8M0': 'float8_e8m0fnu'}
BITS = {'BF16': 'uint16', 'F8_E4M3': 'uint8', 'F8_E5M2': 'uint8', 'F8_E8M0': 'uint8'}


def header_of(image: memoryview) -> Tuple[Dict[str, Any], int]:
    """A file's header, and where its data starts."""
    start = 8 + int.from_bytes(image[:8], 'little')
    return json.loads(bytes(image[8:start])), start


def entries(image: memoryview) -> Iterator[Tuple[str, str, Tuple[int, ...], int, int]]:
    """Name, dtype, shape, first and last byte of each tensor of a file."""
    header, start = header_of(image)
    for name, entry in header.items():
        if name != '__metadata__':
            first, last = entry['data_offsets']
            yield name, entry['dtype'], tuple(entry['shape']), start + first, start + last


def _numpy_dtype(name: str) -> Any:
    import numpy
    if name in NUMPY:
        return numpy.dtype(NUMPY[name])
    try:
        import ml_dtypes
        return numpy.dtype(getattr(ml_dtypes, ML_DTYPES[name]))
    except (ImportError, AttributeError, KeyError):
        return numpy.dtype(BITS[name]) if name in BITS else None


def to_numpy(data: memoryview, dtype: str, shape: Tuple[int, ...]) -> Any:
    """A view of `data`. BF16 and F8 are ml_dtypes' where that is installed, else their bits as unsigned integers; sub-byte dtypes are bytes, flat."""
    import numpy
    kind = _numpy_dtype(dtype)
    if kind is None:
        return numpy.frombuffer(data, numpy.uint8)
    return numpy.frombuffer(data, kind).reshape(shape)


def to_torch(data: memoryview, dtype: str, shape: Tuple[int, ...], device: Any = None) -> Any:
    """The same for torch; F8 that this torch does not know are their bits. On the CPU a view, if its alignment allows."""
    import torch
    kind = getattr(torch, TORCH[dtype], None) if dtype in TORCH else torch.uint8
    if kind is None and dtype in ('U16', 'U32', 'U64'):
        raise UnsupportedError(f'torch {torch.__version__} has no dtype for {dtype}; use framework="numpy"')
    if kind is None:
        kind = torch.uint8
    if dtype not in TORCH:
        shape = (len(data),)
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=kind, device=device)
    width = torch.empty((), dtype=kind).element_size()
    import numpy
    raw = numpy.frombuffer(data, numpy.uint8)
    if raw.ctypes.data % width or not raw.flags.writeable:
        raw = raw.copy()
    tensor = torch.frombuffer(raw, dtype=kind).reshape(shape)
    return tensor if device is None else tensor.to(device)


def load(image: memoryview, framework: str, device: Any = None) -> Tensors:
    """All tensors of a file, in its order."""
    if framework == 'torch':
        return {name: to_torch(image[first:last], dtype, shape, device) for name, dtype, shape, first, last in entries(image)}
    return {name: to_numpy(image[first:last], dtype, shape) for name, dtype, shape, first, last in entries(image)}
