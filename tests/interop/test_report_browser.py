#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The report as a browser shows it: everything is drawn where it belongs, in both themes, on paper, without script or network."""
import base64
import os
import re
import shutil
import sys
import unittest

import numpy as np

from browser import PROGRAM, Browser
from common import LORAS, Case

TASKS = ('c', 'doc', 'python')

# Of each picture: its title, and of what is drawn the tag, class and box, relative to the picture in its own pixels.
BOXES = '''
[...document.querySelectorAll('svg')].map(svg => {
  const all = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / all.width;
  return {title: svg.querySelector('title').textContent, width: svg.viewBox.baseVal.width, height: svg.viewBox.baseVal.height,
    shown: [all.width, all.height],
    parts: [...svg.querySelectorAll('text,rect,circle,line,path')].map(e => {
      const b = e.getBoundingClientRect();
      return {tag: e.tagName, name: e.getAttribute('class') || '', text: e.textContent, turned: !!e.closest('[transform]'),
        box: [b.left - all.left, b.top - all.top, b.right - all.left, b.bottom - all.top].map(x => x * scale)};
    })};
})
'''

# Contrast of every text with what lies behind it, the least (WCAG 2.1).
CONTRAST = '''
(() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = getComputedStyle(document.body).backgroundColor, out = [];
  for (const e of document.querySelectorAll('h1,h2,p,td,th,b,span,code,svg text')) {
    const style = getComputedStyle(e), cell = e.closest('g') && e.closest('g').querySelector('rect');
    const ink = light(e.closest('svg') ? style.fill : style.color), back = light(cell ? getComputedStyle(cell).fill : paper);
    out.push((Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05));
  }
  return Math.min(...out);
})()
'''


def overlap(a, b):
    return min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 2


class Report(Case):
    @classmethod
    def setUpClass(cls):
        cls.browser = cls.enterClassContext(Browser())

    def page(self, name, *options, tree=LORAS, report=()):
        self.icma('pack', tree, '-o', self.path(f'{name}.icma'), '-q', *options)
        self.icma('report', self.path(f'{name}.icma'), '-o', self.path(f'{name}.html'), *report)
        return 'file://' + self.path(f'{name}.html')

    def assertDrawn(self, url, theme, width=1060):
        self.browser.open(url, theme, width)
        pictures = self.browser.evaluate(BOXES)
        self.assertGreater(len(pictures), 4)
        for picture in pictures:
            self.assertTrue(all(side > 20 for side in picture['shown']), picture['title'])
            for part in picture['parts']:
                left, top, right, bottom = part['box']
                self.assertTrue(right - left > 0 or bottom - top > 0 or (part['tag'] == 'path' and part['name'].startswith(('line', 'thin'))), (picture['title'], part))
                self.assertTrue(-1 <= left and right <= picture['width'] + 1 and -1 <= top and bottom <= picture['height'] + 1, (picture['title'], part))
            texts = [p for p in picture['parts'] if p['tag'] == 'text' and not p['turned']]
            for i, a in enumerate(texts):
                for b in texts[:i]:
                    self.assertFalse(overlap(a['box'], b['box']), (picture['title'], a, b))
        self.assertGreater(self.browser.evaluate(CONTRAST), 4.5, theme)
        self.assertLessEqual(self.browser.evaluate('document.documentElement.scrollWidth'), width)
        self.assertQuiet(url)
        return pictures

    def assertQuiet(self, url):
        """No errors, no words on the console, no request but for the page itself."""
        noise = self.browser.heard('Runtime.exceptionThrown', 'Runtime.consoleAPICalled', 'Log.entryAdded')
        self.assertEqual(noise, [])
        self.assertEqual({e['params']['request']['url'] for e in self.browser.heard('Network.requestWillBeSent')}, {url})

    def vectors(self):
        draw = np.random.default_rng(3)
        os.mkdir(self.path('vectors'))
        for i, task in enumerate(TASKS):
            np.save(self.path('vectors', f'{task}.npy'), (draw.normal(size=(40, 16)) + 3 * np.eye(16)[i]).astype('<f4'))
        return self.path('vectors')

    def test_both_themes(self):
        judge = self.path('judge.py')
        with open(judge, 'w') as f:
            f.write("import os, sys\nsize = 2 - len(sys.argv) * 0.25\nprint(size + (len(sys.argv[1]) % 3) * 0.1)\n")
        eval_ = ('--eval', f'{sys.executable} {judge} {{task}} {{adapter}}', '--eval-base', f'{sys.executable} {judge} {{task}}')
        url = self.page('full', '--epochs', '60', report=('--against', LORAS, '--zstd', '--vectors', self.vectors(), *eval_))
        shown = {theme: self.assertDrawn(url, theme) for theme in ('light', 'dark')}
        titles = ' '.join(p['title'] for p in shown['light'])
        for part in ('by kind', 'other ways', 'Bits a parameter', 'number of adapters', 'layers by modules', 'stored bytes by step', 'principal components', 't-SNE', 'Losses', 'Scores'):
            self.assertIn(part, titles)
        self.assertEqual([p['title'] for p in shown['light']], [p['title'] for p in shown['dark']])
        self.assertDrawn(url, 'light', width=420)

    def test_themes_differ(self):
        url = self.page('small', '--epochs', '20', '--tier', 'latent')
        paper = []
        for theme in ('light', 'dark'):
            self.browser.open(url, theme)
            paper.append(self.browser.evaluate('getComputedStyle(document.body).backgroundColor'))
        self.assertGreater(min(map(int, re.findall(r'\d+', paper[0]))), 230)
        self.assertLess(max(map(int, re.findall(r'\d+', paper[1]))), 60)

    def test_other_archives(self):
        for name, options in (('exact', ('--tier', 'lossless')), ('none', ('--generator', 'none')), ('soup', ('--generator', 'soup', '--tier', 'generate'))):
            with self.subTest(name):
                self.assertDrawn(self.page(name, *options), 'light')

    def test_hostile_names(self):
        tree = self.path('tree')
        for i, name in enumerate(('<script>document.title=1<script>', '" onload="document.title=1', 'x' * 180, '\u6f22\u5b57' * 20)):
            shutil.copytree(os.path.join(LORAS, TASKS[i % 3]), os.path.join(tree, name))
        url = self.page('hostile', '--tier', 'latent', '--epochs', '20', tree=tree, report=('--against', tree))
        self.assertDrawn(url, 'light')
        self.assertNotEqual(self.browser.evaluate('document.title'), '1')
        self.assertEqual(self.browser.evaluate("document.querySelectorAll('script').length"), 0)

    def test_prints(self):
        url = self.page('paper', '--epochs', '20', '--tier', 'latent')
        self.browser.open(url, 'dark')
        pdf = base64.b64decode(self.browser.call('Page.printToPDF', printBackground=True, preferCSSPageSize=True)['data'])
        self.assertTrue(pdf.startswith(b'%PDF-') and pdf.rstrip().endswith(b'%%EOF'))
        self.assertGreater(len(re.findall(rb'/Type\s*/Page\b', pdf)), 1)
        self.browser.call('Emulation.setEmulatedMedia', media='print', features=[{'name': 'prefers-color-scheme', 'value': 'dark'}])
        paper = self.browser.evaluate('getComputedStyle(document.body).backgroundColor')
        self.assertGreater(min(map(int, re.findall(r'\d+', paper))), 230, 'white paper stays white')


if __name__ == '__main__':
    if not PROGRAM:
        print('SKIPPED: no Chromium here; scripts/bootstrap --interop installs it')
        sys.exit(77)
    unittest.main(verbosity=1)
