#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Layouts as the programs that they are for see them: PEFT computes the same dW from what was kohya's, the safetensors package writes the same bytes and kohya's
rule gives the same hashes; what vLLM and LoRAX check of a folder holds, or icma has warned of it."""
import hashlib
import json
import math
import os
import struct
import subprocess
import unittest

import safetensors
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from common import ADAPTER, CONFIG, ICMA, LORAS, Case, adapters, bits, example_model, lora_shapes, walk, write_config

CLIP = CLIPTextConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=16)


def clip():
    torch.manual_seed(5)
    return CLIPTextModel(CLIP).eval()


def flat(path):
    return 'lora_te_' + path.replace('.', '_')


def kohya_tensors(modules, seed=1, ranks=(4,), alphas=(2.0,)):
    """{module's path: shape of its weight} as kohya stores their LoRA."""
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for i, (path, (out, width)) in enumerate(sorted(modules.items())):
        rank, alpha = ranks[i % len(ranks)], alphas[i % len(alphas)]
        tensors[flat(path) + '.lora_down.weight'] = 0.1 * torch.randn((rank, width), generator=draw)
        tensors[flat(path) + '.lora_up.weight'] = 0.1 * torch.randn((out, rank), generator=draw)
        tensors[flat(path) + '.alpha'] = torch.tensor(alpha)
    return tensors


def delta(tensors, path):
    """kohya's: alpha / rank * up @ down."""
    down, up = tensors[flat(path) + '.lora_down.weight'], tensors[flat(path) + '.lora_up.weight']
    return float(tensors[flat(path) + '.alpha']) / down.shape[0] * (up @ down)


def kohya_hashes(tensors, metadata):
    """sd-scripts, library/train_util.py, precalculate_safetensors_hashes, with the package that it uses."""
    image = safetensors.torch.save(tensors, {k: v for k, v in metadata.items() if k.startswith('ss_')})
    start = 8 + struct.unpack('<Q', image[:8])[0]
    return hashlib.sha256(image[start:]).hexdigest(), hashlib.sha256(image[0x100000:0x110000]).hexdigest()[:8]


def config_of(folder):
    with open(os.path.join(folder, CONFIG)) as file:
        return json.load(file)


def metadata_of(path):
    with safetensors.safe_open(path, 'pt') as file:
        return file.metadata()


# --- what serves them, in our own words -----------------------------------------------------------------------------

class Refused(Exception):
    pass


def vllm_resolver(folder, base_model, name):
    """vLLM's resolver of a file system: where the adapter `name` of the model `base_model` is, or None."""
    path = os.path.realpath(os.path.join(folder, name))
    if os.path.commonpath([os.path.realpath(folder), path]) != os.path.realpath(folder) or not os.path.exists(os.path.join(path, CONFIG)):
        return None
    config = config_of(path)
    return path if config['peft_type'] == 'LORA' and config['base_model_name_or_path'] == base_model else None


def vllm_loader(path, max_rank=64):
    """vLLM's PEFTHelper and LoRAModel: {module: (A, B, scale)}, with one scale for all."""
    config = config_of(path)
    for key in ('r', 'lora_alpha', 'target_modules'):
        if key not in config:
            raise Refused(f'{key} is missing')
    if config.get('modules_to_save') or config.get('use_dora') or config.get('bias', 'none') != 'none' or config['r'] > max_rank:
        raise Refused('a feature that is not supported')
    scale = config['lora_alpha'] / (math.sqrt(config['r']) if config.get('use_rslora') else config['r'])
    modules = {}
    for name, tensor in load_file(os.path.join(path, ADAPTER)).items():
        parts = name.split('.')
        start = 2 if name.startswith('base_model.model.') else 0
        if parts[-1] != 'weight' or parts[-2] not in ('lora_A', 'lora_B'):
            raise Refused(f'{name} is unsupported LoRA weight')
        if tensor.shape[0 if parts[-2] == 'lora_A' else 1] > max_rank:
            raise Refused('too large a rank')
        modules.setdefault('.'.join(parts[start:-2]), {})[parts[-2]] = tensor
    return {m: (f['lora_A'], f['lora_B'], scale) for m, f in modules.items()}


def lorax_loader(path, weight_names):
    """LoRAX: PEFT's own configuration, weights by their names in the model, one rank for all layers of a kind."""
    config, weights = LoraConfig.from_pretrained(path), load_file(os.path.join(path, ADAPTER))
    found, used, ranks = {}, set(), {}
    for name in weight_names:
        a, b = (f'base_model.model.{name}.lora_{f}.weight' for f in 'AB')
        if a in weights and b in weights:
            found[name] = (weights[a], weights[b], config.lora_alpha / config.r)
            used |= {a, b}
            ranks.setdefault(name.rsplit('.', 1)[-1], set()).add(weights[a].shape[0])
    if set(weights) - used or any(len(r) > 1 for r in ranks.values()):
        raise Refused('weights that are not used, or ranks that differ')
    return found


class Layouts(Case):
    def write(self, name, tensors, metadata=None):
        path = self.path('tree', name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        safetensors.torch.save_file(tensors, path, metadata)

    def pack(self, *words, tree='tree'):
        self.icma('pack', self.path(tree) if tree == 'tree' else tree, '-o', self.path('b.icma'), '-f', *words)

    def unpack(self, folder, *words, code=0):
        done = subprocess.run([ICMA, 'unpack', self.path('b.icma'), '-C', self.path(folder), *words], capture_output=True, text=True)
        self.assertEqual(done.returncode, code, done.stderr)
        self.said = done.stderr
        return self.path(folder)


class Kohya(Layouts):
    def modules(self, kinds=('q_proj', 'v_proj', 'fc1', 'fc2')):
        return {n: tuple(m.weight.shape) for n, m in clip().named_modules() if n.rsplit('.', 1)[-1] in kinds}

    def loaded(self, folder):
        """PEFT, strictly: every key finds its place and none is missing; {module's path: dW}."""
        model = PeftModel.from_pretrained(clip(), folder)
        result = model.load_adapter(folder, 'again')
        self.assertEqual(result.unexpected_keys, [])
        self.assertEqual([k for k in result.missing_keys if '.again.' in k], [])
        return {n[len('base_model.model.'):]: m.get_delta_weight('default').detach() for n, m in model.named_modules() if hasattr(m, 'lora_A') and len(m.lora_A)}

    def check(self, tensors, folder):
        found = self.loaded(folder)
        self.assertEqual(set(found), set(self.modules()))
        for path in found:
            torch.testing.assert_close(found[path], delta(tensors, path), rtol=1e-6, atol=1e-8)

    def test_peft_computes_the_same_of_a_lossless_archive(self):
        tensors = kohya_tensors(self.modules())
        self.write('style.safetensors', tensors, {'ss_epoch': '1'})
        self.pack('--tier', 'lossless')
        self.check(tensors, os.path.join(self.unpack('peft', '--layout', 'peft'), 'style'))

    def test_with_ranks_and_alphas_that_differ(self):
        tensors = kohya_tensors(self.modules(), ranks=(4, 8, 4), alphas=(2.0, 4.0, 1.3, 2.0, 0.7))
        self.write('style.safetensors', tensors, {'ss_epoch': '1'})
        self.pack('--tier', 'lossless')
        self.check(tensors, os.path.join(self.unpack('peft', '--layout', 'peft'), 'style'))
        self.assertIn('another alpha / rank', self.said)

    def test_both_layouts_of_a_bounded_archive(self):
        """What PEFT gets is what kohya's programs get, to the bit of every weight."""
        for epoch, spread in ((1, 0.0), (2, 0.01)):
            tensors = kohya_tensors(self.modules())
            generator = torch.Generator().manual_seed(epoch)
            self.write(f'style-{epoch:06}.safetensors', {n: t + spread * torch.randn(t.shape, generator=generator) if t.dim() else t for n, t in tensors.items()},
                       {'ss_epoch': str(epoch)})
        self.pack()
        restored = load_file(os.path.join(self.unpack('kohya', '--checkpoint', 'all'), 'style-000002.safetensors'))
        folder = os.path.join(self.unpack('peft', '--layout', 'peft', '--checkpoint', 'all'), 'style', 'checkpoint-2')
        self.check(restored, folder)
        new = load_file(os.path.join(folder, ADAPTER))
        for path in self.modules():
            for old, factor in (('lora_down', 'A'), ('lora_up', 'B')):
                self.assertEqual(bits(new[f'base_model.model.{path}.lora_{factor}.weight']), bits(restored[f'{flat(path)}.{old}.weight']))

    def test_the_model_computes_the_same(self):
        """The text encoder's output with PEFT's adapter, and with kohya's dW added to its weights by hand."""
        tensors = kohya_tensors(self.modules())
        self.write('style.safetensors', tensors, {'ss_epoch': '1'})
        self.pack('--tier', 'lossless')
        folder = os.path.join(self.unpack('peft', '--layout', 'peft'), 'style')
        tokens = torch.arange(32).reshape(2, 16) % 60
        by_hand = clip()
        with torch.no_grad():
            modules = dict(by_hand.named_modules())
            for path in self.modules():
                modules[path].weight += delta(tensors, path)
            wanted, plain = by_hand(tokens).last_hidden_state, clip()(tokens).last_hidden_state
            found = PeftModel.from_pretrained(clip(), folder).eval()(input_ids=tokens).last_hidden_state
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        self.assertGreater(float((wanted - plain).norm()), 0.01 * float(plain.norm()))

    def test_hashes_are_those_of_kohyas_rule(self):
        for width in (32, 100000):  # the latter over 1 MiB: the legacy hash is of weights then
            with self.subTest(width=width):
                tensors = kohya_tensors({'text_model.encoder.layers.0.mlp.fc1': (32, width), 'text_model.encoder.layers.0.mlp.fc2': (width, 32)})
                metadata = {'ss_epoch': '1', 'ss_comment': 'größe "x"\n\x1f', 'modelspec.title': 't'}
                metadata['sshs_model_hash'], metadata['sshs_legacy_hash'] = kohya_hashes(tensors, metadata)
                self.write('style.safetensors', tensors, metadata)
                self.pack()
                path = os.path.join(self.unpack(f'out{width}'), 'style.safetensors')
                found = metadata_of(path)
                self.assertEqual((found.pop('sshs_model_hash'), found.pop('sshs_legacy_hash')), kohya_hashes(load_file(path), metadata_of(path)))
                self.assertEqual(found, {k: v for k, v in metadata.items() if not k.startswith('sshs_')})

    def test_written_as_the_package_writes(self):
        tensors = {**kohya_tensors(self.modules()), 'lora_te_text_model_encoder_layers_0_mlp_fc1.alpha': torch.tensor(2, dtype=torch.int64)}
        self.write('style.safetensors', tensors, {'ss_epoch': '1'})
        self.pack('--tier', 'lossless')
        for words in (('--layout', 'peft'), ('--layout', 'peft', '--dtype', 'bf16'), ('--layout', 'peft', '--dtype', 'f16')):
            path = os.path.join(self.unpack('-'.join(words), *words), 'style', ADAPTER)
            with open(path, 'rb') as file:
                self.assertEqual(file.read(), safetensors.torch.save(load_file(path), metadata_of(path)), words)

    def test_casts_are_torchs(self):
        tensors = kohya_tensors(self.modules())
        name = sorted(n for n in tensors if 'lora_up' in n)[0]
        special = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 65504, 65519, 65520, -70000, 1e-8, 6e-8, 3e38, 1e-40, -0.0, math.inf]
        tensors[name].view(-1)[:len(special)] = torch.tensor(special)
        self.write('style.safetensors', tensors, {'ss_epoch': '1'})
        self.pack('--tier', 'lossless')
        for word, dtype in (('bf16', torch.bfloat16), ('f16', torch.float16)):
            found = load_file(os.path.join(self.unpack(word, '--dtype', word), 'style.safetensors'))
            lost = 0
            for n, t in tensors.items():
                wanted = t.to(dtype) if t.dim() else t
                self.assertEqual(bits(found[n]), bits(wanted), n)
                lost += int((torch.isfinite(t) & ~torch.isfinite(wanted)).sum())
            self.assertIn(f'{lost} weights became infinite' if lost > 1 else f'cast to {word}', self.said)


class RoundTrip(Layouts):
    def test_peft_to_kohya_to_peft(self):
        self.pack('--keep', 'last', tree=LORAS)
        first = self.unpack('first', '--layout', 'peft')
        kohya = self.unpack('kohya', '--layout', 'kohya')
        self.icma('pack', kohya, '-o', self.path('b.icma'), '-f', '--tier', 'lossless')
        again = self.unpack('again', '--layout', 'peft')
        self.assertTrue(adapters(first))
        self.assertEqual(adapters(again), adapters(first))
        for folder in adapters(first):
            old, new = (load_file(os.path.join(root, folder, ADAPTER)) for root in (first, again))
            self.assertEqual(set(old), set(new))
            for name in old:
                self.assertEqual(bits(old[name]), bits(new[name]), name)
            configs = [LoraConfig.from_pretrained(os.path.join(root, folder)) for root in (first, again)]
            self.assertEqual([c.lora_alpha / c.r for c in configs], 2 * [configs[0].lora_alpha / configs[0].r])
            PeftModel.from_pretrained(example_model(), os.path.join(again, folder))


class Serving(Layouts):
    def names(self):
        return [n for n, m in example_model().named_modules() if isinstance(m, torch.nn.Linear)]

    def test_a_peft_tree_with_its_base_model(self):
        self.pack(tree=LORAS)
        root = self.unpack('loras', '--layout', 'peft', '--base-model', 'org/base')
        own = {folder: config_of(os.path.join(root, folder))['base_model_name_or_path'] for folder in adapters(root)}
        self.assertTrue(own)
        for task, base in own.items():
            path = vllm_resolver(root, base, task)
            self.assertIsNotNone(path)
            self.assertIsNone(vllm_resolver(root, base, f'../{os.path.basename(root)}/../{task}'))
            served, lorax = vllm_loader(path), lorax_loader(path, self.names())
            self.assertEqual(set(served), set(lorax))
            model = PeftModel.from_pretrained(example_model(), path)
            for name, module in model.named_modules():
                if hasattr(module, 'lora_A') and len(module.lora_A):
                    a, b, scale = served[name[len('base_model.model.'):]]
                    torch.testing.assert_close(scale * (b @ a), module.get_delta_weight('default').detach(), rtol=1e-5, atol=1e-8)
                    self.assertEqual(lorax[name[len('base_model.model.'):]][2], scale)
        self.assertNotIn('warning', self.said)

    def test_from_kohyas_names(self):
        shapes = {n: tuple(m.weight.shape) for n, m in example_model().named_modules() if n.endswith(('q_proj', 'down_proj'))}
        self.write('cat.safetensors', kohya_tensors(shapes), {'ss_sd_model_name': 'org/base'})
        self.pack('--tier', 'lossless')
        root = self.unpack('loras', '--layout', 'peft')
        path = vllm_resolver(root, 'org/base', 'cat')
        self.assertEqual(set(vllm_loader(path)), set(shapes))
        self.assertEqual(set(lorax_loader(path, self.names())), set(shapes))
        self.assertNotIn('warning', self.said)

    def warned(self, config, saying, tensors=None, **more):
        """icma writes it, exits with 0, and warns."""
        folder = self.path('tree', 'cat')
        self.write(f'cat/{ADAPTER}', {**next(walk(1, lora_shapes(more.get('rank', 4)), 1)), **(tensors or {})})
        write_config(folder, **{'rank': 4, **config})
        self.pack()
        root = self.unpack('out', '--layout', 'peft', '-f')
        self.assertRegex(self.said, f'warning: .*{saying}')
        return os.path.join(root, 'cat')

    def test_what_they_refuse_is_warned_of(self):
        refused = [({'modules_to_save': ['lm_head']}, 'modules_to_save', {}), ({'use_dora': True}, 'DoRA', {}), ({'bias': 'all'}, 'biases', {}),
                   ({}, 'no LoRA factor', {'tensors': {'base_model.model.layers.0.q_proj.lora_magnitude_vector': torch.ones(16)}})]
        for config, saying, more in refused:
            with self.subTest(saying):
                path = self.warned(config, saying, more.get('tensors'))
                with self.assertRaises(Refused):
                    vllm_loader(path)

    def test_scales_and_ranks_that_they_mistake(self):
        path = self.warned({'alpha_pattern': {'layers.0.q_proj': 1}}, '1 of 2 modules have another alpha / rank')
        config = LoraConfig.from_pretrained(path)
        self.assertEqual(vllm_loader(path)['layers.0.q_proj'][2], config.lora_alpha / config.r)  # not 1 / r
        shapes = {n: (s[0] * (2 if 'layers.1' in n and 'lora_A' in n else 1), s[1]) for n, s in lora_shapes(4).items()}
        shapes = {n: (s[0], s[1] * (2 if 'layers.1' in n and 'lora_B' in n else 1)) for n, s in shapes.items()}
        path = self.warned({'rank_pattern': {'layers.1.q_proj': 8}}, 'several ranks', next(walk(2, shapes, 1)))
        with self.assertRaises(Refused):
            lorax_loader(path, ['layers.0.q_proj', 'layers.1.q_proj'])
        path = self.warned({'rank': 600}, 'vLLM takes at most 512', next(walk(2, lora_shapes(600), 1)))
        with self.assertRaises(Refused):
            vllm_loader(path, 512)

    def test_without_a_base_model(self):
        path = self.warned({'base_model_name_or_path': None}, 'names no base model')
        self.assertIsNone(vllm_resolver(os.path.dirname(path), 'org/base', 'cat'))
        self.unpack('out', '--layout', 'peft', '-f', '--base-model', 'org/base')
        self.assertNotIn('warning', self.said)
        self.assertIsNotNone(vllm_resolver(os.path.dirname(path), 'org/base', 'cat'))


if __name__ == '__main__':
    unittest.main()
