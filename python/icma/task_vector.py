# SPDX-License-Identifier: Apache-2.0
"""A task vector from a model's hidden states (ICM-LoRA, equation 1): the mean, over samples of a task, of the last layer's
state at the last position.

  python -m icma.task_vector --model DIR --samples FILE -o task_vector.safetensors
  python -m icma.task_vector --model DIR --adapter LORA --samples FILE -o task_vector.safetensors --per-sample states.safetensors

FILE has a sample a line. With a name that ends in .jsonl each line is a JSON string, or an object with `text`, and perhaps
`image` (a file, relative to FILE's folder; for vision-language models) and `target` (what an encoder-decoder has decoded so
far). The file that is written has one F32 tensor, `task_vector`, as `icma pack` takes it beside a task's checkpoints.

The model is any causal or encoder-decoder language model of transformers, in a folder, as safetensors; the adapter one of
PEFT. Nothing is fetched from anywhere. Needs torch and transformers, peft for --adapter, Pillow for images.
"""
import argparse
import json
import os
import struct
import sys
import tempfile

import numpy as np

DTYPES = ('float32', 'float16', 'bfloat16')
MOST_TOKENS = 1024  # where neither model nor tokenizer says


class Unusable(Exception):
    """A model, adapter or sample that no state can be had of; the message says why."""


# --- samples ----------------------------------------------------------------------------------------------------------

def read_samples(path):
    """A list of {'text', perhaps 'image', perhaps 'target'} from FILE as above."""
    samples = []
    with open(path, encoding='utf-8') as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            sample = line.rstrip('\r\n')
            if path.endswith('.jsonl'):
                try:
                    sample = json.loads(line)
                except ValueError as error:
                    raise Unusable(f'{path}, line {number}: {error}') from None
            sample = {'text': sample} if isinstance(sample, str) else sample
            if not isinstance(sample, dict) or not all(isinstance(sample.get(k, ''), str) for k in ('text', 'image', 'target')) or not (sample.get('text') or sample.get('image')):
                raise Unusable(f'{path}, line {number}: not a text, nor an object with "text" or "image"')
            if 'image' in sample:
                sample['image'] = os.path.join(os.path.dirname(path), sample['image'])
            samples.append(sample)
    if not samples:
        raise Unusable(f'{path}: no samples')
    return samples


# --- the model --------------------------------------------------------------------------------------------------------

def load_model(folder, adapter=None, dtype='float32', device='cpu'):
    """The language model in a folder, of the class that it was saved as, in evaluation mode; with a PEFT adapter on it."""
    import torch
    import transformers
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    named = [getattr(transformers, name, None) for name in config.architectures or []]
    kind = next((c for c in named if c is not None and hasattr(c, 'generate')), None)
    if kind is None:
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, torch_dtype=getattr(torch, dtype))
    if adapter:
        import peft
        model = peft.PeftModel.from_pretrained(model, adapter)
    return model.to(device).eval()


def most_tokens(model, tokenizer):
    config = model.config
    limits = [getattr(tokenizer, 'model_max_length', None)]
    limits += [getattr(c, 'max_position_embeddings', None) for c in (config, getattr(config, 'text_config', None))]
    return min([n for n in limits if n and n < 1 << 20] or [MOST_TOKENS])


def last_real(mask):
    """Of each row, the position of its last 1."""
    width = mask.shape[1]
    return width - 1 - mask.flip(1).long().argmax(1)


def padded(rows, device):
    """Token lists as one tensor, padded on the right, where a causal model does not look; and the mask of what is real."""
    import torch
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def states_of(model, inputs, mask=None):
    """(n, width): the last layer's states at the last positions; without `mask` there is no padding."""
    import torch
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True, return_dict=True)
    states = getattr(out, 'decoder_hidden_states', None) or getattr(out, 'hidden_states', None)
    logits = getattr(out, 'logits', None)
    # Some models give the states of their image encoder under that name.
    if states is None or logits is None or states[-1].shape[:2] != logits.shape[:2]:
        raise Unusable(f'{type(model).__name__} does not give the hidden states that its words come from')
    last = states[-1]
    rows = torch.arange(len(last), device=last.device)
    return last[rows, last_real(mask) if mask is not None else last.shape[1] - 1].float().cpu().numpy(), len(states) - 1


class TextEncoder:
    """Texts, many at a time. Padding stands on the right, so that it changes nothing before it."""

    def __init__(self, model, tokenizer, max_length=None):
        self.model, self.tokenizer = model, tokenizer
        self.max_length = max_length or most_tokens(model, tokenizer)

    def tokens(self, text, **more):
        return list(self.tokenizer(text, truncation=True, max_length=self.max_length, **more)['input_ids'])

    def decoder_tokens(self, sample):
        config = self.model.config
        start = config.decoder_start_token_id if config.decoder_start_token_id is not None else config.pad_token_id
        target = self.tokens(sample['target'], add_special_tokens=False) if sample.get('target') else []
        return [start or 0] + target

    def __call__(self, samples):
        device = next(self.model.parameters()).device
        rows = [self.tokens(sample['text']) for sample in samples]
        if not all(rows):
            raise Unusable(f'a sample without tokens: {samples[rows.index([])]["text"][:60]!r}')
        ids, mask = padded(rows, device)
        inputs = {'input_ids': ids, 'attention_mask': mask}
        if self.model.config.is_encoder_decoder:
            ids, mask = padded([self.decoder_tokens(sample) for sample in samples], device)
            inputs |= {'decoder_input_ids': ids, 'decoder_attention_mask': mask}
        return states_of(self.model, inputs, mask)


class ImageEncoder:
    """Images with or without texts, one at a time: how many positions an image takes is the model's business."""

    def __init__(self, model, processor):
        self.model, self.processor = model, processor

    def __call__(self, samples):
        from PIL import Image
        device, kind = next(self.model.parameters()).device, next(self.model.parameters()).dtype
        all_states = []
        for sample in samples:
            given = {'text': sample['text']} if sample.get('text') else {}
            with Image.open(sample['image']) as image:
                inputs = self.processor(images=image.convert('RGB'), return_tensors='pt', **given)
            inputs = {k: v.to(device, kind) if v.is_floating_point() else v.to(device) for k, v in inputs.items()}
            if self.model.config.is_encoder_decoder and 'decoder_input_ids' not in inputs:
                raise Unusable('images for an encoder-decoder: the position to take is not known')
            states, layers = states_of(self.model, inputs)
            all_states.append(states)
        return np.concatenate(all_states), layers


def hidden_states(model, samples, tokenizer=None, processor=None, batch=8, max_length=None):
    """((n, width) f32, layers): of each sample the last layer's state at the last position, and which layer that is."""
    texts = tokenizer or getattr(processor, 'tokenizer', None)
    encode_text = TextEncoder(model, texts, max_length) if texts else None
    encode_image = ImageEncoder(model, processor) if processor else None
    states, layers = [], 0
    for first in range(0, len(samples), batch):
        part = samples[first:first + batch]
        with_image = [i for i, sample in enumerate(part) if 'image' in sample]
        without = [i for i in range(len(part)) if i not in with_image]
        rows = [None] * len(part)
        for encode, chosen in ((encode_image, with_image), (encode_text, without)):
            if not chosen:
                continue
            if encode is None:
                raise Unusable('samples have images, and the model no processor for them' if encode is encode_image and with_image else 'the model has no tokenizer')
            got, layers = encode([part[i] for i in chosen])
            for i, row in zip(chosen, got):
                rows[i] = row
        states += rows
    return np.stack(states), layers


# --- files ------------------------------------------------------------------------------------------------------------

def safetensors_bytes(name, values, metadata):
    """One F32 tensor. By hand, because the package writes metadata in an order that changes from run to run."""
    data = np.ascontiguousarray(values, '<f4').tobytes()
    header = json.dumps({'__metadata__': metadata, name: {'dtype': 'F32', 'shape': list(values.shape), 'data_offsets': [0, len(data)]}}).encode()
    header += b' ' * (-len(header) % 8)
    return struct.pack('<Q', len(header)) + header + data


def write(path, data, force=False):
    """Whole or not at all, and over nothing that exists without `force`."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or '.', prefix='.task_vector-')
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(data)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        if force:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


# --- the command ------------------------------------------------------------------------------------------------------

def parse(arguments):
    parser = argparse.ArgumentParser(prog='python -m icma.task_vector', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True, metavar='DIR', help='folder of the model and its tokenizer or processor')
    parser.add_argument('--adapter', metavar='DIR', help='folder of a PEFT adapter to put on it')
    parser.add_argument('--samples', required=True, metavar='FILE')
    parser.add_argument('-o', '--output', required=True, metavar='FILE', help='the vector, as safetensors')
    parser.add_argument('--per-sample', metavar='FILE', help='also every sample\'s state, samples x width; as DIR/TASK.safetensors for icma report --vectors DIR')
    parser.add_argument('--limit', type=int, metavar='N', help='only the first N samples')
    parser.add_argument('--batch', type=int, default=8, metavar='N', help='texts at a time (default %(default)s); changes nothing but speed and memory')
    parser.add_argument('--max-length', type=int, metavar='N', help='cut texts to N tokens (default: what the model takes)')
    parser.add_argument('--dtype', choices=DTYPES, default='float32', help='to compute in (default %(default)s); sums are in double')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, mps, ... (default %(default)s)')
    parser.add_argument('-f', '--force', action='store_true', help='replace what exists')
    options = parser.parse_args(arguments)
    for name in ('limit', 'batch', 'max_length'):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f'--{name.replace("_", "-")} is at least 1')
    return options


def load_processors(folder, samples):
    """(tokenizer, processor): what these samples need."""
    import transformers
    if any('image' in sample for sample in samples):
        return None, transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True), None


def run(options):
    for path in filter(None, (options.output, options.per_sample)):
        if os.path.lexists(path) and not options.force:
            raise Unusable(f'{path} exists already; -f replaces it')
    for folder in filter(None, (options.model, options.adapter)):
        if not os.path.isdir(folder):
            raise Unusable(f'{folder} is not a folder')
    samples = read_samples(options.samples)[:options.limit]
    tokenizer, processor = load_processors(options.model, samples)
    model = load_model(options.model, options.adapter, options.dtype, options.device)
    states, layers = hidden_states(model, samples, tokenizer, processor, options.batch, options.max_length)
    if not np.isfinite(states).all():
        raise Unusable(f'states that are not finite, with {options.dtype}; try another --dtype')
    name = os.path.basename(os.path.abspath(options.model))
    metadata = {'encoder': f'{name}: last layer, last position, mean of {len(samples)} samples', 'model': name, 'samples': str(len(samples)), 'layer': str(layers),
                'position': 'last', 'dtype': options.dtype}
    if options.adapter:
        metadata['adapter'] = os.path.basename(os.path.abspath(options.adapter))
    if options.per_sample:
        write(options.per_sample, safetensors_bytes('hidden_states', states, metadata), options.force)
    write(options.output, safetensors_bytes('task_vector', states.astype(np.float64).mean(0), metadata), options.force)
    print(f'{options.output}: {states.shape[1]} numbers, the mean of {len(samples)} samples', file=sys.stderr)


def main(arguments=None):
    options = parse(arguments)
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    try:
        run(options)
    except (Unusable, OSError, ImportError, ValueError) as error:
        print(f'task_vector: error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
