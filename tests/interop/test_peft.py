#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""PEFT loads what icma unpacks, as it comes: every weight finds its place, and the model then computes what it should."""
import os
import unittest

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from common import ADAPTER, LORAS, Case, adapters, bits, example_model

CLOSE = 0.15  # of what the adapter does to the logits


@torch.no_grad()
def logits(model):
    tokens = torch.arange(2 * 96).reshape(2, 96) * 37 % 256
    return model(input_ids=tokens).logits


def by_hand(model, folder):
    """The same model with scale * B A added to its weights here, without PEFT."""
    weights = load_file(os.path.join(folder, ADAPTER))
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, a in weights.items():
            if name.endswith('.lora_A.weight'):
                b = weights[name.replace('lora_A', 'lora_B')]
                modules[name[len('base_model.model.'):-len('.lora_A.weight')]].weight += 2.0 * (b @ a)
    return model


class Peft(Case):
    def unpacked(self, tree, *words):
        self.icma('pack', tree, '-o', self.path('b.icma'))
        self.icma('unpack', self.path('b.icma'), '-C', self.path('back'), *words)
        return self.path('back')

    def load(self, folder):
        """Strictly: no key of the file is unknown to the model, none of the model's adapter weights is left as it was."""
        model = PeftModel.from_pretrained(example_model(), folder).eval()
        result = model.load_adapter(folder, 'again')
        self.assertEqual(result.unexpected_keys, [])
        self.assertEqual([k for k in result.missing_keys if 'lora_' in k and '.again.' in k], [])
        loaded, stored = get_peft_model_state_dict(model), load_file(os.path.join(folder, ADAPTER))
        self.assertEqual(set(loaded), set(stored))
        for name in stored:
            self.assertEqual(bits(loaded[name]), bits(stored[name]), name)
        return model

    def test_generated_adapters_load(self):
        self.icma('pack', LORAS, '-o', self.path('b.icma'), '--generator', 'basis', '-q')
        self.icma('generate', self.path('b.icma'), '--mix', 'c:0.5,doc:0.5', '-C', self.path('made'), '-q')
        mixed = logits(self.load(self.path('made')))
        self.assertGreater((mixed - logits(example_model())).norm(), 0.01 * mixed.norm())
        with safe_open(os.path.join(self.path('made'), ADAPTER), 'pt') as file:
            self.assertEqual(file.metadata()['icma_generated'], 'true')

    def test_examples_act_as_the_originals(self):
        back = self.unpacked(LORAS, '--checkpoint', 'all')
        base = logits(example_model())
        for folder in adapters(LORAS)[::5]:
            original = logits(self.load(os.path.join(LORAS, folder)))
            restored = logits(self.load(os.path.join(back, folder)))
            does = (original - base).norm()
            self.assertGreater(does, 0.01 * base.norm())  # else closeness below would say nothing
            self.assertLess((restored - original).norm(), CLOSE * does, folder)

    def test_peft_computes_what_the_weights_say(self):
        back = self.unpacked(LORAS)
        folder = os.path.join(back, adapters(back)[0])
        torch.testing.assert_close(logits(self.load(folder)), logits(by_hand(example_model(), folder)), rtol=1e-3, atol=1e-4)

    def test_same_weights_same_logits(self):
        """Constant tensors are kept as they are, so this adapter comes back whole and the logits are equal to the last bit."""
        folder = self.path('tree', 'flat')
        model = get_peft_model(example_model(), LoraConfig(task_type='CAUSAL_LM', r=2, lora_alpha=4,
                                                           target_modules=['q_proj', 'down_proj']))
        with torch.no_grad():
            for i, (name, weight) in enumerate(model.named_parameters()):
                if 'lora_' in name:
                    weight.fill_(0.01 * (1 + i % 7) * (-1) ** i)
        model.save_pretrained(folder, save_embedding_layers=False)
        back = os.path.join(self.unpacked(self.path('tree')), 'flat')
        original, restored = logits(self.load(folder)), logits(self.load(back))
        self.assertFalse(torch.equal(original, logits(example_model())))
        self.assertTrue(torch.equal(restored, original))

    def test_adapter_beside_whole_modules(self):
        """modules_to_save: PEFT stores a whole module beside the pairs, which is not an adapter's difference and stays bit-exact."""
        folder = self.path('tree', 'head')
        model = get_peft_model(example_model(), LoraConfig(task_type='CAUSAL_LM', r=2, lora_alpha=4, target_modules=['q_proj'],
                                                           modules_to_save=['model.norm']))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.requires_grad:
                    weight.copy_(0.05 * torch.randn(weight.shape, generator=generator) + ('model.norm' in name))
        model.save_pretrained(folder, save_embedding_layers=False)
        back = os.path.join(self.unpacked(self.path('tree')), 'head')
        new, old = (load_file(os.path.join(f, ADAPTER)) for f in (back, folder))
        self.assertEqual(set(new), set(old))
        whole = [n for n in old if 'model.norm' in n]
        self.assertEqual(len(whole), 1)
        self.assertEqual(bits(new[whole[0]]), bits(old[whole[0]]))
        self.load(back)


if __name__ == '__main__':
    unittest.main()
