#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What pack, verify, report and diff take as inputs, beyond folders: archives and standard input; and what is told of it."""
import io
import json
import pathlib
import signal
import subprocess
import tarfile
import time
import zipfile

from harness import Case, CONFIG, LATENT, PROGRAM, QUICK, files_below, header_of, lora, main, write_adapter


def tar(path, folder, mode='w'):
    with tarfile.open(path, mode) as archive:
        archive.add(folder, '.')
    return path


def zip_up(path, folder):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in files_below(folder):
            archive.write(pathlib.Path(folder) / name, name)
    return path


def replace_name(image, old, new):
    """The file with a tensor called otherwise."""
    head = header_of(image)
    header = json.loads(head[8:])
    text = json.dumps({new if n == old else n: t for n, t in header.items()}).encode()
    return len(text).to_bytes(8, 'little') + text + image[len(head):]


def one_member(path, info, data=b''):
    with tarfile.open(path, 'w') as archive:
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return path


class Archives(Case):
    def archives(self):
        yield tar(self.here / 'a.tar', self.tree)
        yield tar(self.here / 'a.tgz', self.tree, 'w:gz')
        yield tar(self.here / 'a.tar.xz', self.tree, 'w:xz')
        yield zip_up(self.here / 'a.zip', self.tree)
        plain = tar(self.here / 'b.tar', self.tree)
        subprocess.run(['zstd', '-q', plain, '-o', self.here / 'a.tar.zst'], check=True)
        yield self.here / 'a.tar.zst'

    def test_an_archive_packs_as_its_folder(self):
        for archive in self.archives():
            self.run_icma(0, 'pack', archive, '-o', 'x.icma', '-f', *LATENT, *QUICK)
            self.assertEqual((self.here / 'x.icma').read_bytes(), (self.shop / 'small.icma').read_bytes(), archive)

    def test_named_twice(self):
        archive = tar(self.here / 'a.tar', self.tree)
        self.assertIn('12 checkpoints of 3 tasks', self.run_icma(0, 'pack', archive, archive, '../' + self.here.name + '/a.tar', '-n').text)

    def test_standard_input(self):
        for archive in self.archives():
            with open(archive, 'rb') as file:
                self.run_icma(0, 'pack', '-', '-o', 'x.icma', '-f', *LATENT, *QUICK, stdin=file)
            self.assertEqual((self.here / 'x.icma').read_bytes(), (self.shop / 'small.icma').read_bytes(), archive)
            with open(archive, 'rb') as file:
                self.assertIn('12 checkpoints of 3 tasks', self.run_icma(0, 'pack', '-', '-n', stdin=file).text)

    def test_standard_input_that_is_none(self):
        self.fails(4, 'pack', '-', '-n', saying='no tar, zip or 7z')

    def test_dry_run_names_members(self):
        archive = tar(self.here / 'a.tar', self.tree)
        seen = self.run_icma(0, 'pack', archive, '-n', '--json').json
        self.assertEqual([t['task'] for t in seen['tasks']], ['bird', 'cat', 'dog'])
        self.assertEqual(seen['tasks'][0]['checkpoints'][0]['path'], f'{archive}/bird/checkpoint-10/adapter_model.safetensors')
        self.assertEqual(seen['tasks'][0]['condition_size'], 8)

    def test_compared_with(self):
        bundle = self.bundle()
        self.run_icma(0, 'unpack', bundle, '--checkpoint', 'all', '-C', 'out')
        for archive in self.archives():
            folder = self.run_icma(0, 'verify', bundle, '--against', self.tree, '--json').json
            seen = self.run_icma(0, 'verify', bundle, '--against', archive, '--json').json
            self.assertEqual(seen['against'], folder['against'])
            with open(archive, 'rb') as file:
                self.assertEqual(self.run_icma(0, 'verify', bundle, '--against', '-', '--json', stdin=file).json['against'], folder['against'])
            self.run_icma(0, 'report', bundle, '--against', archive)
            there = self.run_icma(0, 'diff', archive, 'out').text
            self.assertEqual(there, self.run_icma(0, 'diff', self.tree, 'out').text)
        self.assertIn('1.000000', self.run_icma(0, 'diff', self.here / 'a.zip', self.here / 'a.tar.xz').text)

    def test_side_files_and_steps_come_back(self):
        (self.here / 'in/cat/checkpoint-7').mkdir(parents=True)
        write_adapter(self.here / 'in/cat/checkpoint-7', lora('cat', 7))
        (self.here / 'in/cat/checkpoint-7/README.md').write_text('# cat')
        zip_up(self.here / 'in.zip', self.here / 'in')
        self.run_icma(0, 'pack', 'in.zip', '-o', 'x.icma', '--tier', 'lossless')
        self.run_icma(0, 'unpack', 'x.icma', '--checkpoint', 'all', '-C', 'out')
        self.assertEqual(files_below(self.here / 'out'), files_below(self.here / 'in'))
        for name in files_below(self.here / 'in'):
            self.assertEqual((self.here / 'out' / name).read_bytes(), (self.here / 'in' / name).read_bytes(), name)

    def test_hostile(self):
        link = tarfile.TarInfo('cat/adapter_model.safetensors')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        hard = tarfile.TarInfo('cat/adapter_model.safetensors')
        hard.type, hard.linkname = tarfile.LNKTYPE, 'else'
        pipe = tarfile.TarInfo('cat/adapter_model.safetensors')
        pipe.type = tarfile.FIFOTYPE
        for info, code, saying in ((tarfile.TarInfo('../x.safetensors'), 4, '..'), (tarfile.TarInfo('/x.safetensors'), 4, 'absolute'),
                                   (link, 6, 'link'), (hard, 6, 'link'), (pipe, 6, 'pipe')):
            one_member(self.here / 'x.tar', info)
            self.fails(code, 'pack', 'x.tar', '-o', 'x.icma', saying=saying)
            self.fails(code, 'verify', self.bundle(), '--against', 'x.tar', saying=saying)
            self.fails(code, 'diff', self.tree, 'x.tar', saying=saying)
            self.assertFalse((self.here / 'x.icma').exists())

    def test_cut_off(self):
        whole = tar(self.here / 'a.tgz', self.tree, 'w:gz').read_bytes()
        (self.here / 'a.tgz').write_bytes(whole[:-5])
        self.fails(4, 'pack', 'a.tgz', '-n', saying='cut off')
        (self.here / 'a.tgz').write_bytes(whole[:-6] + b'\0' + whole[-5:])
        self.fails(4, 'pack', 'a.tgz', '-n', saying='damaged')

    def test_caps(self):
        (self.here / 'bomb.tgz').write_bytes(b'')
        with tarfile.open(self.here / 'bomb.tgz', 'w:gz') as archive:
            info = tarfile.TarInfo('zeros.txt')
            info.size = 1 << 24
            archive.addfile(info, io.BytesIO(bytes(1 << 24)))
        self.assertLess((self.here / 'bomb.tgz').stat().st_size, 1 << 16)
        self.fails(10, 'pack', 'bomb.tgz', '-n', '--max-input', '1M', saying=('1048576', '--max-input'))
        self.fails(7, 'pack', 'bomb.tgz', '-n', saying='no LoRA adapters')

    def test_where_it_is_unpacked(self):
        archive = tar(self.here / 'a.tar', self.tree)
        self.fails(1, 'pack', archive, '-n', '--tmp', 'nowhere', saying='temporary')
        (self.here / 'tmp').mkdir()
        self.run_icma(0, 'pack', archive, '-n', '--tmp', 'tmp')
        self.run_icma(0, 'pack', archive, '-n', env={'TMPDIR': str(self.here / 'tmp')})
        self.assertNothingLeft(self.here / 'tmp')

    def test_nothing_is_left_behind(self):
        (self.here / 'tmp').mkdir()
        archive = tar(self.here / 'a.tar', self.tree).read_bytes()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            process = subprocess.Popen([PROGRAM, 'pack', '-', '-o', 'x.icma', '--tmp', 'tmp'], cwd=self.here,
                                       stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            process.stdin.write(archive[:20000])
            process.stdin.flush()
            time.sleep(0.5)  # it waits for the rest
            self.assertIsNone(process.poll())
            process.send_signal(number)
            self.assertEqual(process.wait(timeout=60), -number if number == signal.SIGKILL else 128 + number)
            process.stdin.close()
            self.assertEqual(files_below(self.here / 'tmp'), [])
            self.assertFalse((self.here / 'x.icma').exists())


class Trees(Case):
    def hugging_face(self, task='cat'):
        """As HF's Trainer leaves it: checkpoints, and the last one again as the task's own, with a model card of its own."""
        root = self.here / 'in' / task
        for step in (10, 20):
            write_adapter(root / f'checkpoint-{step}', lora(task, step))
            (root / f'checkpoint-{step}/README.md').write_text(f'card of {step}')
            (root / f'checkpoint-{step}/trainer_state.json').write_text('{}')
        write_adapter(root, lora(task, 20))
        (root / 'README.md').write_text('card of the final')
        (root / 'note.txt').write_text('of the final alone')
        return root

    def test_a_final_that_is_the_last_checkpoint(self):
        root = self.hugging_face()
        seen = self.run_icma(0, 'pack', 'in', '-n')
        self.assertIn('the final adapter of task "cat" is its checkpoint-20, byte for byte: stored once', seen.text)
        self.assertIn('2 checkpoints of 1 task', seen.text)
        told = self.run_icma(0, 'pack', 'in', '-n', '--json').json['tasks'][0]['checkpoints']
        self.assertEqual([c['final'] for c in told], [None, 'in/cat/adapter_model.safetensors'])
        packed = self.run_icma(0, 'pack', 'in', '-o', 'x.icma', '--tier', 'lossless')
        self.assertIn('stored once', packed.words)
        self.run_icma(0, 'verify', 'x.icma', '--deep', '--against', 'in')
        self.run_icma(0, 'unpack', 'x.icma', '-C', 'last')
        for name in ('adapter_model.safetensors', 'adapter_config.json', 'README.md', 'note.txt'):
            self.assertEqual((self.here / 'last/cat' / name).read_bytes(), (root / name).read_bytes(), name)
        self.assertEqual((self.here / 'last/cat/README.checkpoint-20.md').read_text(), 'card of 20')
        self.run_icma(0, 'unpack', 'x.icma', '--checkpoint', 'all', '-C', 'all')
        self.assertEqual((self.here / 'all/cat/checkpoint-10/README.md').read_text(), 'card of 10')
        self.run_icma(0, 'diff', 'in', 'all')
        self.run_icma(0, 'diff', 'in', 'in')
        self.assertNotIn('stored once', self.run_icma(0, 'pack', self.tree, '-n').text)

    def test_a_final_of_its_own(self):
        root = self.hugging_face()
        (root / 'adapter_model.safetensors').write_bytes(lora('cat', 21))
        self.assertIn('3 checkpoints of 1 task', self.run_icma(0, 'pack', 'in', '-n').text)
        self.run_icma(0, 'pack', 'in', '-o', 'x.icma', '--tier', 'lossless')
        self.run_icma(0, 'verify', 'x.icma', '--against', 'in')
        self.run_icma(0, 'unpack', 'x.icma', '-C', 'out')
        self.assertEqual((self.here / 'out/cat/adapter_model.safetensors').read_bytes(), lora('cat', 21))

    def test_shards(self):
        whole = lora('cat', 3)
        folder = self.here / 'in/cat'
        folder.mkdir(parents=True)
        pieces = [lora('cat', 3, modules=('q_proj',)), lora('cat', 3, modules=('v_proj',))]
        for number, piece in enumerate(pieces, 1):
            (folder / f'adapter_model-{number:05}-of-00002.safetensors').write_bytes(piece)
        seen = self.run_icma(0, 'pack', 'in', '-n')
        self.assertIn('1 adapter of several shards', seen.text)
        tar(self.here / 'in.tar', self.here / 'in')
        for given in ('in', 'in.tar'):
            self.run_icma(0, 'pack', given, '-o', 'x.icma', '-f', '--tier', 'lossless')
            self.run_icma(0, 'verify', 'x.icma', '--against', 'in')
            self.run_icma(0, 'verify', 'x.icma', '--against', 'in.tar')
            self.run_icma(0, 'unpack', 'x.icma', '-C', 'out', '-f')
            self.assertEqual(files_below(self.here / 'out'), ['cat/adapter_model.safetensors'])
            back = (self.here / 'out/cat/adapter_model.safetensors').read_bytes()
            self.assertEqual(back[len(header_of(back)):], whole[len(header_of(whole)):])
        for named in (('1',), ('2',), ('1', '2'), ('2', '1')):
            self.run_icma(0, 'pack', *(folder / f'adapter_model-0000{n}-of-00002.safetensors' for n in named), '-o', 'y.icma', '-f', '--tier', 'lossless')
            self.assertEqual((self.here / 'y.icma').read_bytes(), (self.here / 'x.icma').read_bytes(), named)
        self.assertIn('1 checkpoint of 1 task', self.run_icma(0, 'pack', 'in', folder / 'adapter_model-00002-of-00002.safetensors', '-n').text)
        (folder / 'adapter_model-00001-of-00002.safetensors').unlink()
        self.fails(4, 'pack', 'in', '-n', saying='1 of 2')

    def test_halves_of_lycoris(self):
        """dW of LoHa is a product of two matrices that are bounded each: nobody may take the bound for dW's."""
        module = 'lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w'
        loha = lora('cat', 1, modules=('q_proj', 'v_proj'))
        for name, (half, factor) in {'q_proj.lora_A.weight': '1b', 'q_proj.lora_B.weight': '1a', 'v_proj.lora_A.weight': '2b', 'v_proj.lora_B.weight': '2a'}.items():
            found = next(n for n in json.loads(header_of(loha)[8:]) if n.endswith(name))
            loha = replace_name(loha, found, f'{module}{half}_{factor}')
        (self.here / 'loha.safetensors').write_bytes(loha)
        write_adapter(self.here / 'cat', lora('cat', 1))
        said = 'not the dW'
        self.assertIn(said, self.run_icma(0, 'pack', 'loha.safetensors', '-o', 'x.icma', *QUICK).words)
        self.assertNotIn(said, self.run_icma(0, 'pack', 'cat', '-o', 'y.icma', *QUICK).words)
        self.assertIn(said, self.run_icma(0, 'add', 'y.icma', 'loha.safetensors').words)
        self.assertNotIn(said, self.run_icma(0, 'pack', 'loha.safetensors', '-o', 'x.icma', '-f', '--tier', 'lossless').words)


if __name__ == '__main__':
    main()
