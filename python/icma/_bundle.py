# SPDX-License-Identifier: Apache-2.0
"""Archives: what is in them, and adapters out of them, in memory."""
from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import threading
import warnings
import weakref
from types import TracebackType
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Type, Union

from . import _structures as s, _tensors
from ._library import bytes_of, call, library, open_device, set_number, text
from .errors import LimitError, NotFoundError, UsageError

Path = Union[str, 'os.PathLike[str]']
Checkpoint = Union[str, int, 'CheckpointInfo']
NONE = ctypes.c_size_t(-1).value
NOBODY = 2 ** 32 - 1


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """What was kept of a checkpoint, and how far it is from the original, as measured when it was packed."""
    index: int
    step: Optional[int]  # None: the adapter in the task's own folder
    group: int
    tier: str
    bound: str  # "dw", "rel", "abs"; "none"
    bound_value: float
    file_size: int
    parameters: int
    relative_error: float
    dw_error_mean: float
    dw_error_max: float
    hash: int  # XXH3-64 of the decoded file


@dataclasses.dataclass(frozen=True)
class TaskInfo:
    """A task: its condition, and its checkpoints by step."""
    name: str
    condition_origin: str  # the file that it came from; "learned"; "none"
    condition: Tuple[float, ...]
    bytes: int  # that belong to it alone
    checkpoints: Tuple[CheckpointInfo, ...]


@dataclasses.dataclass(frozen=True)
class GeneratorInfo:
    """The generator of a group of adapters that have the same tensors."""
    kind: str
    components_a: int
    components_b: int
    components_other: int
    latent_dim: int
    condition_dim: int
    hidden: int
    hidden_layers: int
    head_bytes: int
    trunk_parameters: int
    modelled_parameters: int
    tensors: int
    tensors_verbatim: int
    decode_work: int


@dataclasses.dataclass(frozen=True)
class SectionInfo:
    """A section of the file."""
    kind: str
    coding: str
    offset: int
    stored_size: int
    raw_size: int
    group: Optional[int]
    task: Optional[int]
    first: int
    count: int


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor of an adapter."""
    name: str
    dtype: str  # as safetensors calls it: "F32", "BF16"
    shape: Tuple[int, ...]
    size: int  # bytes


@dataclasses.dataclass(frozen=True)
class Generated:
    """Where a condition, or a mix, lies among what was packed (icma_generated)."""
    like: str
    nearest: str
    cosine: float
    distance: float
    seen: float


def _plain(structure: ctypes.Structure) -> Dict[str, Any]:
    values = {field[0]: getattr(structure, field[0]) for field in structure._fields_}
    return {name: text(value) if isinstance(value, bytes) else value for name, value in values.items()}


class Adapter:
    """One adapter in memory: a complete safetensors file, and the side files that were packed with it. Its memory lives as long as this, or anything made of it."""

    def __init__(self, decoded: s.Decoded, config_made: bool = False) -> None:
        self.config_made = config_made  # by `Bundle.convert`, from shapes and alphas
        self.files: Dict[str, bytes] = {text(f.name): ctypes.string_at(f.data, f.size) if f.size else b'' for f in decoded.files[:decoded.file_count]}
        buffer = (ctypes.c_uint8 * decoded.size).from_address(decoded.data)
        weakref.finalize(buffer, _free_decoded, decoded).atexit = False  # arrays may be read until the process ends
        self.data = memoryview(buffer).cast('B')

    @property
    def config(self) -> Dict[str, Any]:
        """adapter_config.json; empty if there is none."""
        return dict(json.loads(self.files.get('adapter_config.json', b'{}')))

    @property
    def metadata(self) -> Dict[str, str]:
        """`__metadata__` of the file's header."""
        return dict(_tensors.header_of(self.data)[0].get('__metadata__', {}))

    @property
    def tensors(self) -> List[TensorInfo]:
        """In the order of the header."""
        return [TensorInfo(name, dtype, shape, last - first) for name, dtype, shape, first, last in _tensors.entries(self.data)]

    def load(self, framework: str = 'numpy', device: Any = None) -> Dict[str, Any]:
        """Its tensors by name; see `Bundle.load`."""
        return _tensors.load(self.data, _framework(framework, device), device)


def _free_decoded(decoded: s.Decoded) -> None:
    library().icma_decoded_free(ctypes.byref(decoded))


def _framework(framework: str, device: Any) -> str:
    if framework not in ('numpy', 'torch'):
        raise UsageError(f'framework "{framework}" is unknown; there are "numpy" and "torch"')
    return 'torch' if device is not None else framework


class Bundle:
    """An open archive. Threads may share it: they take turns. Use it in a `with` block, or close it."""

    def __init__(self, path: Path, device: str = 'cpu', max_output: Optional[int] = None, max_work: Optional[int] = None) -> None:
        limits = s.Limits()
        library().icma_limits_init(ctypes.byref(limits), ctypes.sizeof(limits))
        for name, value in (('max_output', max_output), ('max_work', max_work)):
            if value is not None:
                set_number(limits, name, value)
        self._max_output = limits.max_output
        self.path = os.fspath(path)
        self._handle = ctypes.c_void_p()
        self._lock = threading.RLock()
        call('icma_bundle_open', bytes_of(path, 'a path'), open_device(device), ctypes.byref(limits), ctypes.byref(self._handle))
        self._finalizer = weakref.finalize(self, library().icma_bundle_close, self._handle.value)
        self._finalizer.atexit = False  # another thread may be decoding

    def close(self) -> None:
        """Adapters and arrays that came from it stay."""
        with self._lock:
            self._finalizer()
            self._handle = ctypes.c_void_p()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    def __repr__(self) -> str:
        return f'<icma.Bundle {self.path!r}: {len(self.tasks) if self._handle else "closed"}>'

    def _get(self, function: str, *arguments: Any) -> Any:
        with self._lock:
            if not self._handle:
                raise UsageError('the bundle is closed; open it again', self.path)
            return getattr(library(), function)(self._handle, *arguments)

    def _call(self, function: str, *arguments: Any) -> None:
        with self._lock:
            if not self._handle:
                raise UsageError('the bundle is closed; open it again', self.path)
            call(function, self._handle, *arguments)

    # --- what is there

    @property
    def tasks(self) -> List[str]:
        """Names of tasks, in the archive's order."""
        return [text(self._get('icma_bundle_task_name', i)) for i in range(self._get('icma_bundle_task_count'))]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return int(self._get('icma_bundle_task_count'))

    def __contains__(self, task: object) -> bool:
        return isinstance(task, str) and b'\0' not in os.fsencode(task) and self._get('icma_bundle_find_task', os.fsencode(task)) != NONE

    def _index(self, task: str) -> int:
        index = int(self._get('icma_bundle_find_task', bytes_of(task, 'a task')))
        if index == NONE:
            names = self.tasks
            raise NotFoundError(f'no task "{task}"; there {"is" if len(names) == 1 else "are"} {", ".join(names[:8])}{", ..." if len(names) > 8 else ""}', self.path)
        return index

    def task(self, name: str) -> TaskInfo:
        """A task's condition and checkpoints."""
        info = s.TaskInfo()
        with self._lock:
            self._call('icma_bundle_task', self._index(name), ctypes.byref(info))
            checkpoints = tuple(_checkpoint(i, info.checkpoints[i]) for i in range(info.checkpoint_count))
            condition = tuple(info.condition[:info.condition_size]) if info.condition else ()
            return TaskInfo(text(info.name), text(info.condition_origin), condition, info.bytes, checkpoints)

    __getitem__ = task

    def checkpoints(self, task: str) -> Tuple[CheckpointInfo, ...]:
        """A task's checkpoints, by step; the one without a step comes last."""
        return self.task(task).checkpoints

    @property
    def groups(self) -> List[GeneratorInfo]:
        """The generator of each group."""
        out = []
        for group in range(self._get('icma_bundle_group_count')):
            info = s.GeneratorInfo()
            self._call('icma_bundle_generator', group, ctypes.byref(info))
            out.append(GeneratorInfo(**_plain(info)))
        return out

    def record(self, group: int = 0) -> Optional[Dict[str, Any]]:
        """The group's record: options, seed, losses, errors by tensor and module; None if the archive has none."""
        if not 0 <= group < self._get('icma_bundle_group_count'):
            raise NotFoundError(f'no group {group}', self.path)
        out = ctypes.c_void_p()
        self._call('icma_bundle_record', group, ctypes.byref(out))
        if not out:
            return None
        try:
            return dict(json.loads(ctypes.string_at(out.value or 0)))
        finally:
            library().icma_free(out)

    @property
    def sections(self) -> List[SectionInfo]:
        """In the order of the index."""
        out = []
        for i in range(self._get('icma_bundle_section_count')):
            values = _plain(self._get('icma_bundle_section', i))
            out.append(SectionInfo(**{**values, **{k: None for k in ('group', 'task') if values[k] == NOBODY}}))
        return out

    @property
    def bytes(self) -> Dict[str, int]:
        """Of the archive, by kind; they add up to "total"."""
        return _plain(self._get('icma_bundle_bytes'))

    def verify(self, deep: bool = False) -> None:
        """Compares the checksum of every section; `deep`: decodes every adapter and compares its own. Raises what the first damage is."""
        for i in range(self._get('icma_bundle_section_count')):
            self._call('icma_bundle_check_section', i)
        for task in self.tasks if deep else []:
            for checkpoint in reversed(self.checkpoints(task)):  # lossless ones are predicted from those that follow
                self.read(task, checkpoint)

    # --- adapters

    def _find(self, task: str, checkpoint: Checkpoint) -> Tuple[int, int]:
        index = self._index(task)
        if isinstance(checkpoint, CheckpointInfo):
            return index, checkpoint.index
        there = self.checkpoints(task)
        if checkpoint == 'last':
            return index, len(there) - 1
        if isinstance(checkpoint, str) or isinstance(checkpoint, bool):
            raise UsageError(f'checkpoint {checkpoint!r}; a step, "last" or one of task(...).checkpoints', self.path)
        for c in there:
            if c.step == checkpoint:
                return index, c.index
        steps = ', '.join(str(c.step) for c in there[:8] if c.step is not None) + (', ...' if len(there) > 8 else '')
        raise NotFoundError(f'task "{task}" has no checkpoint {checkpoint}; its steps are {steps or "none"}', self.path)

    def _decoded(self, function: str, *arguments: Any) -> Adapter:
        decoded = s.Decoded()
        self._call(function, *arguments[:-1], ctypes.byref(decoded), *arguments[-1])
        return Adapter(decoded)

    def read(self, task: str, checkpoint: Checkpoint = 'last') -> Adapter:
        """Decodes a checkpoint (a step, "last", or a CheckpointInfo), and compares its checksum."""
        return self._decoded('icma_bundle_decode', *self._find(task, checkpoint), ())

    def convert(self, task: str, checkpoint: Checkpoint = 'last', *, layout: str = 'peft', dtype: Optional[str] = None, leave_out: bool = False,
                base_model: Optional[str] = None) -> Dict[str, Adapter]:
        """Decodes a checkpoint into a layout, "peft", "kohya" or "original", as `icma unpack --layout` does: an adapter for each component of a pipeline ("unet", "text_encoder"), or one, whose
        component is "". `dtype`: "F32", "F16" or "BF16", to cast to; `leave_out`: what has no place there, instead of an UnsupportedError. What is to be known of it is warned about."""
        options, result, decoded = s.LayoutOptions(), s.LayoutResult(), s.Decoded()
        known, kind = ctypes.c_int(), ctypes.c_int()
        if not library().icma_layout_from_name(bytes_of(layout, 'a layout'), ctypes.byref(known)):
            raise UsageError(f'layout "{layout}" is unknown; there are peft, kohya and original')
        if dtype is not None and dtype not in ('F32', 'F16', 'BF16'):
            raise UsageError(f'dtype "{dtype}"; weights are cast to F32, F16 or BF16')
        library().icma_layout_options_init(ctypes.byref(options), ctypes.sizeof(options))
        if dtype is not None:
            library().icma_dtype_from_name(bytes_of(dtype, 'a dtype'), ctypes.byref(kind))
        where = self._find(task, checkpoint)
        options.layout, options.cast, options.dtype, options.leave_out = known, dtype is not None, kind, leave_out
        options.other_weights = self.checkpoints(task)[where[1]].tier not in ('lossless', 'verbatim')
        options.base_model = bytes_of(base_model, 'a name') if base_model is not None else None
        self._call('icma_bundle_decode', *where, ctypes.byref(decoded))
        call('icma_layout_convert', ctypes.byref(decoded), ctypes.byref(options), ctypes.byref(result))
        return _converted(result)

    def load(self, task: str, checkpoint: Checkpoint = 'last', *, framework: str = 'numpy', device: Any = None) -> Dict[str, Any]:
        """Tensors of a checkpoint by name, in memory: nothing is written. `framework` is "numpy" or "torch"; `device` is where torch is to have them (and implies torch).

        numpy has no BF16 and no F8: they are those of ml_dtypes where it is installed, else their bits as uint16 and uint8. Arrays share one block of memory.
        """
        return self.read(task, checkpoint).load(framework, device)

    def tensors(self, task: str, checkpoint: Checkpoint = 'last') -> List[TensorInfo]:
        """Of a checkpoint, in the order in which they lie in it; nothing is decoded."""
        return [info for info in self._tensors(*self._find(task, checkpoint))]

    def _tensors(self, task: int, checkpoint: int) -> List[TensorInfo]:
        entries, count = ctypes.POINTER(s.AdapterTensor)(), ctypes.c_size_t()
        with self._lock:
            self._call('icma_bundle_tensors', task, checkpoint, ctypes.byref(entries), ctypes.byref(count))
            try:
                return [TensorInfo(text(t.name), text(library().icma_dtype_name(t.dtype)), tuple(t.shape[:t.dims]), t.size) for t in entries[:count.value]]
            finally:
                library().icma_free(entries)

    def tensor(self, task: str, name: str, checkpoint: Checkpoint = 'last', *, framework: str = 'numpy', device: Any = None) -> Any:
        """One tensor, at the cost of its part of the archive (below tier lossless; icma_bundle_decode_tensor). The whole file's checksum is not compared."""
        where = self._find(task, checkpoint)
        for i, info in enumerate(self._tensors(*where)):
            if info.name == name:
                break
        else:
            raise NotFoundError(f'no tensor "{name}" in task "{task}"', self.path)
        if info.size > self._max_output:  # before there is memory for it
            raise LimitError(f'a tensor of {info.size} bytes, and max_output is {self._max_output}; raise it in icma.open if you trust the archive', self.path)
        buffer = (ctypes.c_uint8 * info.size)()
        self._call('icma_bundle_decode_tensor', *where, i, buffer, info.size)
        view = memoryview(buffer).cast('B')
        if _framework(framework, device) == 'torch':
            return _tensors.to_torch(view, info.dtype, info.shape, device)
        return _tensors.to_numpy(view, info.dtype, info.shape)

    def sample(self, task: str, seed: int = 0) -> Adapter:
        """Draws an adapter from the task's condition alone."""
        return self._decoded('icma_bundle_sample', self._index(task), _seed(seed), ())

    def generate(self, condition: Optional[Sequence[float]] = None, *, mix: Optional[Mapping[str, float]] = None, like: Optional[str] = None,
                 seed: Optional[int] = None, origin: Optional[str] = None) -> Tuple[Adapter, Generated]:
        """An adapter that was never packed: from a condition (of the encoder that the packed tasks' vectors are from), or from a mix of packed tasks, {"cat": 0.5, "dog": 0.5}.

        `like` is the task that gives the shape and what is not modelled; with `seed` the latent is drawn, else it is the mean. The second value says how far from what was packed that is.
        """
        if (condition is None) == (mix is None):
            raise UsageError('a condition or a mix, one of them')
        what, told = s.Generation(), s.Generated()
        library().icma_generation_init(ctypes.byref(what), ctypes.sizeof(what))
        if condition is not None:
            values = [float(x) for x in condition]
            what.condition = (ctypes.c_float * max(1, len(values)))(*values)
            what.condition_size = len(values)
        if mix is not None:
            what.tasks = (ctypes.c_size_t * max(1, len(mix)))(*map(self._index, mix))
            what.weights = (ctypes.c_double * max(1, len(mix)))(*mix.values())
            what.task_count = len(mix)
        if like is not None:
            what.like = self._index(like)
        what.drawn, what.seed = seed is not None, _seed(seed or 0)
        what.origin, what.bundle = bytes_of(origin, 'an origin') if origin is not None else None, os.path.basename(os.fsencode(self.path))
        adapter = self._decoded('icma_bundle_generate', ctypes.byref(what), (ctypes.byref(told),))
        names = self.tasks
        return adapter, Generated(names[told.like], names[told.nearest], told.cosine, told.distance, told.seen)


def _converted(result: s.LayoutResult) -> Dict[str, Adapter]:
    """The adapters take their memory over."""
    out: Dict[str, Adapter] = {}
    try:
        for remark in result.remarks[:result.remark_count]:
            warnings.warn(text(remark), stacklevel=3)
        for part in result.list[:result.count]:
            own = s.Decoded()
            ctypes.pointer(own)[0] = part.decoded
            part.decoded = s.Decoded()
            out[text(part.component)] = Adapter(own, part.config_made)
        return out
    finally:
        library().icma_layout_result_free(ctypes.byref(result))


def _seed(seed: int) -> int:
    if not 0 <= seed < 2 ** 64:
        raise UsageError(f'seed {seed} is not within 0 .. 2^64 - 1')
    return seed


def _checkpoint(index: int, c: s.CheckpointInfo) -> CheckpointInfo:
    name = library().icma_tier_name, library().icma_bound_name
    return CheckpointInfo(index, c.step if c.has_step else None, c.group, text(name[0](c.tier)), text(name[1](c.bound.kind)), c.bound.value, c.file_size, c.parameters,
                          c.relative_error, c.dw_error_mean, c.dw_error_max, c.hash)


def open(path: Path, device: str = 'cpu', *, max_output: Optional[int] = None, max_work: Optional[int] = None) -> Bundle:
    """Opens an archive. `device` decodes: "cpu", "cuda", "cuda:N", "reference" (scalar loops); the bits are the same on each. An adapter that would have more than `max_output` bytes
    (default 4 GiB), or take more than `max_work` multiply-adds (default 2^40), is a LimitError."""
    return Bundle(path, device, max_output, max_work)


def load_file(bundle: Union[Bundle, Path], task: str, checkpoint: Checkpoint = 'last', *, framework: str = 'numpy', device: Any = None) -> Dict[str, Any]:
    """Tensors of an adapter by name, out of an open bundle or an archive's path; see `Bundle.load`."""
    if isinstance(bundle, Bundle):
        return bundle.load(task, checkpoint, framework=framework, device=device)
    with open(bundle) as opened:
        return opened.load(task, checkpoint, framework=framework, device=device)
