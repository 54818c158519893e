# SPDX-License-Identifier: Apache-2.0
"""Packing, adding to an archive and removing from it."""
from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import math
import os
import signal
import struct
import threading
import warnings
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from . import _structures as s
from ._library import bytes_of, call, library, open_device, set_number, text
from .errors import BY_STATUS, CancelledError, UsageError

Path = Union[str, 'os.PathLike[str]']
GENERATORS = ('auto', 'basis', 'none', 'conv', 'diffusion', 'soup')
TIERS = ('generate', 'latent', 'bounded', 'lossless')
BOUNDS = ('none', 'dw', 'rel', 'abs')
WEIGHTS = ('auto', 'bf16', 'f32')
ADDING = ('auto', 'old', 'new')
CANCELLED = BY_STATUS.index(CancelledError)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far packing is: so much of so much in a phase; `total` 0: nobody knows."""
    phase: str  # "read", "train", "encode", ...
    done: float
    total: float
    unit: str  # what both count: "bytes", "epochs", ...
    note: str


@dataclasses.dataclass(frozen=True)
class PackedTask:
    """A task as it was packed, measured on the decoded files."""
    name: str
    checkpoints: int
    latents_active: int
    condition_learned: bool
    dw_error_max: float
    dw_error_mean: float
    relative_error: float
    cosine: float


@dataclasses.dataclass(frozen=True)
class PackResult:
    """What packing gave (icma_pack_result)."""
    bytes: Dict[str, int]  # of the archive, by kind
    original_files: int
    original_bytes: int
    original_parameters: int
    tasks: Tuple[PackedTask, ...]
    groups: int
    hashes_dropped: int  # files that had hashes of their weights in their metadata, which the decoded weights do not have
    tier: str
    bound: str
    bound_value: float
    device: str
    generator: str
    components: int
    active_latents: int
    within_task_explained: float  # nan without any variance
    break_even: int
    seconds: Dict[str, float]
    skipped: Dict[str, str]  # files that were not taken, and why


@dataclasses.dataclass(frozen=True)
class AddedGroup:
    """The newcomers that have the same tensors (icma_add_group)."""
    group: int
    joined: bool
    generator: str
    tasks: int
    checkpoints: int
    explained: float
    old_bytes: float
    new_bytes: float
    bytes: int
    task: Optional[str]  # that goes on with them, or None: of new tasks


@dataclasses.dataclass(frozen=True)
class AddResult:
    """What adding gave (icma_add_result)."""
    pack: PackResult  # of the newcomers; its `bytes` are the whole archive's
    bytes_before: int
    groups: Tuple[AddedGroup, ...]
    old_checkpoints: int
    old_bytes: int
    packed_anew: float
    checkpoints_before: Tuple[int, ...]  # of each task of `pack`; 0: it is new
    skipped: int  # checkpoints below `paths` whose task and step the archive had


@dataclasses.dataclass(frozen=True)
class RemoveResult:
    """What removing gave (icma_remove_result)."""
    bytes_before: int
    bytes_after: int
    tasks: int
    checkpoints: int
    groups: int
    tasks_left: int
    groups_left: int


def _f32_at_most(value: float) -> float:
    """The largest float32 that is not above a positive value: a bound is not loosened by rounding."""
    rounded = ctypes.c_float(value).value
    if rounded > value:
        bits, = struct.unpack('<I', struct.pack('<f', rounded))
        rounded, = struct.unpack('<f', struct.pack('<I', bits - 1))
    return float(rounded)


def _choice(value: str, among: Sequence[str], what: str) -> int:
    if value not in among:
        raise UsageError(f'{what} "{value}" is unknown; there are {", ".join(among)}')
    return among.index(value)


class _Hooks:
    """Callbacks into Python. What one raises, or a handler of SIGINT, stops the work and is raised when that has ended."""

    def __init__(self, progress: Optional[Callable[[Progress], Any]], scorer: Optional[Callable[[str, memoryview], float]]) -> None:
        self.progress, self.scorer, self.raised = progress, scorer, None  # type: Any, Any, Optional[BaseException]
        self.update, self.cancelled, self.say = s.UPDATE(self._update), s.CANCELLED(self._cancelled), s.SAY(self._say)
        self.score = s.SCORE(self._score)

    def _update(self, context: Any, phase: bytes, done: float, total: float, note: Optional[bytes]) -> None:
        try:
            if self.progress is not None and self.raised is None:
                unit = library().icma_progress_unit(phase)
                self.progress(Progress(text(phase), done, total, text(unit), text(note)))
        except BaseException as error:
            self.raised = error

    def _cancelled(self, context: Any) -> bool:
        return self.raised is not None

    def _say(self, context: Any, line: bytes) -> None:
        try:
            warnings.warn(text(line), stacklevel=2)
        except BaseException as error:
            self.raised = error

    def _score(self, context: Any, task: bytes, file: int, size: int, like: Any, score: Any, error: Any) -> int:
        try:
            score[0] = float(self.scorer(text(task), memoryview((ctypes.c_uint8 * size).from_address(file)).cast('B')))
            return 0
        except BaseException as raised:
            self.raised = raised
            error[0].status = CANCELLED
            return CANCELLED

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Python runs a signal's handler wherever it is between two bytecodes: what it raises there would be lost on the way into or out of a callback, so it is caught in the handler."""
        previous = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(previous):
            yield
            return

        def handle(number: int, frame: Any) -> None:
            try:
                previous(number, frame)
            except BaseException as error:
                self.raised = error
        signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def set(self, progress: s.Progress) -> None:
        progress.update, progress.cancelled, progress.say = self.update, self.cancelled, self.say

    def call(self, function: str, *arguments: Any) -> None:
        try:
            with self.interruptible():
                call(function, *arguments)
        except CancelledError:
            if self.raised is not None:
                raise self.raised from None
            raise


    def finish(self) -> None:
        """Raises what came too late to stop anything."""
        if self.raised is not None:
            raise self.raised


class _Found:
    """Inputs, freed at the end of a `with` block."""

    def __init__(self, paths: Union[Path, Sequence[Path]]) -> None:
        every: Sequence[Path] = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        names = [bytes_of(path, 'a path') for path in every]
        self.inputs = s.Inputs()
        call('icma_inputs_find', (ctypes.c_char_p * max(1, len(names)))(*names), len(names), ctypes.byref(self.inputs))

    def __enter__(self) -> s.Inputs:
        return self.inputs

    def __exit__(self, *_: Any) -> None:
        library().icma_inputs_free(ctypes.byref(self.inputs))


def _open_device(name: str, precision: str, inputs: s.Inputs, options: s.PackOptions) -> Any:
    """As the program does it: files as if all of their numbers were weights of 32 bits."""
    size, adapters = 0, 0
    for task in inputs.tasks[:inputs.task_count]:
        checkpoints = task.checkpoints[:task.checkpoint_count]
        for checkpoint in checkpoints[-options.train_last:] if options.train_last else checkpoints:
            adapters += 1
            size += os.path.getsize(checkpoint.path) if os.path.exists(checkpoint.path) else 0
    work = library().icma_pack_work(ctypes.byref(options), adapters, size // adapters // 4 + 1) if adapters else 0
    return open_device(name, precision, work, size)


def _set_bound(options: s.PackOptions, tier: str, max_error: Union[float, str]) -> None:
    kind, value = 'dw', max_error
    if isinstance(max_error, str):
        kind, equals, number = max_error.partition('=')
        _choice(kind, BOUNDS[1:], 'max_error')
        try:
            value = float(number)
        except ValueError:
            raise UsageError(f'max_error "{max_error}"; say "dw=0.1", "rel=0.01" or "abs=1e-4"') from None
    if not (float(value) > 0 and math.isfinite(float(value))):
        raise UsageError(f'max_error {max_error}; a bound is above 0')
    if tier == 'lossless':
        raise UsageError('tier lossless has no error; leave out max_error')
    if tier == 'bounded':
        options.bound = s.Bound(BOUNDS.index(kind), _f32_at_most(float(value)))
    elif kind != 'dw':
        raise UsageError(f'tier {tier} holds no bound; dw=X is what its basis aims at')
    else:
        options.max_error = float(value)


def _set(options: s.PackOptions, given: Dict[str, Any]) -> None:
    for name, value in given.items():
        if value is not None and value < 0:
            raise UsageError(f'{name} {value} is below 0')
        if value is not None:
            set_number(options, name, value)


def pack(paths: Union[Path, Sequence[Path]], output: Path, *, tier: str = 'bounded', max_error: Union[None, float, str] = None, target_bits: Optional[float] = None,
         generator: str = 'auto', preset: Optional[str] = None, keep: str = 'all', train_last: int = 0, components: int = 0, explain: Optional[float] = None,
         restart: Optional[int] = None, epochs: Optional[int] = None, batch: Optional[int] = None, learning_rate: Optional[float] = None,
         latent_dim: Optional[int] = None, kld_weight: Optional[float] = None, weight_decay: Optional[float] = None, patience: Optional[int] = None,
         layers: Optional[int] = None, channels: Optional[Sequence[int]] = None, kernel: Optional[int] = None, weights: str = 'auto', variance: bool = False,
         denoiser_epochs: Optional[int] = None, training_file: Optional[Path] = None, save_seconds: Optional[float] = None, resume: bool = False,
         text_from: Optional[Path] = None, text_encoder: Optional[Path] = None, text_projection: bool = False,
         scorer: Optional[Callable[[str, memoryview], float]] = None, seed: Optional[int] = None, device: str = 'auto', precision: str = 'f32', threads: int = 0,
         overwrite: bool = False, progress: Optional[Callable[[Progress], Any]] = None) -> PackResult:
    """Finds adapters below `paths`, trains, encodes, decodes and checks, and writes a new archive; `icma pack --help` describes the options, which are named alike.

    `max_error` is a number (dw) or "dw=0.1", "rel=0.01", "abs=1e-4". `progress` is called now and then; what it raises stops the packing, and nothing is left behind. `scorer(task, file)` gives
    the score of a complete safetensors file for generator="soup": lower is better. Files that are not taken are warned about, and in the result's `skipped`.
    """
    options = s.PackOptions()
    library().icma_pack_options_init(ctypes.byref(options), ctypes.sizeof(options))
    library().icma_pack_use_generator(ctypes.byref(options), _choice(generator, GENERATORS, 'generator'))
    if preset is not None:
        call('icma_pack_preset', bytes_of(preset, 'a preset'), ctypes.byref(options))
    options.tier = _choice(tier, TIERS, 'tier')
    options.keep_last_only = bool(_choice(keep, ('all', 'last'), 'keep'))
    options.weights = _choice(weights, WEIGHTS, 'weights')
    given = {'target_bits': target_bits, 'explain': explain, 'restart': restart, 'epochs': epochs, 'batch': batch, 'learning_rate': learning_rate,
             'latent_dim': latent_dim, 'kld_weight': kld_weight, 'weight_decay': weight_decay, 'patience': patience, 'layers': layers, 'kernel': kernel,
             'denoiser_epochs': denoiser_epochs, 'save_seconds': save_seconds, 'seed': seed, 'train_last': train_last, 'components': components,
             'variance': variance, 'resume': resume, 'threads': threads, 'overwrite': overwrite, 'text_projection': text_projection}
    _set(options, given)
    if max_error is not None:
        _set_bound(options, tier, max_error)
    if channels is not None:
        if not 0 < len(channels) <= s.MOST_LAYERS:
            raise UsageError(f'channels for 1 to {s.MOST_LAYERS} layers')
        options.layers = len(channels)
        options.channels[:len(channels)] = list(channels)
    options.training_file = bytes_of(training_file, 'a path') if training_file is not None else None
    options.precision = bytes_of(precision, 'a precision')
    options.text_from = bytes_of(text_from, 'a path') if text_from is not None else None
    options.text_encoder = bytes_of(text_encoder, 'a path') if text_encoder is not None else None
    hooks = _Hooks(progress, scorer)
    hooks.set(options.progress)
    if scorer is not None:
        options.scorer.score = hooks.score
    return _run(paths, output, options, device, precision, hooks)


def _skipped(inputs: s.Inputs) -> Dict[str, str]:
    skipped = {text(k.path): text(k.reason) for k in inputs.skips[:inputs.skip_count]}
    for path, reason in skipped.items():
        warnings.warn(f'{path} was not taken: {reason}', stacklevel=4)
    return skipped


def _run(paths: Union[Path, Sequence[Path]], output: Path, options: s.PackOptions, device: str, precision: str, hooks: _Hooks) -> PackResult:
    result = s.PackResult()
    with _Found(paths) as inputs:
        skipped = _skipped(inputs)
        ops = _open_device(device, precision, inputs, options)
        hooks.call('icma_pack', ctypes.byref(inputs), bytes_of(output, 'a path'), ctypes.byref(options), ops, ctypes.byref(result))
    try:
        hooks.finish()
        return _plain(result, skipped)
    finally:
        library().icma_pack_result_free(ctypes.byref(result))


def _fields(structure: ctypes.Structure) -> Dict[str, Any]:
    return {field[0]: getattr(structure, field[0]) for field in structure._fields_}


def _plain(result: s.PackResult, skipped: Dict[str, str]) -> PackResult:
    tasks: List[PackedTask] = []
    for task in result.tasks[:result.task_count]:
        tasks.append(PackedTask(**{**_fields(task), 'name': text(task.name)}))
    return PackResult(
        bytes=_fields(result.bytes), original_files=result.original_files, original_bytes=result.original_bytes, original_parameters=result.original_parameters,
        tasks=tuple(tasks), groups=result.groups, hashes_dropped=result.hashes_dropped, tier=text(library().icma_tier_name(result.tier)), bound=text(library().icma_bound_name(result.bound.kind)),
        bound_value=result.bound.value, device=text(result.device), generator=text(result.generator) if result.has_generator else 'none',
        components=result.components, active_latents=result.active_latents, within_task_explained=result.within_task_explained, break_even=result.break_even,
        seconds=_fields(result.seconds), skipped=skipped)


def _change(output: Optional[Path], overwrite: bool, dry_run: bool, hooks: _Hooks) -> s.ChangeOptions:
    change = s.ChangeOptions()
    library().icma_change_options_init(ctypes.byref(change), ctypes.sizeof(change))
    change.output, change.overwrite, change.dry_run = bytes_of(output, 'a path') if output is not None else None, overwrite, dry_run
    hooks.set(change.progress)
    return change


def add(archive: Path, paths: Union[Path, Sequence[Path]], *, output: Optional[Path] = None, overwrite: bool = False, dry_run: bool = False, generator: str = 'auto',
        tier: Optional[str] = None, max_error: Union[None, float, str] = None, restart: Optional[int] = None, train_last: int = 0, epochs: Optional[int] = None,
        seed: Optional[int] = None, threads: int = 0, device: str = 'cpu', progress: Optional[Callable[[Progress], Any]] = None) -> AddResult:
    """Adds the adapters below `paths` to an archive, in place or into `output`, without retraining: `icma add --help` describes the options, which are named alike. Every other section keeps its
    bytes. A task that is there goes on: checkpoints after its last are added, those whose steps are there are skipped. Without `tier` and `max_error` newcomers are kept as the others are."""
    options, added, result = s.PackOptions(), s.AddOptions(), s.AddResult()
    library().icma_pack_options_init(ctypes.byref(options), ctypes.sizeof(options))
    library().icma_add_options_init(ctypes.byref(added), ctypes.sizeof(added))
    hooks = _Hooks(progress, None)
    change = _change(output, overwrite, dry_run, hooks)
    options.tier = _choice(tier or 'bounded', TIERS, 'tier')
    _set(options, {'restart': restart, 'train_last': train_last, 'epochs': epochs, 'seed': seed, 'threads': threads})
    if max_error is not None:
        _set_bound(options, tier or 'bounded', max_error)
    added.change, added.pack = ctypes.pointer(change), ctypes.pointer(options)
    added.same_tier, added.choice = tier is None and max_error is None, _choice(generator, ADDING, 'generator')
    with _Found(paths) as inputs:
        skipped = _skipped(inputs)
        hooks.call('icma_bundle_add', bytes_of(archive, 'a path'), ctypes.byref(inputs), ctypes.byref(added), open_device(device), ctypes.byref(result))
    try:
        hooks.finish()
        groups = tuple(AddedGroup(**{**_fields(g), 'generator': text(g.generator), 'task': text(g.task) if g.task else None}) for g in result.groups[:result.group_count])
        return AddResult(_plain(result.pack, skipped), result.bytes_before, groups, result.old_checkpoints, result.old_bytes, result.packed_anew,
                         tuple(result.checkpoints_before[:result.pack.task_count]), result.skipped)
    finally:
        library().icma_add_result_free(ctypes.byref(result))


def remove(archive: Path, tasks: Union[str, Sequence[str]], *, output: Optional[Path] = None, overwrite: bool = False, dry_run: bool = False,
           progress: Optional[Callable[[Progress], Any]] = None) -> RemoveResult:
    """Removes tasks from an archive, in place or into `output`. Every other section keeps its bytes; what a generator has learned from them stays in it."""
    hooks, result = _Hooks(progress, None), s.RemoveResult()
    names = [bytes_of(task, 'a task') for task in ([tasks] if isinstance(tasks, str) else tasks)]
    change = _change(output, overwrite, dry_run, hooks)
    hooks.call('icma_bundle_remove', bytes_of(archive, 'a path'), (ctypes.c_char_p * max(1, len(names)))(*names), len(names), ctypes.byref(change), ctypes.byref(result))
    hooks.finish()
    return RemoveResult(**_fields(result))
