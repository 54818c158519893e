#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Records of training are JSON that a stranger may have written: whatever they say, what shows them ends, and shows no markup of theirs."""
import json
import pathlib
import re
import sys

from harness import Case, main

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'vectors'))
import mutants  # noqa: E402

TINY, HUGE = 5e-324, 9e307
MARKUP = '</style><script>"&\''


def rate(error, bits):
    return {'rate': [{'bound': error, 'predicted_error': error, 'bits_per_parameter': bits}]}


def losses(*values):
    return {'losses': [{'epoch': value, 'reconstruction': value, 'kl': value} for value in values]}


def modules(*values):
    return {'modules': [{'module': f'{MARKUP}.{i}.b', 'relative_error': value, 'cosine': value} for i, value in enumerate(values)]}


RECORDS = {
    'tiny errors': rate(TINY, 1), 'tiny bits': rate(1, TINY), 'huge rates': rate(HUGE, HUGE), 'all tiny': rate(TINY, TINY),
    'tiny losses': losses(TINY), 'huge losses': losses(HUGE, -HUGE, 1), 'far apart': losses(TINY, HUGE),
    'errors below 0': modules(-HUGE, HUGE, 0, None), 'huge errors': modules(0, HUGE), 'tiny module errors': modules(TINY, 2 * TINY),
    'other types': {'losses': [{'epoch': '1', 'reconstruction': [1], 'kl': {}}], 'rate': MARKUP, 'modules': [None, 1, {}, [], {'module': 5, 'relative_error': 'x'}],
                    'tensors': {'name': 1}, 'options': [1], 'eigen': [HUGE]},
    'options': {'options': {MARKUP: MARKUP, 'list': [HUGE] * 1000, 'deep': [[[[1]]]], 'number': -HUGE}, 'eigen': {'explained': HUGE}},
    'no object': [MARKUP], 'a number': HUGE,
}


class Records(Case):
    def test_any(self):
        for name, record in RECORDS.items():
            with self.subTest(name):
                draft = mutants.Draft('basis-learned')
                draft.edit(mutants.RECORD, lambda raw: json.dumps(record).encode())
                (self.here / 'h.icma').write_bytes(draft.build())
                for words in (('report', '-o', 'h.html', '-f'), ('report', '-o', 'h.json', '-f'), ('report',), ('info',), ('info', '--json')):
                    self.run_icma(0, *words, 'h.icma')
                page = (self.here / 'h.html').read_text()
                self.assertNotIn('<script', page)
                self.assertEqual(page.count('</style>'), 1)
                self.assertEqual(re.findall(r'class="m-\d', page), [])
                self.assertIsNone(re.search(r'="[^"]*\b(nan|inf)\b', page))


if __name__ == '__main__':
    main()
