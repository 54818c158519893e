#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The matrix of inputs: files that the real libraries write are packed, unpacked, and read again by the same library. Each row is packed
lossless, where every tensor must come back bit for bit, and bounded, where what the library loads must be near."""
import copy
import logging
import os
import struct
import tarfile
import unittest
import warnings
import zipfile

import torch
import transformers
from peft import (AdaLoraConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftModel, PromptTuningConfig, get_peft_model,
                  get_peft_model_state_dict)
from safetensors.torch import load_file, save_file

from common import ADAPTER, Case, adapters, bits, example_model, layout, relative_error

warnings.simplefilter('ignore')
logging.disable(logging.WARNING)
transformers.logging.set_verbosity_error()
ATTENTION = ['q_proj', 'v_proj']


def fill(parameters, seed=3):
    """Numbers as after some training: zeros, which adapters start with, would show nothing."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        with torch.no_grad():
            parameter.copy_((0.05 * torch.randn(parameter.shape, generator=draw)).to(parameter.dtype))


def trainable(model):
    return [p for _, p in sorted(model.named_parameters()) if p.requires_grad]


def safetensors_below(folder):
    return sorted(os.path.relpath(os.path.join(here, f), folder) for here, _, files in os.walk(folder) for f in files
                  if f.endswith('.safetensors'))


class Matrix(Case):
    def round_trip(self, tree, tier, *words):
        out = self.path(f'back-{tier}')
        self.icma('pack', tree, '-o', self.path(f'{tier}.icma'), '--tier', tier)
        self.icma('verify', self.path(f'{tier}.icma'), '--deep', '--against', tree)
        self.icma('unpack', self.path(f'{tier}.icma'), '-C', out, *words)
        return out

    def assert_same_file(self, back, original):
        self.assertEqual(layout(back), layout(original))
        with open(back, 'rb') as a, open(original, 'rb') as b:
            self.assertEqual(a.read(), b.read(), original)

    def assert_near(self, back, original, most=0.2):
        (tensors, metadata), expected = layout(back), layout(original)
        # Hashes of kohya's files are told anew: of the bytes that are there.
        self.assertEqual((tensors, {k: v for k, v in metadata.items() if not k.startswith('sshs_')}), expected)
        a, b = load_file(back), load_file(original)
        for name in b:
            if b[name].dim() == 0 or not b[name].is_floating_point():
                self.assertEqual(bits(a[name]), bits(b[name]), name)  # kohya's alpha, counters: exact
            else:
                self.assertLess(relative_error(a[name], b[name]), most, name)

    def whole(self, tree, load):
        """Both tiers of a tree whose files come back where they were; `load` is the library's reader of its root."""
        for tier, check in (('lossless', self.assert_same_file), ('bounded', self.assert_near)):
            back = self.round_trip(tree, tier, '--checkpoint', 'all')
            self.assertEqual(safetensors_below(back), safetensors_below(tree))
            for name in safetensors_below(tree):
                check(os.path.join(back, name), os.path.join(tree, name))
            load(back)
        return back


class Peft(Matrix):
    configs = {
        'lora': LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION),
        'rslora': LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION, use_rslora=True),
        'dora': LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION, use_dora=True),
        'patterns': LoraConfig(r=4, lora_alpha=8, target_modules=[*ATTENTION, 'up_proj'], rank_pattern={'up_proj': 2},
                               alpha_pattern={'v_proj': 32}),
        'embeddings': LoraConfig(r=4, target_modules=['embed_tokens', 'q_proj']),
        'saved': LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=['norm']),
        'bias': LoraConfig(r=4, target_modules=ATTENTION, bias='lora_only'),
        'adalora': AdaLoraConfig(init_r=4, target_r=2, target_modules=ATTENTION),
        'loha': LoHaConfig(r=4, target_modules=ATTENTION),
        'lokr': LoKrConfig(r=4, target_modules=ATTENTION),
        'ia3': IA3Config(target_modules=['k_proj', 'down_proj'], feedforward_modules=['down_proj']),
        'oft': OFTConfig(r=4, target_modules=ATTENTION),
        'prompt': PromptTuningConfig(num_virtual_tokens=4, task_type='CAUSAL_LM'),
    }

    def load(self, folder):
        """As it comes, with nothing left over and nothing missing."""
        model = PeftModel.from_pretrained(example_model(), folder)
        stored, loaded = load_file(os.path.join(folder, ADAPTER)), get_peft_model_state_dict(model)
        self.assertEqual(set(stored), set(loaded))
        for name in stored:
            self.assertEqual(bits(stored[name]), bits(loaded[name].detach()), name)
        return model

    def save(self, name, config):
        model = get_peft_model(example_model(), copy.deepcopy(config))
        fill(trainable(model))
        model.save_pretrained(self.path('in', name))
        return model

    def row(self, name):
        self.save(name, self.configs[name])
        self.whole(self.path('in'), lambda back: self.load(os.path.join(back, name)))

    def test_named_adapters(self):
        model = self.save('default', self.configs['lora'])
        model.add_adapter('second', LoraConfig(r=2, target_modules=['q_proj']))
        model.set_adapter('second')
        fill(trainable(model), 5)
        model.save_pretrained(self.path('in', 'default'))
        self.assertEqual(adapters(self.path('in')), ['default', 'default/second'])
        for tier, check in (('lossless', self.assert_same_file), ('bounded', self.assert_near)):
            back = self.round_trip(self.path('in', 'default'), tier)
            for task, original in (('default', 'default'), ('second', 'default/second')):
                check(os.path.join(back, task, ADAPTER), self.path('in', original, ADAPTER))
                self.load(os.path.join(back, task))

    def test_shards(self):
        """transformers writes them, and PEFT reads none: what comes back is one file, which it reads."""
        model = example_model()
        model.add_adapter(self.configs['lora'])
        fill(trainable(model))
        whole = {k: v.clone() for k, v in get_peft_model_state_dict(model).items()}
        model.save_pretrained(self.path('in', 'cat'), max_shard_size='20KB')
        shards = [f for f in os.listdir(self.path('in', 'cat')) if '-of-' in f]
        self.assertGreater(len(shards), 1)
        back = self.round_trip(self.path('in'), 'lossless')
        self.assertEqual(safetensors_below(back), ['cat/' + ADAPTER])
        loaded = load_file(os.path.join(back, 'cat', ADAPTER))
        self.assertEqual({k: bits(v) for k, v in loaded.items()},
                         {f'base_model.model.{k}' if f'base_model.model.{k}' in loaded else k: bits(v) for k, v in whole.items()})
        self.load(os.path.join(back, 'cat'))
        self.load(os.path.join(self.round_trip(self.path('in'), 'bounded'), 'cat'))

    def test_trainer(self):
        """A tree of transformers' Trainer, whose own adapter is the last checkpoint once more."""
        model = get_peft_model(example_model(), LoraConfig(r=4, target_modules=ATTENTION))
        tokens = torch.arange(8 * 16).reshape(8, 16) % 256
        data = [{'input_ids': row, 'labels': row} for row in tokens]
        root = self.path('in', 'cat')
        arguments = transformers.TrainingArguments(root, max_steps=4, save_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True,
                                                   disable_tqdm=True)
        arguments.dataloader_prefetch_factor = 2  # torch 1.13 wants its own default here
        trainer = transformers.Trainer(model, arguments, train_dataset=data)
        trainer.train()
        trainer.save_model(root)
        self.assertEqual(adapters(self.path('in')), ['cat', 'cat/checkpoint-2', 'cat/checkpoint-4'])
        self.assertIn('byte for byte: stored once', self.icma('pack', self.path('in'), '-n'))
        back = self.round_trip(self.path('in'), 'lossless')
        self.assertEqual(safetensors_below(back), ['cat/' + ADAPTER])
        self.assert_same_file(os.path.join(back, 'cat', ADAPTER), os.path.join(root, ADAPTER))
        self.load(os.path.join(back, 'cat'))
        self.icma('unpack', self.path('lossless.icma'), '--checkpoint', 'all', '-C', self.path('all'))
        for step in (2, 4):
            self.load(self.path('all', 'cat', f'checkpoint-{step}'))

    def test_the_same_in_archives(self):
        for name in ('lora', 'dora', 'loha'):
            self.save(name, self.configs[name])
        with tarfile.open(self.path('in.tar.gz'), 'w:gz') as archive:
            archive.add(self.path('in'), '.')
        with zipfile.ZipFile(self.path('in.zip'), 'w') as archive:
            for here, _, files in os.walk(self.path('in')):
                for f in files:
                    archive.write(os.path.join(here, f), os.path.relpath(os.path.join(here, f), self.path('in')))
        packed = []
        for given in ('in', 'in.tar.gz', 'in.zip'):
            self.icma('pack', self.path(given), '-o', self.path('x.icma'), '-f')
            with open(self.path('x.icma'), 'rb') as f:
                packed.append(f.read())
        self.assertEqual(packed[0], packed[1])
        self.assertEqual(packed[0], packed[2])


for _name in Peft.configs:
    setattr(Peft, f'test_{_name}', lambda self, name=_name: self.row(name))


def small_unet():
    from diffusers import UNet2DConditionModel
    torch.manual_seed(5)
    return UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8,
                                down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'), up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
                                cross_attention_dim=16, attention_head_dim=8).eval()


class Diffusers(Matrix):
    def load(self, folder, name=None):
        from diffusers.loaders import LoraLoaderMixin
        unet = small_unet()
        before = self.image(unet)
        state, alphas = LoraLoaderMixin.lora_state_dict(folder, weight_name=name) if name else LoraLoaderMixin.lora_state_dict(folder)
        LoraLoaderMixin.load_lora_into_unet(state, alphas, unet)
        after = self.image(unet)
        self.assertGreater(relative_error(after, before), 1e-4)
        return after

    @staticmethod
    def image(unet):
        with torch.no_grad():
            draw = torch.Generator().manual_seed(1)
            return unet(torch.randn(1, 4, 8, 8, generator=draw), 10, torch.randn(1, 3, 16, generator=draw)).sample

    def state(self, rank=4):
        unet = small_unet()
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=['to_q', 'to_k', 'to_v', 'to_out.0']))
        fill(trainable(unet))
        return {k: v.clone() for k, v in get_peft_model_state_dict(unet).items()}

    def check(self, file):
        original = self.load(self.path('in', 'cat'), file)
        back = self.whole(self.path('in'), lambda folder: None)
        self.assertLess(relative_error(self.load(os.path.join(back, 'cat'), file), original), 0.05)

    def test_new_keys(self):
        from diffusers.loaders import LoraLoaderMixin
        LoraLoaderMixin.save_lora_weights(self.path('in', 'cat'), unet_lora_layers=self.state())
        self.assertTrue(all('.lora_A.' in k or '.lora_B.' in k for k in load_file(self.path('in', 'cat', 'pytorch_lora_weights.safetensors'))))
        self.check('pytorch_lora_weights.safetensors')

    def test_old_keys(self):
        from diffusers.loaders import LoraLoaderMixin
        from diffusers.utils import convert_state_dict_to_diffusers
        LoraLoaderMixin.save_lora_weights(self.path('in', 'cat'), unet_lora_layers=convert_state_dict_to_diffusers(self.state()))
        self.assertTrue(all('lora' in k and ('.down.' in k or '.up.' in k) for k in load_file(self.path('in', 'cat', 'pytorch_lora_weights.safetensors'))))
        self.check('pytorch_lora_weights.safetensors')

    def test_kohya(self):
        """Its documented layout, with its metadata, alphas of no dimension and epochs in the names; diffusers reads it."""
        folder = self.path('in', 'cat')
        os.makedirs(folder)
        for epoch in (1, 2):
            tensors = {}
            for name, value in self.state().items():
                stem = 'lora_unet_' + name.split('.lora_')[0].replace('.', '_')
                tensors[f'{stem}.lora_{"down" if ".lora_A." in name else "up"}.weight'] = (value * (1 + 0.01 * epoch)).half()
                tensors[f'{stem}.alpha'] = torch.tensor(2.0, dtype=torch.float16)
            save_file(tensors, os.path.join(folder, f'cat-{epoch:06}.safetensors'),
                      {'ss_network_module': 'networks.lora', 'ss_network_dim': '4', 'ss_network_alpha': '2', 'ss_epoch': str(epoch)})
        original = self.load(folder, 'cat-000002.safetensors')
        pairs = self.icma_json('pack', self.path('in'), '-n')['groups'][0]['pairs']
        self.assertEqual(pairs, len(tensors) // 3)
        for tier, check in (('lossless', self.assert_same_file), ('bounded', self.assert_near)):
            back = self.round_trip(self.path('in'), tier, '--checkpoint', 'all')
            found = [f for f in safetensors_below(back)]
            self.assertEqual(len(found), 2, found)
            for epoch, name in zip((1, 2), sorted(found)):
                check(os.path.join(back, name), os.path.join(folder, f'cat-{epoch:06}.safetensors'))
        last = os.path.join(back, sorted(found)[-1])
        self.assertLess(relative_error(self.load(os.path.dirname(last), os.path.basename(last)), original), 0.05)


class Lycoris(Matrix):
    """LyCORIS writes and reads; a plain file, named after its task."""

    @staticmethod
    def network(algo):
        from lycoris import LycorisNetwork, create_lycoris
        torch.manual_seed(7)
        net = torch.nn.Module()
        net.body = torch.nn.Sequential(torch.nn.Linear(48, 32), torch.nn.ReLU(), torch.nn.Linear(32, 48))
        LycorisNetwork.apply_preset({'target_module': ['Sequential'], 'target_name': []})
        more = {'dylora': {'block_size': 2}, 'lokr': {'factor': 4}}.get(algo, {})
        lycoris = create_lycoris(net, 1.0, linear_dim=4, linear_alpha=2.0, algo=algo, **more)
        lycoris.apply_to()
        return net.body, lycoris

    def row(self, algo, pairs, reader=None):
        """`reader`: the kind of network that LyCORIS reads such a file with."""
        net, lycoris = self.network(algo)
        fill(p for _, p in sorted(lycoris.named_parameters()))
        os.makedirs(self.path('in'))
        lycoris.save_weights(self.path('in', 'cat.safetensors'), torch.float32, {'ss_network_module': 'lycoris.kohya'})
        self.assertEqual(self.icma_json('pack', self.path('in'), '-n')['groups'][0]['pairs'], pairs)
        for tier, check, most in (('lossless', self.assert_same_file, 0), ('bounded', self.assert_near, 0.1)):
            back = self.round_trip(self.path('in'), tier)
            name, = safetensors_below(back)
            check(os.path.join(back, name), self.path('in', 'cat.safetensors'))
            if reader:
                original = self.read(reader, self.path('in', 'cat.safetensors'))
                self.assertLessEqual(relative_error(self.read(reader, os.path.join(back, name)), original), most)

    def read(self, algo, path):
        """What the network makes of a line of numbers, with these weights and no other."""
        x = torch.linspace(-1, 1, 96).reshape(2, 48)
        net, lycoris = self.network(algo)
        with torch.no_grad():
            before = net(x)
            self.assertEqual(lycoris.load_weights(path), {})
            after = net(x)
        self.assertGreater(relative_error(after, before), 1e-4)
        return after

    def test_lora(self):
        self.row('lora', 2, 'lora')

    def test_loha(self):
        self.row('loha', 4, 'loha')

    def test_lokr(self):
        self.row('lokr', 2, 'lokr')

    def test_dylora(self):
        self.row('dylora', 2)  # once written it is a LoRA; one process cannot make two such networks

    def test_full(self):
        self.row('full', 0)  # 2.0.2 writes "diff" and reads "weight"

    def test_oft(self):
        self.row('diag-oft', 0)  # likewise "oft_diag" and "oft_blocks"


class Dtypes(Matrix):
    def test_mixed(self):
        """F32, F16, BF16, fp8 and integers in one file; what is not modelled is kept bit for bit."""
        draw = torch.Generator().manual_seed(9)
        data, header, at = b'', {}, 0
        for name, dtype, shape, width in (('m.0.lora_A.weight', 'F32', [4, 24], 4), ('m.0.lora_B.weight', 'BF16', [16, 4], 2),
                                          ('m.1.lora_A.weight', 'F8_E4M3', [4, 24], 1), ('m.1.lora_B.weight', 'F8_E5M2', [16, 4], 1),
                                          ('m.2.lora_A.weight', 'F16', [4, 24], 2), ('m.2.lora_B.weight', 'I8', [16, 4], 1),
                                          ('step', 'I64', [], 8)):
            count = 1
            for d in shape:
                count *= d
            if dtype in ('F32', 'F16', 'BF16'):
                values = 0.1 * torch.randn(count, generator=draw)
                part = bits(values.to({'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16}[dtype]))
            else:
                part = torch.randint(0, 120, (count * width,), generator=draw, dtype=torch.uint8).numpy().tobytes()
            header[name] = {'dtype': dtype, 'shape': shape, 'data_offsets': [at, at + len(part)]}
            data, at = data + part, at + len(part)
        import json
        text = json.dumps(header).encode()
        os.makedirs(self.path('in'))
        with open(self.path('in', 'cat.safetensors'), 'wb') as f:
            f.write(struct.pack('<Q', len(text)) + text + data)
        for tier in ('lossless', 'bounded'):
            back = self.round_trip(self.path('in'), tier)
            name, = safetensors_below(back)
            with open(os.path.join(back, name), 'rb') as f:
                got = f.read()
            self.assertEqual(got[:8 + len(text)], struct.pack('<Q', len(text)) + text)
            for tensor, about in header.items():
                if tier == 'lossless' or about['dtype'] in ('F8_E4M3', 'F8_E5M2', 'I8', 'I64'):
                    begin, end = about['data_offsets']
                    self.assertEqual(got[8 + len(text) + begin:8 + len(text) + end], data[begin:end], tensor)


if __name__ == '__main__':
    unittest.main(verbosity=1)
