#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""python -m icma.task_vector: the mean of last hidden states is what transformers says it is, padding or not, with an adapter and without, for causal, encoder-decoder and vision-language models."""
import importlib.util
import json
import os
import pathlib
import shutil
import sys
import unittest

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from common import LORAS, ROOT, Case, header

sys.path.insert(0, os.path.join(ROOT, 'python'))
from icma import task_vector  # noqa: E402

WORDS = ['<pad>', '<s>', '</s>', '<unk>', '<image>', 'a', 'cat', 'dog', 'sat', 'on', 'the', 'mat', 'of', 'bird', 'saw', 'two']
TEXTS = ['a cat sat on the mat', 'dog', 'the bird saw two of the dog', 'a mat of the cat saw a bird', 'two bird']
SMALL = {'vocab_size': len(WORDS), 'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2}


def tokenizer(**special):
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token='<unk>', **special)


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **SMALL))


def llama_config():
    return transformers.LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32, **SMALL)


def llama():
    return transformers.LlamaForCausalLM(llama_config())


def t5():
    return transformers.T5ForConditionalGeneration(transformers.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, **SMALL))


def bart():
    return transformers.BartForConditionalGeneration(transformers.BartConfig(
        d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
        max_position_embeddings=32, decoder_start_token_id=2, **SMALL))


VISION = {'hidden_size': 16, 'intermediate_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'image_size': 8, 'patch_size': 4, 'projection_dim': 16}


def images():
    return transformers.CLIPImageProcessor(size={'shortest_edge': 8}, crop_size={'height': 8, 'width': 8})


class TaskVector(Case):
    def setUp(self):
        super().setUp()
        torch.manual_seed(3)

    def saved(self, model, processor=None, **special):
        """The model in a folder, drawn wide enough that its states differ."""
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.copy_(torch.randn_like(weight) * 0.5)
        folder = self.path('model')
        model.save_pretrained(folder)
        (processor or tokenizer(**special)).save_pretrained(folder)
        return folder

    def samples(self, samples=TEXTS, name='samples.txt'):
        with open(self.path(name), 'w') as file:
            file.writelines((s if isinstance(s, str) else json.dumps(s)) + '\n' for s in samples)
        return self.path(name)

    def made(self, folder, samples, *more):
        code = task_vector.main(['--model', folder, '--samples', samples, '-o', self.path('v.safetensors'), '--per-sample', self.path('s.safetensors'), '-f', *more])
        self.assertEqual(code, 0)
        return load_file(self.path('v.safetensors'))['task_vector'], load_file(self.path('s.safetensors'))['hidden_states']

    def agrees(self, folder, wanted, *more, samples=None):
        """With one text at a time and with several, which pads, both are the states that were computed here."""
        wanted = torch.stack(wanted).numpy()
        self.assertGreater(np.abs(wanted[0] - wanted[1]).max(), 0.1)
        for batch in ('1', '2', '8'):
            vector, states = self.made(folder, samples or self.samples(), '--batch', batch, *more)
            np.testing.assert_allclose(states, wanted, atol=2e-5)
            np.testing.assert_allclose(vector, wanted.astype(np.float64).mean(0), atol=2e-5)

    @torch.no_grad()
    def directly(self, model, text, **special):
        return model(**tokenizer(**special)(text, return_tensors='pt'), output_hidden_states=True).hidden_states[-1][0, -1]

    def test_causal_models(self):
        for make in (gpt2, llama):
            for special in ({'pad_token': '<pad>'}, {'pad_token': '<pad>', 'padding_side': 'left'}, {}):  # or none at all
                model = make().eval()
                folder = self.saved(model, **special)
                # Models take these two and no more.
                special = {**special, 'model_input_names': ['input_ids', 'attention_mask']}
                self.agrees(folder, [self.directly(model, text, **special) for text in TEXTS])

    def test_adapters(self):
        model = llama().eval()
        folder = self.saved(model)
        special = {'model_input_names': ['input_ids', 'attention_mask']}
        plain = [self.directly(model, text, **special) for text in TEXTS]
        lora = get_peft_model(llama(), LoraConfig(task_type='CAUSAL_LM', r=2, target_modules=['q_proj', 'v_proj'], init_lora_weights=False))
        lora.save_pretrained(self.path('adapter'), safe_serialization=True)
        loaded = PeftModel.from_pretrained(transformers.LlamaForCausalLM.from_pretrained(folder), self.path('adapter')).eval()
        with_adapter = [self.directly(loaded, text, **special) for text in TEXTS]
        self.assertGreater((plain[0] - with_adapter[0]).abs().max(), 1e-2)
        self.agrees(folder, plain)
        self.agrees(folder, with_adapter, '--adapter', self.path('adapter'))

    @torch.no_grad()
    def test_encoder_decoders(self):
        for make, start in ((t5, 0), (bart, 2)):
            model = make().eval()
            folder = self.saved(model)
            wanted = []
            for text, target in zip(TEXTS, (None, 'a dog', None, 'the', 'bird on the mat')):
                ids = torch.tensor([[WORDS.index(w) for w in text.split()]])
                decoded = torch.tensor([[start] + [WORDS.index(w) for w in (target or '').split()]])
                wanted.append(model(input_ids=ids, decoder_input_ids=decoded, output_hidden_states=True).decoder_hidden_states[-1][0, -1])
            samples = [{'text': t, **({'target': g} if g else {})} for t, g in zip(TEXTS, (None, 'a dog', None, 'the', 'bird on the mat'))]
            self.agrees(folder, wanted, samples=self.samples(samples, 'samples.jsonl'))

    def pictures(self, texts):
        from PIL import Image
        draw = np.random.default_rng(5)
        samples = []
        for number, text in enumerate(texts):
            Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(self.path(f'{number}.png'))
            samples.append({'text': text, 'image': f'{number}.png'})
        return samples

    @unittest.skipUnless(importlib.util.find_spec('PIL'), 'Pillow is not there')
    @torch.no_grad()
    def test_vision_language_models(self):
        from PIL import Image
        llava = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**VISION), text_config=llama_config(), image_token_index=4, vision_feature_layer=-1,
            pad_token_id=0, ignore_index=-100))
        git = transformers.GitForCausalLM(transformers.GitConfig(
            vision_config=VISION, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32, **SMALL))
        names = {'model_input_names': ['input_ids', 'attention_mask'], 'pad_token': '<pad>'}
        for model, processor, prefix in ((llava, transformers.LlavaProcessor(images(), tokenizer_of_llama(self)), '<image> '),
                                         (git, transformers.GitProcessor(images(), tokenizer(**names)), '')):
            model.eval()
            folder = self.saved(model, processor)
            texts = [prefix + text for text in TEXTS[:3]]
            samples, wanted = self.pictures(texts), []
            for sample in samples:
                with Image.open(self.path(sample['image'])) as image:
                    inputs = processor(text=sample['text'], images=image, return_tensors='pt')
                wanted.append(model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1])
            self.agrees(folder, wanted, samples=self.samples(samples, 'samples.jsonl'))

    def test_the_file(self):
        folder = self.saved(llama())
        path = self.samples()
        self.made(folder, path)
        first = pathlib.Path(self.path('v.safetensors')).read_bytes()
        self.made(folder, path)
        self.assertEqual(pathlib.Path(self.path('v.safetensors')).read_bytes(), first)
        metadata = dict(dict(header(self.path('v.safetensors')))['__metadata__'])
        self.assertEqual({k: metadata[k] for k in ('model', 'samples', 'layer', 'position')}, {'model': 'model', 'samples': '5', 'layer': '2', 'position': 'last'})
        # icma takes it for a condition of its length.
        shutil.copytree(LORAS, self.path('tree'))
        for task in os.listdir(self.path('tree')):
            shutil.copy(self.path('v.safetensors'), self.path('tree', task, 'task_vector.safetensors'))
        found = self.icma_json('pack', self.path('tree'), '-o', self.path('b.icma'), '--dry-run')
        self.assertEqual({t['condition_size'] for t in found['tasks']}, {16})

    def test_the_report_maps_samples(self):
        """--per-sample writes what icma report --vectors reads: DIR/TASK.safetensors, a row a sample."""
        folder = self.saved(llama())
        os.mkdir(self.path('vectors'))
        for task, text in (('c', 'a cat sat on the mat'), ('doc', 'dog'), ('python', 'two bird saw the')):
            samples = self.samples([text + ' ' + more for more in TEXTS], f'{task}.txt')
            code = task_vector.main(['--model', folder, '--samples', samples, '-o', self.path(f'{task}.safetensors'), '--per-sample', self.path('vectors', f'{task}.safetensors')])
            self.assertEqual(code, 0)
        self.icma('pack', LORAS, '-o', self.path('b.icma'), '-q')
        mapped = self.icma_json('report', self.path('b.icma'), '--vectors', self.path('vectors'))['map']
        self.assertEqual((mapped['vectors'], mapped['all'], mapped['dims']), ('samples', 3 * len(TEXTS), 16))

    def test_what_is_refused(self):
        folder = self.saved(llama())
        path = self.samples()
        self.made(folder, path)

        def refused(*arguments, code=1):
            before = pathlib.Path(self.path('v.safetensors')).read_bytes()
            try:
                self.assertEqual(task_vector.main([*arguments]), code)
            except SystemExit as stop:
                self.assertEqual(stop.code, code)
            self.assertEqual(pathlib.Path(self.path('v.safetensors')).read_bytes(), before)
        out = ['-o', self.path('v.safetensors')]
        refused('--model', folder, '--samples', path, *out)  # it exists
        refused('--model', folder, '--samples', self.path('none'), *out, '-f')
        refused('--model', self.path('none'), '--samples', path, *out, '-f')
        refused('--model', folder, '--samples', self.samples([], 'empty.txt'), *out, '-f')
        refused('--model', folder, '--samples', self.samples(['{"text": 3}'], 'bad.jsonl'), *out, '-f')
        refused('--model', folder, '--samples', self.samples(['{'], 'bad.jsonl'), *out, '-f')
        refused('--model', folder, '--samples', self.samples([{'text': 'a', 'image': 'none.png'}], 'image.jsonl'), *out, '-f')
        refused('--model', folder, '--samples', path, '--batch', '0', *out, code=2)
        self.assertEqual([f for f in os.listdir(self.folder) if f.startswith('.task_vector')], [])

    def test_limits(self):
        model = llama().eval()
        folder = self.saved(model)
        special = {'model_input_names': ['input_ids', 'attention_mask']}
        _, states = self.made(folder, self.samples(), '--limit', '2', '--max-length', '3')
        wanted = [self.directly(model, ' '.join(text.split()[:3]), **special).numpy() for text in TEXTS[:2]]
        np.testing.assert_allclose(states, wanted, atol=2e-5)
        long = self.samples([' '.join(['cat'] * 100)], 'long.txt')
        _, states = self.made(folder, long)  # the model takes 32
        np.testing.assert_allclose(states[0], self.directly(model, ' '.join(['cat'] * 32), **special).numpy(), atol=2e-5)

    def test_states_of_an_image_encoder_are_not_taken(self):
        blip = transformers.BlipForConditionalGeneration(transformers.BlipConfig(
            text_config={'hidden_size': 16, 'intermediate_size': 24, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'max_position_embeddings': 32, 'encoder_hidden_size': 16, 'sep_token_id': 2, **SMALL},
            vision_config=VISION))
        blip.eval()
        pixels = {'pixel_values': torch.zeros(1, 3, 8, 8), 'input_ids': torch.tensor([[1, 5, 6]])}
        with self.assertRaisesRegex(task_vector.Unusable, 'BlipForConditionalGeneration does not give'):
            task_vector.states_of(blip, pixels)


def tokenizer_of_llama(case):
    """LlavaProcessor insists on its class."""
    tokenizer(pad_token='<pad>', bos_token='<s>', eos_token='</s>').save_pretrained(case.path('words'))
    return transformers.LlamaTokenizerFast(tokenizer_file=case.path('words', 'tokenizer.json'), pad_token='<pad>', add_bos_token=False)


if __name__ == '__main__':
    unittest.main()
