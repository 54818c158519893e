# SPDX-License-Identifier: Apache-2.0
"""The structs of icma's C headers. tests/python compares every size and offset with what a compiler makes of the headers."""
from __future__ import annotations

import ctypes
from ctypes import (CFUNCTYPE, POINTER, c_bool, c_char, c_char_p, c_double, c_float, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_uint8,
                    c_void_p)


class Error(ctypes.Structure):
    C = 'icma_error'
    _fields_ = [('status', c_int), ('file', c_char * 1024), ('message', c_char * 512)]


class Bound(ctypes.Structure):
    C = 'icma_bound'
    _fields_ = [('kind', c_int), ('value', c_float)]


UPDATE = CFUNCTYPE(None, c_void_p, c_char_p, c_double, c_double, c_char_p)
CANCELLED = CFUNCTYPE(c_bool, c_void_p)
SAY = CFUNCTYPE(None, c_void_p, c_char_p)
EXPLAIN = CFUNCTYPE(None, c_void_p, c_char_p, c_char_p)


class Progress(ctypes.Structure):
    C = 'icma_progress'
    _fields_ = [('update', UPDATE), ('cancelled', CANCELLED), ('say', SAY), ('explain', EXPLAIN), ('context', c_void_p)]


class InputSideFile(ctypes.Structure):
    C = 'icma_input_side_file'
    _fields_ = [('name', c_char_p), ('path', c_char_p)]


class InputCheckpoint(ctypes.Structure):
    C = 'icma_input_checkpoint'
    _fields_ = [('path', c_char_p), ('has_step', c_bool), ('step', c_uint64), ('side_files', POINTER(InputSideFile)), ('side_file_count', c_size_t),
                ('final_path', c_char_p), ('shards', c_size_t)]


class InputTask(ctypes.Structure):
    C = 'icma_input_task'
    _fields_ = [('name', c_char_p), ('folder', c_char_p), ('condition_path', c_char_p), ('checkpoints', POINTER(InputCheckpoint)), ('checkpoint_count', c_size_t)]


class InputSkip(ctypes.Structure):
    C = 'icma_input_skip'
    _fields_ = [('path', c_char_p), ('reason', c_char_p)]


class Inputs(ctypes.Structure):
    C = 'icma_inputs'
    _fields_ = [('tasks', POINTER(InputTask)), ('task_count', c_size_t), ('skips', POINTER(InputSkip)), ('skip_count', c_size_t), ('spool', c_void_p)]


SCORE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_void_p, c_size_t, POINTER(InputCheckpoint), POINTER(c_double), POINTER(Error))


class Scorer(ctypes.Structure):
    C = 'icma_scorer'
    _fields_ = [('score', SCORE), ('context', c_void_p)]


MOST_LAYERS = 16


class PackOptions(ctypes.Structure):
    C = 'icma_pack_options'
    _fields_ = [('size', c_size_t), ('tier', c_int), ('bound', Bound), ('target_bits', c_double), ('generator', c_int), ('restart', c_size_t),
                ('keep_last_only', c_bool), ('train_last', c_size_t), ('components', c_size_t), ('explain', c_double), ('max_error', c_double), ('loss', c_int),
                ('kld_weight', c_double), ('latent_dim', c_size_t), ('epochs', c_size_t), ('batch', c_size_t), ('learning_rate', c_double),
                ('weight_decay', c_double), ('patience', c_size_t), ('scorer', Scorer), ('layers', c_size_t), ('channels', c_size_t * MOST_LAYERS),
                ('kernel', c_size_t), ('weights', c_int), ('variance', c_bool), ('denoiser_epochs', c_size_t), ('training_file', c_char_p),
                ('save_seconds', c_double), ('resume', c_bool), ('seed', c_uint64), ('precision', c_char_p), ('threads', c_int), ('overwrite', c_bool),
                ('scalar', c_bool), ('progress', Progress), ('text_from', c_char_p), ('text_encoder', c_char_p), ('text_projection', c_bool)]


class Bytes(ctypes.Structure):
    C = 'icma_bytes'
    _fields_ = [(name, c_uint64) for name in ('total', 'generator', 'conditions', 'latents', 'residuals', 'verbatim', 'index', 'metadata')]


class PackTask(ctypes.Structure):
    C = 'icma_pack_task'
    _fields_ = [('name', c_char_p), ('checkpoints', c_size_t), ('latents_active', c_size_t), ('condition_learned', c_bool), ('dw_error_max', c_double),
                ('dw_error_mean', c_double), ('relative_error', c_double), ('cosine', c_double)]


class Seconds(ctypes.Structure):
    _fields_ = [(name, c_double) for name in ('read', 'gram', 'train', 'encode', 'check', 'write')]


class PackResult(ctypes.Structure):
    C = 'icma_pack_result'
    _fields_ = [('bytes', Bytes), ('original_files', c_uint64), ('original_bytes', c_uint64), ('original_parameters', c_uint64), ('zstd_sample_raw', c_uint64),
                ('zstd_sample_size', c_uint64), ('tasks', POINTER(PackTask)), ('task_count', c_size_t), ('groups', c_size_t), ('hashes_dropped', c_uint64), ('tier', c_int), ('bound', Bound),
                ('device', c_char_p), ('has_generator', c_bool), ('generator', c_char_p), ('components', c_size_t), ('active_latents', c_size_t),
                ('within_task_explained', c_double), ('break_even', c_uint64), ('seconds', Seconds)]


class Limits(ctypes.Structure):
    C = 'icma_limits'
    _fields_ = [('size', c_size_t), ('max_output', c_uint64), ('max_work', c_uint64)]


class CheckpointInfo(ctypes.Structure):
    C = 'icma_checkpoint_info'
    _fields_ = [('group', c_uint32), ('has_step', c_bool), ('step', c_uint64), ('tier', c_int), ('bound', Bound), ('file_size', c_uint64), ('parameters', c_uint64),
                ('relative_error', c_float), ('dw_error_mean', c_float), ('dw_error_max', c_float), ('hash', c_uint64)]


class TaskInfo(ctypes.Structure):
    C = 'icma_task_info'
    _fields_ = [('name', c_char_p), ('condition_origin', c_char_p), ('condition_size', c_size_t), ('condition', POINTER(c_float)), ('bytes', c_uint64),
                ('checkpoints', POINTER(CheckpointInfo)), ('checkpoint_count', c_size_t)]


class SectionInfo(ctypes.Structure):
    C = 'icma_section_info'
    _fields_ = [('kind', c_char_p), ('coding', c_char_p), ('offset', c_uint64), ('stored_size', c_uint64), ('raw_size', c_uint64), ('group', c_uint32),
                ('task', c_uint32), ('first', c_uint32), ('count', c_uint32)]


class GeneratorInfo(ctypes.Structure):
    C = 'icma_generator_info'
    _fields_ = [('kind', c_char_p), ('components_a', c_size_t), ('components_b', c_size_t), ('components_other', c_size_t), ('latent_dim', c_size_t),
                ('condition_dim', c_size_t), ('hidden', c_size_t), ('hidden_layers', c_size_t), ('head_bytes', c_uint64), ('trunk_parameters', c_uint64),
                ('modelled_parameters', c_uint64), ('tensors', c_size_t), ('tensors_verbatim', c_size_t), ('decode_work', c_uint64)]


class DecodedFile(ctypes.Structure):
    C = 'icma_decoded_file'
    _fields_ = [('name', c_char_p), ('data', POINTER(c_uint8)), ('size', c_size_t)]


class Decoded(ctypes.Structure):
    C = 'icma_decoded'
    _fields_ = [('data', c_void_p), ('size', c_size_t), ('files', POINTER(DecodedFile)), ('file_count', c_size_t)]


class AdapterTensor(ctypes.Structure):
    C = 'icma_adapter_tensor'
    _fields_ = [('name', c_char_p), ('dtype', c_int), ('dims', c_uint), ('shape', POINTER(c_uint64)), ('offset', c_uint64), ('size', c_uint64)]


class Generation(ctypes.Structure):
    C = 'icma_generation'
    _fields_ = [('size', c_size_t), ('condition', POINTER(c_float)), ('condition_size', c_size_t), ('tasks', POINTER(c_size_t)), ('weights', POINTER(c_double)),
                ('task_count', c_size_t), ('like', c_size_t), ('drawn', c_bool), ('seed', c_uint64), ('origin', c_char_p), ('bundle', c_char_p)]


class Generated(ctypes.Structure):
    C = 'icma_generated'
    _fields_ = [('like', c_size_t), ('group', c_uint32), ('nearest', c_size_t), ('cosine', c_double), ('distance', c_double), ('seen', c_double),
                ('hash', c_uint64), ('archive', c_uint64)]


class ChangeOptions(ctypes.Structure):
    C = 'icma_change_options'
    _fields_ = [('size', c_size_t), ('output', c_char_p), ('overwrite', c_bool), ('dry_run', c_bool), ('progress', Progress)]


class RemoveResult(ctypes.Structure):
    C = 'icma_remove_result'
    _fields_ = [('bytes_before', c_uint64), ('bytes_after', c_uint64), ('tasks', c_size_t), ('checkpoints', c_size_t), ('groups', c_size_t), ('tasks_left', c_size_t),
                ('groups_left', c_size_t)]


class AddOptions(ctypes.Structure):
    C = 'icma_add_options'
    _fields_ = [('size', c_size_t), ('change', POINTER(ChangeOptions)), ('pack', POINTER(PackOptions)), ('limits', POINTER(Limits)), ('same_tier', c_bool), ('choice', c_int)]


class AddGroup(ctypes.Structure):
    C = 'icma_add_group'
    _fields_ = [('group', c_uint32), ('joined', c_bool), ('generator', c_char_p), ('tasks', c_size_t), ('checkpoints', c_size_t), ('explained', c_double),
                ('old_bytes', c_double), ('new_bytes', c_double), ('bytes', c_uint64), ('task', c_char_p)]


class AddResult(ctypes.Structure):
    C = 'icma_add_result'
    _fields_ = [('pack', PackResult), ('bytes_before', c_uint64), ('groups', POINTER(AddGroup)), ('group_count', c_size_t), ('old_checkpoints', c_size_t),
                ('old_bytes', c_uint64), ('packed_anew', c_double), ('checkpoints_before', POINTER(c_size_t)), ('skipped', c_size_t)]


class LayoutOptions(ctypes.Structure):
    C = 'icma_layout_options'
    _fields_ = [('size', c_size_t), ('layout', c_int), ('cast', c_bool), ('dtype', c_int), ('leave_out', c_bool), ('other_weights', c_bool), ('base_model', c_char_p)]


class LayoutAdapter(ctypes.Structure):
    C = 'icma_layout_adapter'
    _fields_ = [('component', c_char_p), ('decoded', Decoded), ('config_made', c_bool)]


class LayoutResult(ctypes.Structure):
    C = 'icma_layout_result'
    _fields_ = [('list', POINTER(LayoutAdapter)), ('count', c_size_t), ('renamed', c_bool), ('cast', c_size_t), ('overflowed', c_uint64), ('left_out', c_size_t),
                ('hashes_made', c_bool), ('hashes_dropped', c_bool), ('remarks', POINTER(c_char_p)), ('remark_count', c_size_t)]


class DeviceWork(ctypes.Structure):
    C = 'icma_device_work'
    _fields_ = [('operations', c_double), ('bytes', c_double)]


# name: (result, arguments). What returns a status is told by `STATUS`.
STATUS = c_int
FUNCTIONS = {
    'icma_version': (c_char_p, []),
    'icma_free': (None, [c_void_p]),
    'icma_set_threads': (None, [c_int]),
    'icma_status_name': (c_char_p, [c_int]),
    'icma_dtype_name': (c_char_p, [c_int]),
    'icma_tier_name': (c_char_p, [c_int]),
    'icma_bound_name': (c_char_p, [c_int]),
    'icma_progress_unit': (c_char_p, [c_char_p]),
    'icma_device_open': (STATUS, [c_char_p, c_int, DeviceWork, POINTER(c_void_p), POINTER(Error)]),
    'icma_precision_from_name': (STATUS, [c_char_p, POINTER(c_int), POINTER(Error)]),
    'icma_inputs_find': (STATUS, [POINTER(c_char_p), c_size_t, POINTER(Inputs), POINTER(Error)]),
    'icma_inputs_free': (None, [POINTER(Inputs)]),
    'icma_pack_options_init': (None, [POINTER(PackOptions), c_size_t]),
    'icma_pack_use_generator': (None, [POINTER(PackOptions), c_int]),
    'icma_pack_preset': (STATUS, [c_char_p, POINTER(PackOptions), POINTER(Error)]),
    'icma_pack_work': (c_double, [POINTER(PackOptions), c_size_t, c_size_t]),
    'icma_pack': (STATUS, [POINTER(Inputs), c_char_p, POINTER(PackOptions), c_void_p, POINTER(PackResult), POINTER(Error)]),
    'icma_pack_result_free': (None, [POINTER(PackResult)]),
    'icma_change_options_init': (None, [POINTER(ChangeOptions), c_size_t]),
    'icma_bundle_remove': (STATUS, [c_char_p, POINTER(c_char_p), c_size_t, POINTER(ChangeOptions), POINTER(RemoveResult), POINTER(Error)]),
    'icma_add_options_init': (None, [POINTER(AddOptions), c_size_t]),
    'icma_bundle_add': (STATUS, [c_char_p, POINTER(Inputs), POINTER(AddOptions), c_void_p, POINTER(AddResult), POINTER(Error)]),
    'icma_add_result_free': (None, [POINTER(AddResult)]),
    'icma_layout_from_name': (c_bool, [c_char_p, POINTER(c_int)]),
    'icma_layout_options_init': (None, [POINTER(LayoutOptions), c_size_t]),
    'icma_layout_convert': (STATUS, [POINTER(Decoded), POINTER(LayoutOptions), POINTER(LayoutResult), POINTER(Error)]),
    'icma_layout_result_free': (None, [POINTER(LayoutResult)]),
    'icma_dtype_from_name': (c_bool, [c_char_p, POINTER(c_int)]),
    'icma_limits_init': (None, [POINTER(Limits), c_size_t]),
    'icma_bundle_open': (STATUS, [c_char_p, c_void_p, POINTER(Limits), POINTER(c_void_p), POINTER(Error)]),
    'icma_bundle_close': (None, [c_void_p]),
    'icma_bundle_task_count': (c_size_t, [c_void_p]),
    'icma_bundle_group_count': (c_size_t, [c_void_p]),
    'icma_bundle_section_count': (c_size_t, [c_void_p]),
    'icma_bundle_section': (SectionInfo, [c_void_p, c_size_t]),
    'icma_bundle_check_section': (STATUS, [c_void_p, c_size_t, POINTER(Error)]),
    'icma_bundle_find_task': (c_size_t, [c_void_p, c_char_p]),
    'icma_bundle_task_name': (c_char_p, [c_void_p, c_size_t]),
    'icma_bundle_task': (STATUS, [c_void_p, c_size_t, POINTER(TaskInfo), POINTER(Error)]),
    'icma_bundle_bytes': (Bytes, [c_void_p]),
    'icma_bundle_generator': (STATUS, [c_void_p, c_uint32, POINTER(GeneratorInfo), POINTER(Error)]),
    'icma_bundle_record': (STATUS, [c_void_p, c_uint32, POINTER(c_void_p), POINTER(Error)]),
    'icma_bundle_compare_checksums': (None, [c_void_p, c_bool]),
    'icma_bundle_decode': (STATUS, [c_void_p, c_size_t, c_size_t, POINTER(Decoded), POINTER(Error)]),
    'icma_bundle_sample': (STATUS, [c_void_p, c_size_t, c_uint64, POINTER(Decoded), POINTER(Error)]),
    'icma_generation_init': (None, [POINTER(Generation), c_size_t]),
    'icma_bundle_generate': (STATUS, [c_void_p, POINTER(Generation), POINTER(Decoded), POINTER(Generated), POINTER(Error)]),
    'icma_decoded_free': (None, [POINTER(Decoded)]),
    'icma_bundle_tensors': (STATUS, [c_void_p, c_size_t, c_size_t, POINTER(POINTER(AdapterTensor)), POINTER(c_size_t), POINTER(Error)]),
    'icma_bundle_decode_tensor': (STATUS, [c_void_p, c_size_t, c_size_t, c_size_t, c_void_p, c_size_t, POINTER(Error)]),
}
