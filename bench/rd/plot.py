# SPDX-License-Identifier: Apache-2.0
"""The numbers as a picture: SVG written by hand, two panels a collection, labels placed so that they do not overlap."""
import math

from . import report

WIDTH, PANEL_W, PANEL_H = 900, 372, 320
LEFT, GAP, TOP, ROW = 62, 84, 92, 404
INK, FAINT, PAPER = '#1f2933', '#e4e7eb', '#ffffff'

# Series of the numbers -> name in the legend, colour, marker, dashes. What is not here is in the tables only.
SERIES = {
    'icma latent': ('icma: latent, generate', '#d0021b', 'star', ''),
    'icma generate': ('icma: latent, generate', '#d0021b', 'star', ''),
    'icma bounded': ('icma: bounded', '#d0021b', 'disc', ''),
    'icma bounded, no generator': ('icma: bounded, no generator', '#d0021b', 'ring', '5 3'),
    'cast': ('16-bit casts', '#52606d', 'square', ''),
    'int groups': ('integers, groups of 64', '#1769aa', 'up', ''),
    'SVD F16': ('SVD of dW, fp16', '#7b3fa0', 'diamond', ''),
    'soup F16': ('Model Soup, fp16', '#3a7d0a', 'square', ''),
    'PCA F16': ('PCA, one fp16 file (numpy)', '#00897b', 'disc', ''),
    'vlora': ('vlora', '#e07b00', 'down', ''),
    'lorashare': ('lorashare', '#8d5524', 'diamond', ''),
}
GAIN_LOW, GAIN_HIGH = 0.80, 1.02


def escape(text):
    return text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')


def text(x, y, words, size=12, anchor='start', colour=INK, extra=''):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{extra}>{escape(words)}</text>'


def line(x1, y1, x2, y2, colour, width=1.0, extra=''):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"{extra}/>'


def polygon(points, colour):
    return f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="{colour}" stroke="{PAPER}" stroke-width="0.8"/>'


def marker(kind, x, y, colour):
    if kind == 'ring':
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.8" fill="{PAPER}" stroke="{colour}" stroke-width="1.8"/>'
    if kind == 'disc':
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.2" fill="{colour}" stroke="{PAPER}" stroke-width="0.8"/>'
    corners = {'star': [(7.5 if i % 2 == 0 else 3.2, 36 * i - 90) for i in range(10)],
               'square': [(5.4, 45 + 90 * i) for i in range(4)], 'diamond': [(5.6, 90 * i) for i in range(4)],
               'up': [(5.6, 120 * i - 90) for i in range(3)], 'down': [(5.6, 120 * i + 90) for i in range(3)]}
    return polygon([(x + r * math.cos(math.radians(a)), y + r * math.sin(math.radians(a))) for r, a in corners[kind]], colour)


class Scale:
    def __init__(self, low, high, at, to, log):
        self.low, self.high, self.at, self.to, self.log = low, high, at, to, log

    def __call__(self, v):
        f = math.log10 if self.log else float
        return self.at + (f(v) - f(self.low)) / (f(self.high) - f(self.low)) * (self.to - self.at)

    def ticks(self, mantissas=(1, 2, 5)):
        if not self.log:
            return [self.low + 0.05 * i for i in range(int((self.high - self.low) / 0.05 + 1e-9) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        return [m * 10.0 ** d for d in decades for m in mantissas if self.low <= m * 10.0 ** d <= self.high]


class Labels:
    """Puts small texts beside points, where they cover neither a point nor one another; leaves out what finds no place."""

    def __init__(self, box):
        self.box, self.taken, self.avoid, self.out = box, [], [], []

    def block(self, x, y, r=6):
        self.taken.append((x - r, y - r, x + r, y + r))

    def shun(self, path):
        """Prefers places away from a curve, but takes them where there is no other."""
        for (x1, y1), (x2, y2) in zip(path, path[1:]):
            n = int(math.hypot(x2 - x1, y2 - y1) / 4) + 1
            self.avoid += [(x1 + (x2 - x1) * i / n, y1 + (y2 - y1) * i / n) for i in range(n)]

    def free(self, a, strict):
        x1, y1, x2, y2 = self.box
        return (a[0] >= x1 and a[1] >= y1 and a[2] <= x2 and a[3] <= y2
                and not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in self.taken)
                and not (strict and any(a[0] < x < a[2] and a[1] < y < a[3] for x, y in self.avoid)))

    def put(self, x, y, words, colour):
        if not self.place(x, y, words, colour, True):
            self.place(x, y, words, colour, False)

    def place(self, x, y, words, colour, strict):
        w, h = 6.1 * len(words) + 2, 11
        for dx, dy in ((8, -h / 2), (-w - 8, -h / 2), (-w / 2, -h - 7), (-w / 2, 7), (6, -h - 4), (6, 4), (-w - 6, -h - 4), (-w - 6, 4),
                       (-w / 2, -h - 14), (-w / 2, 14), (12, -h - 10), (12, 10), (-w - 12, -h - 10), (-w - 12, 10)):
            a = (x + dx, y + dy, x + dx + w, y + dy + h)
            if self.free(a, strict):
                self.taken.append(a)
                halo = f' paint-order="stroke" stroke="{PAPER}" stroke-width="3" stroke-linejoin="round"'
                self.out.append(text(a[0] + 1, a[3] - 2, words, 10.5, colour=colour, extra=halo))
                return True
        return False


def points(result, where):
    """[(row, bits)] of what the plot shows."""
    return [(r, report.rate(r, result)[0]) for r in result['rows']
            if r['kind'] == 'lossy' and r['collection'] == where and r['series'] in SERIES and r['point'] and 'bytes' in r]


def bits_range(shown):
    bits = [b for _, b in shown]
    return min(bits) * 0.75, max(max(bits) * 1.35, 32)


def frame(sx, sy, y_name, y_label, x_label):
    out = []
    for v in sx.ticks():
        out += [line(sx(v), sy.at, sx(v), sy.to, FAINT), text(sx(v), sy.at + 16, f'{v:g}', 11, 'middle')]
    for v in sy.ticks((1,)):
        out += [line(sx.at, sy(v), sx.to, sy(v), FAINT), text(sx.at - 7, sy(v) + 4, y_label(v), 11, 'end')]
    out.append(f'<rect x="{sx.at:.1f}" y="{sy.to:.1f}" width="{sx.to - sx.at:.1f}" height="{sy.at - sy.to:.1f}" fill="none" stroke="#9aa5b1"/>')
    out.append(text((sx.at + sx.to) / 2, sy.at + 34, x_label, 12, 'middle'))
    x, y = sx.at - 48, (sy.at + sy.to) / 2
    out.append(text(x, y, y_name, 12, 'middle', extra=f' transform="rotate(-90 {x:.1f} {y:.1f})"'))
    return out


def curves(placed):
    """(series, points): a series in the order of its rates."""
    for name in dict.fromkeys(r['series'] for r, _, _, _ in placed):
        own = sorted((x, y) for r, x, y, _ in placed if r['series'] == name)
        if len(own) > 1:
            yield name, own


def draw(placed, box):
    """placed: (row, x, y, clipped). Points over curves, labels over points, ours placed first."""
    labels, out = Labels(box), []
    for name, own in curves(placed):
        _, colour, _, dashes = SERIES[name]
        extra = f' stroke-dasharray="{dashes}"' if dashes else ''
        out.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in own)}" fill="none" stroke="{colour}" '
                   f'stroke-width="1.4" stroke-opacity="0.65"{extra}/>')
        labels.shun(own)
    placed = sorted(placed, key=lambda p: not p[0]['series'].startswith('icma'))
    for r, x, y, _ in reversed(placed):
        labels.block(x, y)
        out.append(marker(SERIES[r['series']][2], x, y, SERIES[r['series']][1]))
    bounded = any(r['series'] == 'icma bounded' for r, _, _, _ in placed)
    for r, x, y, clipped in placed:
        if bounded and r['series'].startswith('icma') and r['series'] != 'icma bounded' and r['point'][0].isdigit():
            continue    # the numbers stand at the bounded curve already
        labels.put(x, y, r['point'] + (f' ({r["gain_mean"]:.2f})' if clipped else ''), SERIES[r['series']][1])
    return out + labels.out


def error_panel(shown, x, y):
    low = min([r['dw_mean'] for r, _ in shown if r['dw_mean'] > 1e-6], default=1e-3)
    sx, sy = Scale(*bits_range(shown), x, x + PANEL_W, True), Scale(10 ** math.floor(math.log10(low)), 2, y + PANEL_H, y, True)
    out = frame(sx, sy, 'relative error of dW: mean, line to maximum', lambda v: f'{v:g}', 'bits a parameter')
    shown = [(r, b) for r, b in shown if r['dw_mean'] > 1e-6]
    for r, b in shown:
        out.append(line(sx(b), sy(r['dw_mean']), sx(b), sy(min(r['dw_max'], 2)), SERIES[r['series']][1], 1.6, ' stroke-opacity="0.35"'))
    return out + draw([(r, sx(b), sy(r['dw_mean']), False) for r, b in shown], (sx.at, sy.to, sx.to, sy.at))


def gain_panel(shown, x, y):
    sx, sy = Scale(*bits_range(shown), x, x + PANEL_W, True), Scale(GAIN_LOW, GAIN_HIGH, y + PANEL_H, y, False)
    out = frame(sx, sy, 'gain kept', lambda v: f'{v:.2f}', f'bits a parameter; below {GAIN_LOW:.2f}: at the edge, with the value')
    shown = [(r, b) for r, b in shown if 'gain_mean' in r]
    if not shown:
        return out + [text((sx.at + sx.to) / 2, (sy.at + sy.to) / 2, 'not measured', 13, 'middle', '#7b8794')]
    return out + draw([(r, sx(b), sy(min(max(r['gain_mean'], GAIN_LOW), GAIN_HIGH)), r['gain_mean'] < GAIN_LOW) for r, b in shown],
                      (sx.at, sy.to, sx.to, sy.at))


def legend(result):
    """Names of the series that were measured, in rows of four."""
    used = {r['series'] for w in 'ab' for r, _ in points(result, w)}
    entries = list(dict.fromkeys(v for k, v in SERIES.items() if k in used))
    out = []
    for i, (name, colour, kind, _) in enumerate(entries):
        x, y = LEFT - 40 + 214 * (i % 4), 42 + 19 * (i // 4)
        out += [marker(kind, x, y, colour), text(x + 12, y + 4, name, 12)]
    return out, len(range(0, len(entries), 4))


def svg(result):
    marks, rows = legend(result)
    top = TOP + 19 * max(0, rows - 1)
    height = top + 2 * ROW - 38
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
           'font-family="Helvetica, Arial, DejaVu Sans, sans-serif" role="img">',
           '<title>Rate against distortion of LoRA adapters</title>', f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
           text(LEFT - 48, 22, 'Rate against distortion, all bytes counted', 16, extra=' font-weight="bold"'), *marks]
    for i, where in enumerate('ab'):
        y, shown, n = top + ROW * i, points(result, where), result['data'][where]['files']
        name = f'(a) all {n} checkpoints' if where == 'a' else f'(b) the last checkpoint of each task: {n} adapters'
        out.append(text(LEFT - 48, y - 12, name, 14, extra=' font-weight="bold"'))
        if shown:
            out += error_panel(shown, LEFT, y) + gain_panel(shown, LEFT + PANEL_W + GAP, y)
    return '\n'.join(out + ['</svg>']) + '\n'
