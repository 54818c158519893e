# SPDX-License-Identifier: Apache-2.0
"""Decoder of lossless links, written from spec/icma-format.md 4.14."""
import numpy

import rans

FRAME, BLOCK, UNIT = 262144, 65536, 4096
# Stored bits of the significand, bits of an element, levels.
FORMATS = {'F32': (23, 32, 8 * 263), 'F16': (10, 16, 8 * 39), 'BF16': (7, 16, 8 * 263)}
CONTEXTS = [[97, 98, 99, 100, 101, 102, 103, 104], [87, 89, 90, 91, 92, 93, 94, 95], [78, 79, 80, 82, 83, 84, 85, 86],
            [67, 68, 70, 71, 72, 74, 75, 76], [54, 56, 58, 59, 61, 62, 64, 65], [37, 40, 42, 45, 47, 49, 51, 53],
            [1, 6, 12, 17, 22, 26, 30, 34], [0] * 8]


class Corrupt(Exception):
    pass


class Cursor:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if count > len(self.data) - self.at:
            raise Corrupt('a lossless link ends too soon')
        self.at += count
        return self.data[self.at - count:self.at]

    def u8(self):
        return self.take(1)[0]

    def varint(self):
        value = 0
        for i in range(10):
            byte = self.u8()
            if (i == 9 and byte > 1) or (i and byte == 0):
                break
            value |= (byte & 127) << 7 * i
            if byte < 128:
                return value
        raise Corrupt('a malformed varint')

    def signed(self):
        value = self.varint()
        return ~(value >> 1) if value & 1 else value >> 1


class Tensor:
    """A coded tensor: its dtype, its elements in each tap (bits), and what the plan says."""

    def __init__(self, dtype, count, taps):
        self.mantissa, self.width, self.levels = FORMATS[dtype]
        self.dtype, self.count, self.taps = dtype, count, taps
        self.bits = None  # decoded


class Profile:
    def __init__(self, cursor, taps):
        self.weights = []
        for k in range(taps):
            weight = cursor.signed()
            if abs(weight) > 1 << 20:
                raise Corrupt('a weight is out of range')
            self.weights.append(weight + (0 if k else UNIT))
        count = cursor.u8()
        if count > 8:
            raise Corrupt('too many corrections')
        self.corrections = numpy.frombuffer(cursor.take(count), numpy.int8).astype(int).tolist()

    def coefficients(self):
        w = [*self.weights, 0]
        return [w[k + 1] - w[k] if k else w[0] + w[1] for k in range(len(self.weights))]


def widen(dtype, bits):
    if dtype == 'F16':
        return bits.astype(numpy.uint16).view(numpy.float16).astype(numpy.float32)
    return (bits << (16 if dtype == 'BF16' else 0)).astype(numpy.uint32).view(numpy.float32)


def narrow(dtype, values):
    """Bits, and which of them are finite; those of what is not do not matter."""
    bits = values.view(numpy.uint32).astype(numpy.int64)
    good = numpy.isfinite(values)
    if dtype == 'F16':
        bits = values.astype(numpy.float16).view(numpy.uint16).astype(numpy.int64)
        return bits, good & (bits & 0x7c00 != 0x7c00)
    if dtype == 'BF16':
        bits = bits + 0x7fff + (bits >> 16 & 1) >> 16 & 0xffff
        return bits, good & (bits & 0x7f80 != 0x7f80)
    return bits, good


def predict(tensor, profile, first, count):
    taps = [(c, tap[first:first + count]) for c, tap in zip(profile.coefficients(), tensor.taps) if c]
    if not taps:
        return numpy.zeros(count, numpy.int64)
    with numpy.errstate(all='ignore'):
        total = None
        for c, tap in taps:
            product = numpy.float32(c / UNIT) * widen(tensor.dtype, tap)
            total = product if total is None else total + product
        bits, good = narrow(tensor.dtype, total)
    return numpy.where(good, bits, taps[0][1])


def fold(tensor, lift, bits):
    sign = bits >> tensor.width - 1
    u = bits & (1 << tensor.width - 1) - 1
    binade = numpy.minimum(numpy.maximum(u >> tensor.mantissa, 1) - 1, lift)
    high = u - (binade << tensor.mantissa) >> numpy.minimum(lift - binade, 62)
    return numpy.where(sign, ~high, high)


def wrap(values, width):
    half = 1 << width - 1
    return (values + half) % (2 * half) - half


def decode_frame(tensor, data, decompress, first, count):
    size = tensor.width // 8
    raw = numpy.frombuffer(decompress(data, count * size), numpy.uint8).reshape(size, count).T.tobytes()
    stored = numpy.frombuffer(raw, numpy.dtype(f'<u{size}')).astype(numpy.int64)
    difference = numpy.where(stored & 1, ~(stored >> 1), stored >> 1)
    folded = wrap(fold(tensor, 0, predict(tensor, tensor.profile, first, count)) + difference, tensor.width)
    tensor.bits[first:first + count] = numpy.where(folded < 0, ~folded | 1 << tensor.width - 1, folded)


class Bits:
    def __init__(self, data):
        self.value, self.size, self.at = int.from_bytes(data, 'little'), len(data), 0
        self.data = data + bytes(8)

    def take(self, count):
        first = self.at // 8
        value = int.from_bytes(self.data[first:first + 8], 'little') >> self.at % 8 & (1 << count) - 1
        self.at += count
        return value

    def end(self):
        if (self.at + 7) // 8 != self.size or self.value >> self.at:
            raise Corrupt('low bits do not end where their elements do')


def contexts(tensor, folded):
    """Of elements that are predicted as `folded`."""
    octave, column = divmod(tensor.level, 8)
    high = numpy.where(folded < 0, ~folded, folded)
    depth = numpy.maximum((high >> tensor.mantissa) - 1, 0) + max(8 - octave, 0)
    out = numpy.array([row[column] for row in CONTEXTS])[numpy.minimum(depth, 7)]
    if tensor.profile.corrections:
        corrections = numpy.array(tensor.profile.corrections)
        out = numpy.clip(out + corrections[numpy.minimum(depth, len(corrections) - 1)], 0, rans.CONTEXTS - 1)
    return out


def magnitude(tensor, lift, high, low):
    m = tensor.mantissa
    if high == 0 and lift > m:
        zeros = 0
        while zeros < 8 and not low.take(1):
            zeros += 1
        if zeros == 8:
            raise Corrupt('a binade has no number')
        number = (1 << zeros) + low.take(zeros)
        if number > lift - m + 1:
            raise Corrupt('a binade is not there')
        return (lift - m + 1 - number << m) + low.take(m)
    bits = min(lift, max(m + 1 - high.bit_length(), 0))
    return (lift - bits << m) + (high << bits) + low.take(bits)


def decode_block(stretches, stream, low):
    """`stretches`: tensor, first, count."""
    predicted = [fold(t, max(t.level // 8, 8) - 8, predict(t, t.profile, first, count)) for t, first, count in stretches]
    context = numpy.concatenate([contexts(t, p) for (t, _, _), p in zip(stretches, predicted)])
    order = numpy.argsort(context, kind='stable')
    numbers, counts = numpy.unique(context, return_counts=True)
    symbols = numpy.empty(len(context), numpy.int64)
    symbols[order] = rans.decode(stream, list(zip(counts.tolist(), numbers.tolist())))
    folded, low, at = wrap(numpy.concatenate(predicted) + symbols, 32).tolist(), Bits(low), 0
    for tensor, first, count in stretches:
        lift, sign = max(tensor.level // 8, 8) - 8, 1 << tensor.width - 1
        for i in range(count):
            f = folded[at + i]
            u = magnitude(tensor, lift, f if f >= 0 else ~f, low)
            if u >= sign:
                raise Corrupt('an element has too many bits')
            tensor.bits[first + i] = u | (sign if f < 0 else 0)
        at += count
    low.end()


def read_plan(cursor, tensors, taps):
    profiles = cursor.varint()
    if profiles > len(tensors):
        raise Corrupt('more profiles than tensors')
    profiles = [Profile(cursor, taps) for _ in range(profiles)]
    for tensor in tensors:
        method = cursor.varint()
        tensor.method = ('plain' if method == 0 else 'grouped' if method % 2 else 'modelled')
        if method and (method - 1) // 2 >= len(profiles):
            raise Corrupt('a profile that is not there')
        tensor.profile = profiles[(method - 1) // 2] if method else None
    level = dict.fromkeys(FORMATS, 0)
    for tensor in tensors:
        if tensor.method == 'modelled':
            tensor.level = level[tensor.dtype] = level[tensor.dtype] + cursor.signed()
            if not 0 <= tensor.level < tensor.levels:
                raise Corrupt('a level is out of range')


def cut_blocks(tensors):
    """Lists of tensor, first, count."""
    blocks, room = [], 0
    for tensor in tensors:
        first = 0
        while tensor.method == 'modelled' and first < tensor.count:
            if room == 0:
                blocks.append([])
                room = BLOCK
            count = min(room, tensor.count - first)
            blocks[-1].append((tensor, first, count))
            first += count
            room -= count
    return blocks


def load(dtype, data):
    return numpy.frombuffer(data, '<u4' if dtype == 'F32' else '<u2').astype(numpy.int64)


def decode(payload, tensors, taps, decompress):
    """`tensors`: for each coded tensor its dtype, the number of its elements, and a list of its bytes in each of the `taps` taps. Returns the bytes of each. `decompress`
    takes a zstd frame and the size that it must have. Raises Corrupt or rans.Corrupt, or what `decompress` raises."""
    tensors = [Tensor(dtype, count, [load(dtype, tap) for tap in data]) for dtype, count, data in tensors]
    some = [tensor for tensor in tensors if tensor.count]
    cursor = Cursor(payload)
    stored_taps, size, packed = cursor.u8(), cursor.varint(), cursor.varint()
    if stored_taps != taps:
        raise Corrupt('another number of taps')
    if size > 10 + 128 * len(some) + 20 * (1 + sum(1 + t.count // BLOCK for t in some)):
        raise Corrupt('a plan is too long')
    plan = Cursor(decompress(cursor.take(packed), size) if packed else cursor.take(size))
    read_plan(plan, some, taps)
    frames = [(t, first, min(FRAME, t.count - first)) for t in some if t.method == 'grouped' for first in range(0, t.count, FRAME)]
    blocks = cut_blocks(some)
    sizes = [plan.varint() for _ in range(len(frames) + len(blocks))]
    lows = [plan.varint() for _ in blocks]
    if plan.at != len(plan.data):
        raise Corrupt('bytes after a plan')
    for t in tensors:
        t.bits = numpy.zeros(t.count, numpy.int64)
        if t.count and t.method == 'plain':
            t.bits[:] = load(t.dtype, cursor.take(t.count * t.width // 8))
    for (t, first, count), size in zip(frames, sizes):
        decode_frame(t, cursor.take(size), decompress, first, count)
    for block, size, low in zip(blocks, sizes[len(frames):], lows):
        stream = cursor.take(size)
        decode_block(block, stream, cursor.take(low))
    if cursor.at != len(payload):
        raise Corrupt('bytes after a lossless link')
    return [t.bits.astype('<u4' if t.width == 32 else '<u2').tobytes() for t in tensors]
