#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""icma unpack --layout, --dtype and --format: names, configurations, casts and hashes that other programs want; every tensor is accounted for."""
import hashlib
import io
import json
import math
import os
import pathlib
import random
import struct
import tarfile
import unittest
import zipfile

from harness import CONFIG, QUICK, Case, files_below, floats, icma, lora, main, safetensors, write_adapter, write_tree

MODEL, CONFIG_NAME = 'adapter_model.safetensors', 'adapter_config.json'
CLIP = ('lora_te_text_model_encoder_layers_0_self_attn_q_proj', 'lora_te_text_model_encoder_layers_0_mlp_fc1')


def read(image):
    """{name: (dtype, shape, bytes)} and the metadata."""
    image = image if isinstance(image, bytes) else pathlib.Path(image).read_bytes()
    length, = struct.unpack('<Q', image[:8])
    header, data = json.loads(image[8:8 + length]), image[8 + length:]
    metadata = header.pop('__metadata__', None)
    return {n: (t['dtype'], tuple(t['shape']), data[slice(*t['data_offsets'])]) for n, t in header.items()}, metadata


def data_of(image):
    return image[8 + struct.unpack('<Q', image[:8])[0]:]


def in_order(tensors):
    """As the safetensors package orders a file: the widest dtype first, then by name."""
    order = ['BOOL', 'U8', 'I8', 'I16', 'U16', 'F16', 'BF16', 'I32', 'U32', 'F32', 'F64', 'I64', 'U64']
    return dict(sorted(tensors.items(), key=lambda item: (-order.index(item[1][0]), item[0])))


def compact(tensors, metadata=None):
    """A file as the safetensors package writes it."""
    header, at = {}, 0
    if metadata is not None:
        header['__metadata__'] = metadata
    for name, (dtype, shape, data) in in_order(tensors).items():
        header[name] = {'dtype': dtype, 'shape': list(shape), 'data_offsets': [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
    text += b' ' * (-len(text) % 8)
    return struct.pack('<Q', len(text)) + text + b''.join(d for _, _, d in in_order(tensors).values())


def kohya_hashes(tensors, metadata):
    """kohya's rule (sd-scripts, precalculate_safetensors_hashes): of the file with those metadata entries alone that start with ss_."""
    image = compact(tensors, {k: v for k, v in metadata.items() if k.startswith('ss_')})
    return hashlib.sha256(data_of(image)).hexdigest(), hashlib.sha256(image[0x100000:0x110000]).hexdigest()[:8]


def kohya_tensors(seed, epoch, modules=CLIP, rank=4, width=16, alpha=2.0, ranks=None, alphas=None):
    tensors = {}
    for module in modules:
        r, a = (ranks or {}).get(module, rank), (alphas or {}).get(module, alpha)
        for factor, shape in (('lora_down', (r, width)), ('lora_up', (width, r))):
            draw, drift = random.Random(f'{seed} {module} {factor}'), random.Random(f'{seed} {module} {factor} {epoch}')
            count = shape[0] * shape[1]
            tensors[f'{module}.{factor}.weight'] = ('F32', shape, floats([draw.gauss(0, 0.1) + drift.gauss(0, 0.003) for _ in range(count)]))
        tensors[f'{module}.alpha'] = ('F32', (), floats([a]))
    return tensors


def kohya_file(tensors, epoch=1, hashes=True, **more):
    metadata = {'ss_epoch': str(epoch), 'ss_steps': str(100 * epoch), 'ss_sd_model_name': 'clip-test', 'ss_tag_frequency': '{"a \\"b\\" \u00e9\n": 3}', **more}
    if hashes:
        metadata['sshs_model_hash'], metadata['sshs_legacy_hash'] = kohya_hashes(tensors, metadata)
    return compact(tensors, metadata)


class Layouts(Case):
    def pack(self, files, *words):
        """Packs {path: image} and returns the archive."""
        for path, image in files.items():
            (self.here / 'tree' / path).parent.mkdir(parents=True, exist_ok=True)
            (self.here / 'tree' / path).write_bytes(image if isinstance(image, bytes) else image.encode())
        self.packed_words = self.run_icma(0, 'pack', 'tree', '-o', 'b.icma', *QUICK, *words).words
        return self.here / 'b.icma'

    def unpack(self, *words, code=0, folder='out'):
        self.result = self.run_icma(code, 'unpack', 'b.icma', '-C', folder, *words)
        return self.here / folder

    def out(self, path, folder='out'):
        return (self.here / folder / path).read_bytes()


class Original(Layouts):
    def test_plain_files_get_their_names_back(self):
        names = {'style.safetensors': None, 'style-000002.safetensors': 2, 'style-000010.safetensors': 10}
        self.pack({n: kohya_file(kohya_tensors('s', e or 11), e or 11) for n, e in names.items()}, '--tier', 'lossless')
        self.unpack('--checkpoint', 'all')
        self.assertEqual(files_below(self.here / 'out'), sorted(names))
        for name in names:
            self.assertEqual(self.out(name), (self.here / 'tree' / name).read_bytes(), name)
        self.unpack('--checkpoint', '2', folder='two')
        self.assertEqual(files_below(self.here / 'two'), ['style-000002.safetensors'])
        self.unpack(folder='last')
        self.assertEqual(files_below(self.here / 'last'), ['style.safetensors'])

    def test_names_by_step_and_of_diffusers(self):
        self.pack({'style-step00000100.safetensors': kohya_file(kohya_tensors('s', 1)), 'style-step00000200.safetensors': kohya_file(kohya_tensors('s', 2), 2)})
        self.unpack('--checkpoint', 'all')
        self.assertEqual(files_below(self.here / 'out'), ['style-step00000100.safetensors', 'style-step00000200.safetensors'])
        tensors = {n.replace('base_model.model.', 'text_encoder.'): t for n, t in read(lora('t', 1))[0].items()}
        write_adapter(self.here / 'other', compact(tensors), config=False)
        (self.here / 'other' / MODEL).rename(self.here / 'other' / 'pytorch_lora_weights.safetensors')
        self.run_icma(0, 'pack', 'other', '-o', 'b.icma', '-f', *QUICK)
        self.unpack(folder='diffusers')
        self.assertEqual(files_below(self.here / 'diffusers'), ['other/pytorch_lora_weights.safetensors'])

    def test_a_plain_file_of_peft_names(self):
        self.pack({'cat.safetensors': lora('cat', 1), 'dog.safetensors': lora('dog', 1)})
        self.unpack()
        self.assertEqual(files_below(self.here / 'out'), ['cat.safetensors', 'dog.safetensors'])

    def test_a_folder_added_to_plain_files(self):
        self.pack({'cat.safetensors': lora('cat', 1), 'bird.safetensors': lora('bird', 1)})
        write_adapter(self.here / 'more/dog', lora('dog', 1))
        self.run_icma(0, 'add', 'b.icma', 'more/dog')
        self.unpack()
        self.assertEqual(files_below(self.here / 'out'), ['bird.safetensors', 'cat.safetensors', f'dog/{CONFIG_NAME}', f'dog/{MODEL}'])

    def test_folders_of_kohyas_names_keep_what_is_beside(self):
        """Side files have the names of one another: each needs a folder, whatever the tensors are called."""
        self.pack({'s.safetensors': kohya_file(kohya_tensors('s', 1)), **{f'{t}/{MODEL}': kohya_file(kohya_tensors(t, 1)) for t in ('cat', 'dog')},
                   'cat/README.md': 'of the cat', 'dog/README.md': 'of the dog'}, '--tier', 'lossless')
        folders = [f'{t}/{n}' for t in ('cat', 'dog') for n in ('README.md', MODEL)]
        self.unpack()
        self.assertEqual(files_below(self.here / 'out'), [*folders, 's.safetensors'])
        self.assertEqual([self.out(f'{t}/README.md') for t in ('cat', 'dog')], [b'of the cat', b'of the dog'])
        self.run_icma(0, 'unpack', 'b.icma', '--format', 'tar', '-o', 'all.tar')
        with tarfile.open(self.here / 'all.tar') as archive:
            self.assertEqual(sorted(archive.getnames()), sorted([*folders, 's.safetensors']))
        self.unpack('--layout', 'kohya', folder='kohya')
        self.assertEqual(files_below(self.here / 'kohya'), ['cat.safetensors', 'dog.safetensors', 's.safetensors'])
        self.assertIn('"README.md" is left out', self.result.words)

    def test_names_are_guessed_where_files_of_a_group_differ(self):
        """One group, packed from plain files of two conventions: kohya's metadata tells which."""
        self.pack({'one-000003.safetensors': kohya_file(kohya_tensors('1', 3), 3), 'two-step00000400.safetensors': kohya_file(kohya_tensors('2', 4), 4)})
        self.unpack()
        self.assertEqual(files_below(self.here / 'out'), ['one-000003.safetensors', 'two-step00000400.safetensors'])

    def test_existing_files(self):
        self.pack({'style.safetensors': kohya_file(kohya_tensors('s', 1))})
        (self.here / 'out').mkdir()
        (self.here / 'out/style.safetensors').write_bytes(b'precious')
        self.fails(8, 'unpack', 'b.icma', '-C', 'out', saying='out/style.safetensors')
        self.unpack('-k')
        self.assertEqual(self.out('style.safetensors'), b'precious')
        self.unpack('-f')
        self.assertNotEqual(self.out('style.safetensors'), b'precious')


class Hashes(Layouts):
    def check(self, image):
        tensors, metadata = read(image)
        self.assertEqual((metadata['sshs_model_hash'], metadata['sshs_legacy_hash']), kohya_hashes(tensors, metadata))
        return metadata

    def test_made_anew_after_a_lossy_decode(self):
        original = kohya_file(kohya_tensors('s', 1), 1)
        self.pack({'style-000001.safetensors': original, 'style.safetensors': kohya_file(kohya_tensors('s', 2), 2)})
        self.assertIn('hashes of the weights in the metadata of 2 files', self.packed_words)
        self.unpack('--checkpoint', 'all')
        self.assertIn('hashes in the metadata of 2 files were made anew', self.result.words)
        metadata = self.check(self.out('style-000001.safetensors'))
        self.assertNotEqual(metadata['sshs_model_hash'], read(original)[1]['sshs_model_hash'])
        self.assertEqual({k: v for k, v in metadata.items() if not k.startswith('sshs')},
                         {k: v for k, v in read(original)[1].items() if not k.startswith('sshs')})

    def test_of_a_file_over_a_mebibyte(self):
        """There the legacy hash is of weights, and where it is depends on the length of the header."""
        self.pack({'big.safetensors': kohya_file(kohya_tensors('b', 1, width=20000), 1)})
        self.unpack()
        self.assertNotEqual(self.check(self.out('big.safetensors'))['sshs_legacy_hash'], hashlib.sha256(b'').hexdigest()[:8])

    def test_lossless_and_verbatim_come_back_as_they_were(self):
        original = kohya_file(kohya_tensors('s', 1), 1, **{'modelspec.hash_sha256': '0xfeed'})
        self.pack({'style.safetensors': original}, '--tier', 'lossless')
        self.assertNotIn('hashes', self.packed_words)
        self.unpack()
        self.assertEqual(self.out('style.safetensors'), original)
        self.assertNotIn('hashes', self.result.words)
        self.unpack('--dtype', 'bf16', folder='cast')
        metadata = self.check(self.out('style.safetensors', 'cast'))
        self.assertEqual(metadata['modelspec.hash_sha256'], '0x' + hashlib.sha256(data_of(self.out('style.safetensors', 'cast'))).hexdigest())

    def test_left_out_of_other_layouts_and_of_the_archive(self):
        hashes = {'modelspec.hash_sha256': '0x' + '0123456789abcdef' * 4}
        self.pack({'style.safetensors': kohya_file(kohya_tensors('s', 1), 1, **hashes)})
        archive = (self.here / 'b.icma').read_bytes()
        self.unpack('--layout', 'peft')
        self.assertEqual([k for k in read(self.out(f'style/{MODEL}'))[1] if 'hash' in k], [])
        self.unpack(folder='back')
        metadata = self.check(self.out('style.safetensors', 'back'))
        self.assertNotIn('modelspec.hash_sha256', metadata)
        document = self.run_icma(0, 'unpack', 'b.icma', '-C', 'json', '--json').json
        self.assertEqual((document['hashes_made'], document['hashes_dropped']), (1, 0))

    def test_each_hash_costs_the_archive_nothing(self):
        """Files that differ in their hashes alone share one header."""
        plain = {f'{n}.safetensors': compact(kohya_tensors(n, 1), {'ss_a': 'b'}) for n in 'abcdefgh'}
        self.pack(plain)
        size = (self.here / 'b.icma').stat().st_size
        with_hashes = {}
        for name, image in plain.items():
            tensors, metadata = read(image)
            metadata['sshs_model_hash'], metadata['sshs_legacy_hash'] = kohya_hashes(tensors, metadata)
            with_hashes[name] = compact(tensors, metadata)
        self.pack(with_hashes, '-f')
        self.assertEqual((self.here / 'b.icma').stat().st_size, size)
        self.run_icma(0, 'verify', 'b.icma', '--deep', '--against', 'tree')


class Peft(Layouts):
    def test_from_kohya(self):
        tensors = kohya_tensors('s', 1)
        self.pack({'style.safetensors': kohya_file(tensors)}, '--tier', 'lossless')
        self.unpack('--layout', 'peft')
        self.assertEqual(files_below(self.here / 'out'), [f'style/{CONFIG_NAME}', f'style/{MODEL}'])
        new, _ = read(self.out(f'style/{MODEL}'))
        wanted = {}
        for module, path in zip(CLIP, ('text_model.encoder.layers.0.self_attn.q_proj', 'text_model.encoder.layers.0.mlp.fc1')):
            wanted[f'base_model.model.{path}.lora_A.weight'] = tensors[f'{module}.lora_down.weight']
            wanted[f'base_model.model.{path}.lora_B.weight'] = tensors[f'{module}.lora_up.weight']
        self.assertEqual(new, wanted)
        config = json.loads(self.out(f'style/{CONFIG_NAME}'))
        self.assertEqual((config['r'], config['lora_alpha'], config['peft_type'], config['bias'], config['base_model_name_or_path']),
                         (4, 2, 'LORA', 'none', 'clip-test'))
        self.assertEqual(config['target_modules'], ['text_model.encoder.layers.0.mlp.fc1', 'text_model.encoder.layers.0.self_attn.q_proj'])
        self.assertEqual((config['rank_pattern'], config['alpha_pattern'], config['modules_to_save']), ({}, {}, None))

    def test_ranks_and_alphas_by_module(self):
        modules = [f'lora_te_text_model_encoder_layers_{i}_mlp_fc1' for i in range(3)]
        tensors = kohya_tensors('s', 1, modules, ranks={modules[1]: 2}, alphas={modules[2]: 0.1})
        del tensors[f'{modules[0]}.alpha']  # kohya takes the rank then
        self.pack({'style.safetensors': kohya_file(tensors)}, '--tier', 'lossless')
        self.unpack('--layout', 'peft')
        config = json.loads(self.out(f'style/{CONFIG_NAME}'))
        path = 'text_model.encoder.layers.{}.mlp.fc1'.format
        of = {i: (config['rank_pattern'].get(path(i), config['r']), config['alpha_pattern'].get(path(i), config['lora_alpha'])) for i in range(3)}
        self.assertEqual({i: (r, struct.unpack('<f', floats([a]))[0]) for i, (r, a) in of.items()},
                         {0: (4, 4.0), 1: (2, 2.0), 2: (4, struct.unpack('<f', floats([0.1]))[0])})

    def test_a_pipeline_becomes_a_folder_for_each_model(self):
        modules = ['lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0', 'lora_unet_mid_block_resnets_1_time_emb_proj', *CLIP]
        self.pack({'style.safetensors': kohya_file(kohya_tensors('s', 1, modules))})
        self.unpack('--layout', 'peft')
        self.assertEqual(files_below(self.here / 'out'), [f'style/{c}/{f}' for c in ('text_encoder', 'unet') for f in (CONFIG_NAME, MODEL)])
        unet, _ = read(self.out(f'style/unet/{MODEL}'))
        self.assertEqual(sorted(unet), sorted(f'base_model.model.{m}.lora_{f}.weight' for f in 'AB' for m in
                                              ('down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0', 'mid_block.resnets.1.time_emb_proj')))
        document = self.run_icma(0, 'unpack', 'b.icma', '-C', 'json', '--layout', 'peft', '--json').json
        self.assertEqual([(a['component'], a['path']) for a in document['adapters']],
                         [(c, f'json/style/{c}/{MODEL}') for c in ('unet', 'text_encoder')])
        self.fails(2, 'unpack', 'b.icma', '--layout', 'peft', '-o', 'one', saying='folder')

    def test_sdxl(self):
        """kohya names SDXL's UNet by its first implementation."""
        pairs = {'lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q': 'down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q',
                 'lora_unet_input_blocks_3_0_op': 'down_blocks.0.downsamplers.0.conv', 'lora_unet_input_blocks_7_0_in_layers_2': 'down_blocks.2.resnets.0.conv1',
                 'lora_unet_middle_block_1_proj_in': 'mid_block.attentions.0.proj_in', 'lora_unet_middle_block_2_out_layers_3': 'mid_block.resnets.1.conv2',
                 'lora_unet_output_blocks_5_1_proj_out': 'up_blocks.1.attentions.2.proj_out', 'lora_unet_output_blocks_2_2_conv': 'up_blocks.0.upsamplers.0.conv',
                 'lora_unet_output_blocks_8_0_skip_connection': 'up_blocks.2.resnets.2.conv_shortcut', 'lora_unet_label_emb_0_2': 'add_embedding.linear_2',
                 'lora_unet_time_embed_0': 'time_embedding.linear_1'}
        tensors = kohya_tensors('x', 1, [*pairs, 'lora_te1_text_model_encoder_layers_0_mlp_fc2', 'lora_te2_text_model_encoder_layers_31_self_attn_out_proj'])
        self.pack({'xl.safetensors': kohya_file(tensors)}, '--tier', 'lossless')
        self.unpack('--layout', 'peft')
        unet, _ = read(self.out(f'xl/unet/{MODEL}'))
        self.assertEqual({n[len('base_model.model.'):-len('.lora_A.weight')] for n in unet}, set(pairs.values()))
        for flat, path in pairs.items():
            self.assertEqual(unet[f'base_model.model.{path}.lora_A.weight'], tensors[f'{flat}.lora_down.weight'])
        self.assertEqual(set(files_below(self.here / 'out')), {f'xl/{c}/{f}' for c in ('unet', 'text_encoder', 'text_encoder_2') for f in (CONFIG_NAME, MODEL)})

    def test_from_diffusers(self):
        tensors = kohya_tensors('d', 1, ['unet.mid_block.attn1.processor.to_q_lora', 'unet.mid_block.attn1.processor.to_out_lora'])
        tensors = {n.replace('_lora.lora_', '_lora.'): t for n, t in tensors.items() if 'alpha' not in n}
        write_adapter(self.here / 'tree/old', compact(tensors), config=False)
        (self.here / 'tree/old' / MODEL).rename(self.here / 'tree/old/pytorch_lora_weights.safetensors')
        self.pack({})
        self.unpack('--layout', 'peft')
        new, _ = read(self.out(f'old/{MODEL}'))
        self.assertEqual(sorted(new), sorted(f'base_model.model.mid_block.attn1.{m}.lora_{f}.weight' for m in ('to_q', 'to_out.0') for f in 'AB'))
        config = json.loads(self.out(f'old/{CONFIG_NAME}'))
        self.assertEqual((config['r'], config['lora_alpha'], config['base_model_name_or_path']), (4, 4, None))

    def test_alphas_that_diffusers_keeps_in_the_metadata(self):
        tensors = {n.replace('base_model.model.', 'text_encoder.'): t for n, t in read(lora('t', 1))[0].items()}
        kept = {'text_encoder.r': 2, 'text_encoder.lora_alpha': 7, 'text_encoder.alpha_pattern': {'layers.0.v_proj': 3}, 'unet.lora_alpha': 100}
        (self.here / 'tree/x').mkdir(parents=True)
        (self.here / 'tree/x/pytorch_lora_weights.safetensors').write_bytes(compact(tensors, {'lora_adapter_metadata': json.dumps(kept)}))
        self.pack({})
        self.unpack('--layout', 'peft')
        config = json.loads(self.out(f'x/{CONFIG_NAME}'))
        self.assertEqual((config['lora_alpha'], config['alpha_pattern']), (3, {'layers.0.q_proj': 7}))

    def test_a_peft_tree_stays_as_it_is(self):
        write_tree(self.here / 'tree')
        self.pack({}, '--tier', 'lossless')
        self.unpack('--layout', 'peft', '--checkpoint', 'all')
        for path in (self.here / 'tree').rglob('adapter_*'):
            self.assertEqual(self.out(path.relative_to(self.here / 'tree')), path.read_bytes())
        self.unpack('--layout', 'peft', '--base-model', 'org/model', folder='named')
        config = json.loads(self.out(f'cat/{CONFIG_NAME}', 'named'))
        self.assertEqual(config, {**CONFIG, 'base_model_name_or_path': 'org/model'})

    def test_a_scale_that_nothing_tells(self):
        write_adapter(self.here / 'cat', lora('cat', 1), config=False)
        self.run_icma(0, 'pack', 'cat', '-o', 'b.icma', *QUICK)
        for layout in ('peft', 'kohya'):
            self.unpack('--layout', layout, folder=layout)
            self.assertIn('no adapter_config.json', self.result.words, layout)
        self.unpack()
        self.assertNotIn('adapter_config.json', self.result.words)

    def test_what_cannot_be_converted(self):
        for tail, shape, saying in (('lora_mid.weight', (4, 4, 3, 3), 'no partner'), ('dora_scale', (16, 1), 'DoRA'), ('bias', (16,), 'neither')):
            with self.subTest(tail):
                tensors = kohya_tensors('s', 1)
                tensors[f'{CLIP[0]}.{tail}'] = ('F32', shape, floats([0.5] * math.prod(shape)))
                self.pack({'style.safetensors': kohya_file(tensors)}, '-f')
                self.fails(6, 'unpack', 'b.icma', '--layout', 'peft', '-C', 'none', saying=saying)
                self.assertFalse((self.here / 'none').exists())
                result = self.fails(3, 'unpack', 'b.icma', '--layout', 'peft', '-C', tail, '--keep-going', saying=('left out', tail))
                self.assertEqual(len(read(self.out(f'style/{MODEL}', tail))[0]), 2 if 'mid' in tail else 4, result)
        self.pack({'style.safetensors': kohya_file(kohya_tensors('s', 1, ['lora_te_some_model_of_mine']))}, '-f')
        self.fails(6, 'unpack', 'b.icma', '--layout', 'peft', '-C', 'none', saying='flat name')
        self.run_icma(0, 'unpack', 'b.icma', '-C', 'as_it_was')

    def test_alphas_that_are_none(self):
        for value in (0.0, math.inf):
            self.pack({'style.safetensors': kohya_file(kohya_tensors('s', 1, alpha=value))}, '-f')
            self.fails(6, 'unpack', 'b.icma', '--layout', 'peft', '-C', 'none', saying=('.alpha', 'one finite number'))

    def test_lycoris_is_no_lora(self):
        """Factors of LoHa and LoKr come in pairs, and dW is not what a pair makes: nothing may be left to load as if it were."""
        loha = {f'hada_w{i}_{f}': s for i in (1, 2) for f, s in (('a', (16, 4)), ('b', (4, 16)))}
        lokr = {'lokr_w1': (4, 4), 'lokr_w2_a': (4, 2), 'lokr_w2_b': (2, 4)}
        for kind, factors in (('LOHA', loha), ('LOKR', lokr)):
            with self.subTest(kind):
                tensors = {f'{CLIP[0]}.{n}': ('F32', s, floats([0.5] * math.prod(s))) for n, s in factors.items()}
                image = kohya_file({**tensors, f'{CLIP[0]}.alpha': ('F32', (), floats([2.0]))})
                self.pack({'style.safetensors': image}, '-f')
                self.fails(6, 'unpack', 'b.icma', '--layout', 'peft', '-C', 'none', saying='LoHa and LoKr')
                self.fails(4, 'unpack', 'b.icma', '--layout', 'peft', '--keep-going', '-C', 'none', saying='nothing of')
                self.assertFalse((self.here / 'none').exists())
                (self.here / 'tree' / 'style.safetensors').unlink()
                tensors = {n.replace(CLIP[0], 'base_model.model.layers.0.fc1'): t for n, t in tensors.items()}
                self.pack({f'p/{MODEL}': compact(tensors), f'p/{CONFIG_NAME}': json.dumps({'peft_type': kind, 'alpha': 2, 'r': 4})}, '-f')
                self.unpack('--layout', 'peft', folder=kind)
                self.assertEqual(read(self.out(f'p/{MODEL}', kind))[0].keys(), tensors.keys())
                self.assertEqual(json.loads(self.out(f'p/{CONFIG_NAME}', kind))['peft_type'], kind)
                (self.here / 'tree' / 'p' / MODEL).unlink()


class Kohya(Layouts):
    def setUp(self):
        super().setUp()
        modules = ('model.layers.0.self_attn.q_proj', 'model.layers.1.mlp.down_proj')
        self.tensors = {}
        for flat, module in zip(CLIP, modules):
            for factor, name in (('lora_down', 'A'), ('lora_up', 'B')):
                self.tensors[f'base_model.model.{module}.lora_{name}.weight'] = kohya_tensors('p', 1)[f'{flat}.{factor}.weight']
        self.config = {**CONFIG, 'r': 4, 'lora_alpha': 6, 'alpha_pattern': {'layers.1.mlp.down_proj': 3}, 'base_model_name_or_path': 'org/base'}

    def write(self, **config):
        self.pack({f'cat/{MODEL}': compact(self.tensors, {'format': 'pt'}), f'cat/{CONFIG_NAME}': json.dumps({**self.config, **config})}, '--tier', 'lossless', '-f')

    def test_from_peft_and_back(self):
        self.write()
        self.unpack('--layout', 'kohya')
        self.assertEqual(files_below(self.here / 'out'), ['cat.safetensors'])
        new, metadata = read(self.out('cat.safetensors'))
        flat = ('lora_te_model_layers_0_self_attn_q_proj', 'lora_te_model_layers_1_mlp_down_proj')
        self.assertEqual(sorted(new), sorted(f'{m}.{t}' for m in flat for t in ('lora_down.weight', 'lora_up.weight', 'alpha')))
        self.assertEqual([new[f'{m}.alpha'] for m in flat], [('F32', (), floats([6.0])), ('F32', (), floats([3.0]))])
        self.assertEqual(metadata['ss_sd_model_name'], 'org/base')
        self.assertEqual((metadata['sshs_model_hash'], metadata['sshs_legacy_hash']), kohya_hashes(new, metadata))
        self.run_icma(0, 'pack', 'out', '-o', 'b.icma', '-f', '--tier', 'lossless', *QUICK)
        self.unpack('--layout', 'peft', folder='back')
        self.assertEqual(read(self.out(f'cat/{MODEL}', 'back'))[0], self.tensors)
        config = json.loads(self.out(f'cat/{CONFIG_NAME}', 'back'))
        path = 'model.layers.{}'.format
        self.assertEqual({m: config['alpha_pattern'].get(m, config['lora_alpha']) for m in (path('0.self_attn.q_proj'), path('1.mlp.down_proj'))},
                         {path('0.self_attn.q_proj'): 6, path('1.mlp.down_proj'): 3})
        self.assertEqual(config['base_model_name_or_path'], 'org/base')

    def test_patterns_that_are_expressions(self):
        for pattern in ('^model.layers.1.mlp.down_proj', r'layers\.\d+\.mlp\.down_proj', '(q|v)_proj'):
            self.write(alpha_pattern={pattern: 3})
            self.fails(6, 'unpack', 'b.icma', '--layout', 'kohya', '-C', 'none', saying=('alpha_pattern', pattern))
            self.unpack('--layout', 'peft', '-f')
            self.assertEqual(json.loads(self.out(f'cat/{CONFIG_NAME}'))['alpha_pattern'], {pattern: 3})
            self.assertIn('scale all modules by lora_alpha / r', self.result.words)

    def test_stabilised_scale_goes_into_alpha(self):
        self.write(use_rslora=True, alpha_pattern={})
        self.unpack('--layout', 'kohya')
        new, _ = read(self.out('cat.safetensors'))
        self.assertEqual(new['lora_te_model_layers_0_self_attn_q_proj.alpha'][2], floats([6 / 2 * 4]))  # alpha / sqrt(r) * r

    def test_what_cannot_be_converted(self):
        self.tensors['base_model.model.lm_head.weight'] = ('F32', (16, 16), floats([0.1] * 256))
        self.write(modules_to_save=['lm_head'])
        self.fails(6, 'unpack', 'b.icma', '--layout', 'kohya', saying='base_model.model.lm_head.weight')
        self.fails(3, 'unpack', 'b.icma', '--layout', 'kohya', '--keep-going', '-C', 'out', saying='lm_head')
        del self.tensors['base_model.model.lm_head.weight']
        self.tensors = {n.replace('mlp.down_proj', 'my_odd_part'): t for n, t in self.tensors.items()}
        self.write()
        self.fails(6, 'unpack', 'b.icma', '--layout', 'kohya', saying='my_odd_part')
        known, self.tensors = self.tensors, {n.replace('my_odd_part', 'mlp.gate.up_proj'): t for n, t in self.tensors.items()}
        self.write()  # flat, it is mlp.gate_up_proj as well
        self.fails(6, 'unpack', 'b.icma', '--layout', 'kohya', saying='mlp.gate.up_proj')
        self.tensors = known
        self.tensors = {n.replace('model.layers.1.my_odd_part', 'transformer_blocks.0.attn.to_q'): t for n, t in self.tensors.items()}
        self.write()
        self.fails(6, 'unpack', 'b.icma', '--layout', 'kohya', saying='another implementation')

    def test_two_tasks_that_want_one_name(self):
        for folder in ('cat/checkpoint-5', 'cat-000005'):
            write_adapter(self.here / 'tree' / folder, compact(self.tensors))
        self.pack({})
        self.fails(2, 'unpack', 'b.icma', '--layout', 'kohya', '--checkpoint', 'all', '-C', 'out', saying='cat-000005.safetensors')
        self.assertFalse((self.here / 'out').exists())
        self.unpack('--layout', 'kohya', folder='last')
        self.assertEqual(files_below(self.here / 'last'), ['cat-000005.safetensors', 'cat.safetensors'])

    def test_checkpoints_lie_side_by_side(self):
        for step in (5, 10):
            write_adapter(self.here / f'tree/cat/checkpoint-{step}', compact(self.tensors))
        self.pack({})
        self.unpack('--layout', 'kohya', '--checkpoint', 'all')
        self.assertEqual(files_below(self.here / 'out'), ['cat-000005.safetensors', 'cat-000010.safetensors'])
        self.unpack('--layout', 'kohya', folder='last')
        self.assertEqual(files_below(self.here / 'last'), ['cat.safetensors'])


def bf16(values):
    """Nearest, ties to even, in integers."""
    out = []
    for bits in struct.unpack(f'<{len(values)}I', floats(values)):
        out.append((bits + 0x7fff + (bits >> 16 & 1)) >> 16)
    return struct.pack(f'<{len(out)}H', *out)


class Casts(Layouts):
    def numbers(self, tensors):
        return {n: list(struct.unpack(f'<{len(d) // 4}f', d)) for n, (_, _, d) in tensors.items()}

    def test_bf16_and_f16(self):
        tensors = kohya_tensors('s', 1)
        tensors['extra'] = ('I64', (2,), struct.pack('<2q', 7, -7))
        image = kohya_file(tensors)
        self.pack({'style.safetensors': image}, '--tier', 'lossless')
        self.unpack('--dtype', 'bf16')
        self.assertIn('not the packed files any more', self.result.words)
        new, metadata = read(self.out('style.safetensors'))
        weights = {n: t for n, t in tensors.items() if n.endswith('.weight')}
        for name, values in self.numbers(weights).items():
            self.assertEqual(new[name], ('BF16', tensors[name][1], bf16(values)), name)
        self.assertEqual({n: t for n, t in new.items() if n not in weights}, {n: t for n, t in tensors.items() if n not in weights})  # alphas, integers
        self.assertEqual(metadata['ss_tag_frequency'], read(image)[1]['ss_tag_frequency'])
        self.unpack('--dtype', 'f16', '--layout', 'peft', '--keep-going', folder='half', code=3)
        half, _ = read(self.out(f'style/{MODEL}', 'half'))
        for name, values in self.numbers({n: t for n, t in weights.items() if CLIP[0] in n}).items():
            factor = 'A' if 'down' in name else 'B'
            self.assertEqual(half[f'base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_{factor}.weight'][2], struct.pack(f'<{len(values)}e', *values))
        self.unpack('--dtype', 'f32', folder='same')
        self.assertEqual(self.out('style.safetensors', 'same'), image)

    def test_overflow_is_counted(self):
        tensors = kohya_tensors('s', 1)
        name = f'{CLIP[0]}.lora_up.weight'
        values = list(self.numbers({name: tensors[name]})[name])
        values[:4] = [70000.0, -65520.0, 65519.0, math.inf]
        tensors[name] = ('F32', tensors[name][1], floats(values))
        self.pack({'style.safetensors': kohya_file(tensors)}, '--tier', 'lossless')
        document = self.run_icma(0, 'unpack', 'b.icma', '--dtype', 'f16', '--json', '-C', 'out')
        self.assertEqual((document.json['overflowed'], document.json['bound_void'], document.json['dtype'], document.json['cast_tensors']), (2, True, 'f16', 4))
        self.assertIn('2 weights became infinite', document.words)
        new, _ = read(self.out('style.safetensors'))
        self.assertEqual(struct.unpack('<4e', new[name][2][:8]), (math.inf, -math.inf, 65504.0, math.inf))

    def test_of_a_bounded_archive(self):
        self.pack({'style.safetensors': kohya_file(kohya_tensors('s', 1))})
        self.unpack('--dtype', 'bf16')
        self.assertIn('no error bound', self.result.words)
        self.fails(2, 'unpack', 'b.icma', '--dtype', 'f8', saying='f16')


class Archives(Layouts):
    def setUp(self):
        super().setUp()
        self.archive = self.bundle('b.icma')
        self.unpack('--checkpoint', 'all')
        self.wanted = {p: self.out(p) for p in files_below(self.here / 'out')}

    def members(self, image, kind):
        if kind == 'tar':
            with tarfile.open(fileobj=io.BytesIO(image)) as tar:
                self.assertEqual({(m.mtime, m.mode, m.uid, m.gid, m.uname, m.gname, m.type) for m in tar}, {(315532800, 0o644, 0, 0, '', '', tarfile.REGTYPE)})
                return [(m.name, tar.extractfile(m).read()) for m in tar]
        with zipfile.ZipFile(io.BytesIO(image)) as archive:
            self.assertIsNone(archive.testzip())
            self.assertEqual({(i.date_time, i.external_attr >> 16 & 0o7777) for i in archive.infolist()}, {((1980, 1, 1, 0, 0, 0), 0o644)})
            return [(i.filename, archive.read(i)) for i in archive.infolist()]

    def test_the_same_files_in_natural_order(self):
        order = [f'{t}/checkpoint-{s}/{f}' for t in ('bird', 'cat', 'dog') for s in (10, 20, 30, 100) for f in (CONFIG_NAME, MODEL)]
        for kind in ('tar', 'zip'):
            piped = self.run_icma(0, 'unpack', 'b.icma', '--checkpoint', 'all', '--format', kind, '-o', '-', env={'TZ': 'Asia/Tokyo'}).out
            self.run_icma(0, 'unpack', 'b.icma', '--checkpoint', 'all', '--format', kind, '-o', f'x.{kind}', env={'TZ': 'America/New_York', 'LC_ALL': 'C'})
            self.assertEqual((self.here / f'x.{kind}').read_bytes(), piped, kind)
            found = self.members(piped, kind)
            self.assertEqual([n for n, _ in found], order)
            self.assertEqual(dict(found), self.wanted)

    def test_layouts_and_tasks(self):
        self.pack({'größe.safetensors': kohya_file(kohya_tensors('s', 1)), '猫.safetensors': kohya_file(kohya_tensors('c', 1))}, '-f')
        for kind in ('tar', 'zip'):
            for locale in ('C', 'C.UTF-8'):
                image = self.run_icma(0, 'unpack', 'b.icma', '--format', kind, '--layout', 'peft', '-o', '-', env={'LC_ALL': locale}).out
                self.assertEqual([n for n, _ in self.members(image, kind)], [f'{t}/{f}' for t in ('größe', '猫') for f in (CONFIG_NAME, MODEL)], (kind, locale))
            image = self.run_icma(0, 'unpack', 'b.icma', '--format', kind, '--task', '猫', '-o', '-').out
            self.assertEqual([n for n, _ in self.members(image, kind)], ['猫.safetensors'])

    def test_whole_or_not_at_all(self):
        (self.here / 'x.tar').write_bytes(b'precious')
        self.fails(8, 'unpack', 'b.icma', '--format', 'tar', '-o', 'x.tar', saying='x.tar')
        self.run_icma(0, 'unpack', 'b.icma', '--format', 'tar', '-o', 'x.tar', '-k')
        self.assertEqual((self.here / 'x.tar').read_bytes(), b'precious')
        self.run_icma(0, 'unpack', 'b.icma', '--format', 'tar', '-o', 'x.tar', '-f')
        self.assertEqual(len(self.members((self.here / 'x.tar').read_bytes(), 'tar')), 6)
        image = bytearray(self.archive.read_bytes())
        before = files_below(self.here)
        sections = self.run_icma(0, 'info', 'b.icma', '--json', '-v').json['groups'] and self.run_icma(0, 'info', 'b.icma', '--json', '-v').json['section_list']
        last = [s for s in sections if s['kind'] == 'task'][-1]
        image[last['offset']] ^= 1
        (self.here / 'b.icma').write_bytes(image)
        self.fails(4, 'unpack', 'b.icma', '--format', 'zip', '-o', 'x.zip')
        self.assertEqual(files_below(self.here), before)
        self.fails(3, 'unpack', 'b.icma', '--format', 'zip', '-o', 'x.zip', '--keep-going')
        self.assertEqual(len(self.members((self.here / 'x.zip').read_bytes(), 'zip')), 4)

    def test_usage(self):
        self.fails(2, 'unpack', 'b.icma', '--format', 'tar', saying='-o')
        self.fails(2, 'unpack', 'b.icma', '--format', 'rar', '-o', 'x', saying='zip')
        self.fails(2, 'unpack', 'b.icma', '--layout', 'lycoris', saying='peft')
        self.fails(2, 'unpack', 'b.icma', '--base-model', 'x', saying='--layout')
        planned = self.run_icma(0, 'unpack', 'b.icma', '--format', 'tar', '-o', 'x.tar', '-n')
        self.assertIn(f'cat/{MODEL}', planned.text)
        self.assertFalse((self.here / 'x.tar').exists())

    @unittest.skipUnless(os.path.exists('/dev/full'), 'needs /dev/full')
    def test_full_disk(self):
        with open('/dev/full', 'wb') as full:
            result = icma('unpack', 'b.icma', '--format', 'zip', '-o', '-', cwd=self.here, stdout=full)
        self.assertEqual(result.code, 1, result)
        self.assertIn('cannot write', result.words)

    def test_closed_pipe(self):
        reading, writing = os.pipe()
        os.close(reading)
        try:
            result = icma('unpack', 'b.icma', '--checkpoint', 'all', '--format', 'tar', '-o', '-', cwd=self.here, stdout=writing)
        finally:
            os.close(writing)
        self.assertEqual(result.code, 141, result)


if __name__ == '__main__':
    main()
