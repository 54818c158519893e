# SPDX-License-Identifier: Apache-2.0
"""The numbers as Markdown."""
import platform
import re
import subprocess

from . import icma

STORED = {'F32': 'fp32', 'F16': 'fp16', 'BF16': 'bf16'}


def machine():
    name = platform.machine()
    try:
        with open('/proc/cpuinfo') as f:
            name = next((line.split(':', 1)[1].strip() for line in f if line.startswith('model name')), name)
    except OSError:
        pass
    return name


def first_number(*words):
    try:
        said = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
        return (re.search(r'\d+(\.\d+)+', said) or ['?'])[0]
    except OSError:
        return 'absent'


def versions(o):
    import numpy
    import os
    out = {'icma': icma.version(o.icma), 'python': platform.python_version(), 'numpy': numpy.__version__,
           'zstd': first_number('zstd', '--version'), 'xz': first_number('xz', '--version')}
    with open(os.path.join(os.path.dirname(__file__), 'requirements.txt')) as f:
        out.update(line.strip().split('==') for line in f if '==' in line)
    return out


def rate(row, head):
    """(bits per original parameter, per cent of the bytes of the files that went in)."""
    data = head['data'][row['collection']]
    whole = head['data']['bf16'][row['collection']] if row['kind'] == 'BF16' else data['bytes']
    return 8 * row['bytes'] / data['parameters'], 100 * row['bytes'] / whole


def digits(x, n=3):
    """n significant digits, without an exponent unless very small."""
    return '0' if x == 0 else f'{x:.1e}' if abs(x) < 1e-4 else f'{x:.{n}g}'


def progress(row, head):
    start = f'({row["collection"]}) {STORED.get(row["kind"], "")} {row["label"]}: '
    if 'not_measured' in row:
        return start + 'not measured: ' + row['not_measured']
    bits, per_cent = rate(row, head)
    text = start + f'{row["bytes"]} bytes, {bits:.4g} bits, {per_cent:.4g} %'
    if 'dw_mean' in row:
        text += f', dW {digits(row["dw_mean"])} / {digits(row["dw_max"])}'
    return text + (f', gain {row["gain_mean"]:.4f}' if 'gain_mean' in row else '')


def unmeasured(rows):
    """One line for all rows of a series that are missing for one reason."""
    groups = {}
    for row in rows:
        groups.setdefault((row['series'], row['not_measured']), []).append(row)
    for (series, why), own in groups.items():
        name = own[0]['label'] if len(own) == 1 else f'{series}: ' + ', '.join(r['point'] or r['label'] for r in own)
        yield f'| {name} | {why if why.startswith("not ") else "not measured: " + why} | | | | | | | |'


def lossy_table(result, where):
    data = result['data'][where]
    rows = [r for r in result['rows'] if r['kind'] == 'lossy' and r['collection'] == where]
    out = ['| | bytes | % | bits a parameter | without headers | dW error, mean | max | gain kept | worst task |',
           '|---|--:|--:|--:|--:|--:|--:|--:|--:|',
           f'| the files (fp32) | {data["bytes"]:,} | 100 | {digits(8 * data["bytes"] / data["parameters"])} | | 0 | 0 | 1 | 1 |']
    for row in rows:
        if 'not_measured' in row:
            continue
        bits, per_cent = rate(row, result)
        name = f'**{row["label"]}**' if row['label'].startswith('icma') else row['label']
        gain = f'{row["gain_mean"]:.4f} | {row["gain_min"]:.4f}' if 'gain_mean' in row else 'not measured | '
        bare = digits(8 * (row['bytes'] - row['headers']) / data['parameters']) if row['headers'] else ''
        bound = re.search(r'dW within ([\d.]+)', row['label'])
        over = f' (over by {digits(row["dw_max"] - float(bound[1]))})' if bound and row['dw_max'] > float(bound[1]) else ''
        error = f'{digits(row["dw_mean"])} | {digits(row["dw_max"])}{over}'
        out.append(f'| {name} | {row["bytes"]:,} | {digits(per_cent)} | {digits(bits)} | {bare} | {error} | {gain} |')
    return out + list(unmeasured([r for r in rows if 'not_measured' in r]))


def lossless_table(result):
    rows = [r for r in result['rows'] if r['kind'] in ('F32', 'BF16')]
    places = [(kind, where) for kind in ('F32', 'BF16') for where in 'ab']
    out = ['| | ' + ' | '.join(f'({where}) {STORED[kind]}: bytes | % | bits' for kind, where in places) + ' |', '|---' + '|--:' * 12 + '|']
    whole = {('F32', w): result['data'][w]['bytes'] for w in 'ab'} | {('BF16', w): result['data']['bf16'][w] for w in 'ab'}
    out.append('| the files | ' + ' | '.join(
        f'{whole[k, w]:,} | 100 | {digits(8 * whole[k, w] / result["data"][w]["parameters"])}' for k, w in places) + ' |')
    for label in dict.fromkeys(r['label'] for r in rows):
        cells = []
        for kind, where in places:
            row = next((r for r in rows if (r['label'], r['kind'], r['collection']) == (label, kind, where)),
                       {'not_measured': 'not asked for'})
            if 'not_measured' in row:
                why = row['not_measured']
                cells.append(f'{"not supported" if why.startswith("not supported") else "not measured: " + why} | | ')
            else:
                bits, per_cent = rate(row, result)
                cells.append(f'{row["bytes"]:,} | {per_cent:.1f} | {bits:.2f}')
        out.append(f'| {"**" + label + "**" if label.startswith("icma") else label} | ' + ' | '.join(cells) + ' |')
    return out


NOTES = '''\
## How it was measured

- **Bytes** are those of real files, headers and all; *bits* are per original parameter, *%* of the `adapter_model.safetensors` bytes that went in.
  *Without headers* leaves out the safetensors headers, which are large beside adapters as small as these (5 kB of 153 kB in fp32) and not beside large ones.
  An archive of icma also holds every `adapter_config.json`, the tasks' condition vectors and checksums; the peers are not charged for those.
- **dW error**: |dW' - dW| / |dW| in the Frobenius norm, dW = scale * B A, for each module of each checkpoint, float64, from the decoded files.
- **Gain kept**: (base - restored) / (base - original) in bits per character on held-out text; mean over tasks, and the worst task. @GAIN@
- **icma latent, dW mean near X** is `--tier latent --max-error dw=X`, where X steers the size of the basis and bounds nothing.
- **int groups**: symmetric, largest magnitude / top level = scale, one fp16 scale a group, groups along the longer side, bits packed; safetensors.
- **SVD**: the best approximation of each dW at the lower rank, stored as an adapter of that rank.
- **Model Soup** replaces all checkpoints of a task by their average; in (b) there is nothing to average.
- **lorashare, vlora** are the packages of PyPI (vlora is published as `vlora-dev`), run through their own save and load; all the files that they write are
  counted, most of which at one small file a checkpoint are headers. **PCA (numpy re-implementation)** is the mathematics of vlora in one file without that
  overhead: what the method takes apart from its packaging.
- **ZipNN** runs in byte mode on whole files. It and vlora ask for torch 2 and ran on Debian's torch 1.13; ZipNN with two missing dtype names defined.
  ZipNN changes its input in place, so it gets a copy; every lossless row was decoded and compared byte for byte.
- Sizes and errors depend on the versions above and hardly on the machine; gains may differ in the last digit.

## Not measured

- Speed: see `cpu.md`. DFloat11 (needs a GPU), Xet, SZ3 and ZFP, OpenZL, the diffusion methods, and 1-2 bit methods with their own training.
- Other tasks, seeds, ranks and models than these.
'''


def markdown(result):
    data, v = result['data'], result['versions']
    gain = result['gain']
    how = 'Not measured in this run.' if not gain else (
        f'{gain["sequences"]} sequences a task, at the last checkpoint'
        + (f' and {gain["checkpoints"] - 1} more in (a)' if gain['checkpoints'] > 1 else ' of each task')
        + '. In (b), for methods with a quantiser step, the median over five steps within 2 %. It is one-sided: an average can beat a checkpoint.')
    missing = [r for r in result['rows'] if 'not_measured' in r]
    lines = ['# Rate against distortion', '',
             f'`{result["command"]}` on {result["machine"]}; '
             + ', '.join(v['icma'] if k == 'icma' else f'{k} {x}' for k, x in v.items()) + '.', '',
             '![bits a parameter against the error of dW and against gain kept](rate-distortion.svg)', '',
             f'## (a) All {data["a"]["files"]} checkpoints', '', *lossy_table(result, 'a'), '',
             f'## (b) The last checkpoint of each task, {data["b"]["files"]} files', '', *lossy_table(result, 'b'), '',
             '## Lossless, every file compared', '', *lossless_table(result), '', NOTES.replace('@GAIN@', how).rstrip()]
    if missing:
        lines += [f'- {len(missing)} rows above, for the reason that stands there.']
    return '\n'.join(lines) + '\n'
