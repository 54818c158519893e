#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Adapters of twelve tasks for bench/steering: examples/train_adapters.py with more kinds of text, which a Debian machine with
cmake, node and the like has.

  train.py OUT --base base.safetensors [further options of examples/train_adapters.py]
  train.py OUT --base base.safetensors --held-out     the text that judges them, OUT/val_<task>.bin
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / 'examples'))
import train_adapters  # noqa: E402

MORE = {
    'cmake': (['/usr/share/cmake-3.%d/Modules' % n for n in range(13, 40)], ('.cmake',), 'cmake-data'),
    'html': (['/usr/share/doc'], ('.html',), 'libarchive-dev or any documentation'),
    'js': (['/usr/lib/node_modules', '/usr/share/javascript', '/usr/share/nodejs'], ('.js',), 'nodejs'),
    'md': (['/usr/share/doc', '/usr/lib/node_modules'], ('.md', '.md.gz'), 'nodejs'),
    'rst': (['/usr/share/cmake-3.%d/Help' % n for n in range(13, 40)], ('.rst',), 'cmake-data'),
    'xml': (['/usr/share/mime', '/usr/share/X11', '/usr/share/gdb'], ('.xml',), 'shared-mime-info'),
}

if __name__ == '__main__':
    train_adapters.SOURCES.update(MORE)
    if '--tasks' not in ' '.join(sys.argv):
        sys.argv += ['--tasks', ','.join(sorted(train_adapters.SOURCES))]
    train_adapters.main()
