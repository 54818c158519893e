# SPDX-License-Identifier: Apache-2.0
"""Runs one peer that is a Python package: a job in JSON on standard input, see peers.Package.

Everything goes through the package's public functions, and decoding starts from the files that encoding left."""
import json
import os
import sys


def label(task, step):
    return f'{task}-{step}'


def folder(job, task, step):
    return os.path.join(job['back'], task, f'checkpoint-{step}')


def vlora(job):
    from vlora import SharedSubspace, load_adapter
    from vlora.io import save_adapter
    if job['verb'] == 'encode':
        adapters = [load_adapter(path) for _, _, path in job['adapters']]
        names = [label(task, step) for task, step, _ in job['adapters']]
        subspace = SharedSubspace.from_adapters(adapters, names, num_components=job['options']['k'])
        (subspace.save_quantized if job['options'].get('nf4') else subspace.save)(job['out'])
        return
    subspace = SharedSubspace.load(job['out'])
    for task, step, path in job['adapters']:
        weights = subspace.reconstruct(label(task, step))
        weights.metadata = load_adapter(path).metadata    # its files do not hold the configuration
        save_adapter(weights, folder(job, task, step))


def lorashare(job):
    from lorashare import SHAREModel
    if job['verb'] == 'encode':
        # Its files repeat each adapter's path: let that be a short one.
        root = os.path.commonpath([path for _, _, path in job['adapters']])
        os.chdir(root)
        adapters = {label(task, step): os.path.relpath(path, root) for task, step, path in job['adapters']}
        SHAREModel.from_adapters(adapters, num_components=job['options']['k'], device='cpu').save_pretrained(job['out'])
        return
    shared = SHAREModel.from_pretrained(job['out'])
    for task, step, _ in job['adapters']:
        shared.reconstruct(label(task, step), output_dir=folder(job, task, step))


def zipnn(job):
    import torch
    # Only names that an older torch lacks; ZipNN's byte mode does not compute with torch.
    for name in ('float8_e4m3fn', 'float8_e5m2'):
        if not hasattr(torch, name):
            setattr(torch, name, name)
    from zipnn import ZipNN
    for task, step, path in job['adapters']:
        coded = os.path.join(job['out'], label(task, step) + '.znn')
        coder = ZipNN(input_format='byte', bytearray_dtype=job['options']['dtype'], threads=1)
        if job['verb'] == 'encode':
            with open(os.path.join(path, 'adapter_model.safetensors'), 'rb') as f, open(coded, 'wb') as g:
                g.write(coder.compress(bytearray(f.read())))    # a copy: it changes its input in place
        else:
            os.makedirs(folder(job, task, step))
            with open(coded, 'rb') as f, open(os.path.join(folder(job, task, step), 'adapter_model.safetensors'), 'wb') as g:
                g.write(coder.decompress(f.read()))


if __name__ == '__main__':
    task = json.load(sys.stdin)
    {'vlora': vlora, 'lorashare': lorashare, 'zipnn': zipnn}[task['peer']](task)
