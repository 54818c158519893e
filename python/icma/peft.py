# SPDX-License-Identifier: Apache-2.0
"""Adapters out of an archive into a model of PEFT, without a file in between."""
from __future__ import annotations

import dataclasses
import warnings
from typing import Any, Optional, Union

from ._bundle import Adapter, Bundle, Checkpoint, Path, open as open_bundle
from .errors import NotFoundError, UnsupportedError


def config_of(adapter: Adapter, *, trainable: bool = False) -> Any:
    """The adapter's PeftConfig, as PEFT would read it from its folder."""
    import peft
    stored = adapter.config
    kinds = peft.PEFT_TYPE_TO_CONFIG_MAPPING
    kind = kinds.get(str(stored.get('peft_type')))
    if kind is None:
        raise UnsupportedError('the adapter has no adapter_config.json that this PEFT knows; build a config yourself and pass it')
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(name for name, value in stored.items() if name not in known and value is not None)
    if unknown:
        warnings.warn(f'adapter_config.json has what this PEFT does not know: {", ".join(unknown)}', stacklevel=3)
    config = kind(**{name: value for name, value in stored.items() if name in known})
    config.inference_mode = not trainable
    return config


def _take_back(model: Any, adapter_name: str, was_one: bool) -> None:
    """What `put` has added to a model that was a PeftModel before, or was not."""
    if was_one:
        model.delete_adapter(adapter_name)
    elif hasattr(model.base_model, 'unload'):
        model.unload()


def put(model: Any, adapter: Adapter, adapter_name: str = 'default', *, config: Any = None, trainable: bool = False) -> Any:
    """Adds an adapter that is in memory to a model, under a name that it does not have yet, and gives the PeftModel. An adapter that does not fit leaves the model as it was."""
    import peft
    import torch
    config = config if config is not None else config_of(adapter, trainable=trainable)
    tensors = adapter.load('torch')
    was_one = isinstance(model, peft.PeftModel)
    if was_one:
        model.add_adapter(adapter_name, config)
    elif config.task_type in peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING:
        model = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING[config.task_type](model, config, adapter_name)
    else:
        model = peft.PeftModel(model, config, adapter_name)
    with torch.no_grad():
        result = peft.set_peft_model_state_dict(model, tensors, adapter_name)
    missing = [key for key in result.missing_keys if 'lora_' in key and f'.{adapter_name}.' in key]
    if result.unexpected_keys or missing:
        _take_back(model, adapter_name, was_one)
        raise UnsupportedError(f'the adapter is not of this model, or not in the layout of PEFT: {(list(result.unexpected_keys) + missing)[0]} has no counterpart')
    if not trainable:
        model.eval()
    return model


def _read(bundle: Bundle, task: str, checkpoint: Checkpoint, component: Optional[str], config: Any) -> Adapter:
    parts = bundle.convert(task, checkpoint, layout='peft')
    made = any(part.config_made for part in parts.values())
    if config is None and made and not any(t.name.endswith('.alpha') for t in bundle.tensors(task, checkpoint)):
        raise UnsupportedError('the adapter has no adapter_config.json and no alphas, so that its scale is not known; pass `config`, a peft.LoraConfig', bundle.path)
    if component is None and len(parts) == 1:
        return next(iter(parts.values()))
    if component not in parts:
        raise NotFoundError(f'task "{task}" has an adapter for each of {", ".join(parts)}; name one as `component`', bundle.path)
    return parts[component]


def load(model: Any, bundle: Union[Bundle, Path], task: str, adapter_name: str = 'default', *, checkpoint: Checkpoint = 'last', component: Optional[str] = None,
         config: Any = None, trainable: bool = False) -> Any:
    """Adds a task's adapter to a model, a transformers one or a PeftModel already, and gives the PeftModel: what PeftModel.from_pretrained, or load_adapter, does with the unpacked folder.

    Adapters of kohya's and diffusers' layouts are converted, as `icma unpack --layout peft` does; where they are for a pipeline, `component` says which ("unet"). `config` stands in for the adapter's own adapter_config.json. Without `trainable` the model is for inference.
    """
    if isinstance(bundle, Bundle):
        return put(model, _read(bundle, task, checkpoint, component, config), adapter_name, config=config, trainable=trainable)
    with open_bundle(bundle) as opened:
        return put(model, _read(opened, task, checkpoint, component, config), adapter_name, config=config, trainable=trainable)
