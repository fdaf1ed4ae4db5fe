"""A reader written from docs/FORMAT.md alone, in plain integers and NumPy, reads what the codec writes."""

import binascii
import hashlib
import json
import zlib

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from hybridflow.entropy import Encoder
from hybridflow.masking import SCHEDULES, region_grid
from hybridflow.model import HybridFlow


def counts(weights):
    weights = [int(weight) for weight in weights]
    c = [1 + weight * (2**20 - len(weights)) // sum(weights) for weight in weights]
    c[c.index(max(c))] += 2**20 - sum(c)
    return np.array(c)


class RangeDecoder:
    def __init__(self, stream):
        self.stream, self.position, self.range = stream, 8, 2**64 - 1
        self.point = int.from_bytes(stream[:8].ljust(8, b"\0"), "big")

    def _entry(self, bounds):
        step = self.range // 2**24
        k = np.searchsorted(bounds, self.point // step, side="right") - 1
        self.point -= step * int(bounds[k])
        self.range = step * int(bounds[k + 1] - bounds[k])
        if self.range < 2**32:
            self.range <<= 32
            word = self.stream[self.position : self.position + 4].ljust(4, b"\0")
            self.point, self.position = (self.point << 32) + int.from_bytes(word, "big"), self.position + 4
        return int(k)

    def symbol(self, table):
        table = table.astype(int)
        starts = np.cumsum(table) - table
        return self._entry(np.append(starts * (2**24 - len(table)) // 2**20 + np.arange(len(table)), 2**24))

    def uniform(self, bits):
        value = 0
        while bits:
            piece = bits % 16 or 16
            value = value << piece | self._entry(np.arange(2**piece + 1) << 24 - piece)
            bits -= piece
        return value

    def signed_run(self, tables):
        values = [self.symbol(table) - (len(table) // 2 - 1) for table in tables]
        reach = len(tables[0]) // 2 - 1
        for i, value in enumerate(values):
            if value > reach:
                bits = 0
                while self.uniform(1):
                    bits += 1
                magnitude = reach + 2**bits + self.uniform(bits)
                values[i] = -magnitude if self.uniform(1) else magnitude
        return values


class Reader:
    def __init__(self, path):
        with safe_open(path, framework="np") as file:
            self.size = json.loads(file.metadata()["preset"])
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}
        self.model_id = self._model_id()

    def _model_id(self):
        digest = hashlib.sha256()
        named = ("codebook.codewords", "continuous.exact.", "index_prior.exact.")
        named += ("continuous.log_inverse_gain.anchors", "continuous.scale_counts")
        for name in sorted(self.tensors):
            if name.startswith(named):
                values = self.tensors[name]
                kind = {"int8": "i1", "int32": "<i4"}.get(values.dtype.name, "<f4")
                digest.update(name.encode() + values.astype(kind).tobytes())
        return digest.digest()[:3]

    def integers(self, name):
        return self.tensors[name].astype(int)

    def layer(self, name, x, n=1, row=0):
        """Totals of x (C,h,w)."""
        (_, h, w), reach = x.shape, n // 2
        padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)))
        kernel = self.integers(f"{name}.weight").reshape(-1, len(x), n, n)
        taps = ((a, b) for a in range(n) for b in range(n))
        sums = sum(np.tensordot(kernel[:, :, a, b], padded[:, a : a + h, b : b + w], 1) for a, b in taps)
        multiplier, bias = self.integers(f"{name}.multiplier"), self.integers(f"{name}.bias")[row]
        return sums * multiplier[:, None, None] + bias[:, None, None]

    def read(self, data):
        """-> z, y, sent, indices."""
        assert data[:1] == b"H" and data[1] // 8 == 0x98 // 8
        assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "big") and data[2:5] == self.model_id
        schedule, self.quality, bits = data[1] % 8, data[5] % 64, (8, 12, 16, 32)[data[5] // 64]
        start = 6 + 2 * bits // 8
        sides = [side + 1 for side in divmod(int.from_bytes(data[6:start], "big"), 2**bits)]
        header, self.coder = data[:start], RangeDecoder(data[start:-4])
        w, h = (-(-side // 16) for side in sides)
        z = self._z(h, w)
        y = self._y(self._hyper_features(z)[:, :h, :w])
        check = binascii.crc_hqx(header + z.astype("<i4").tobytes() + y.astype("<i4").tobytes(), 0xFFFF)
        assert self.coder.uniform(16) == check
        sent = self._sent(schedule, h, w)
        return z, y, sent, self._indices(y, sent)

    def _z(self, h, w):
        part, channels = "continuous.exact.hyper_prior.", self.size["z_channels"]
        z = np.zeros((channels, -(-h // 4), -(-w // 4)), int)
        for s in range(4):
            mean, scale = self._distribution(part, 16 * z, s)
            mine = steps(z) == s
            tables = self.tensors["continuous.scale_counts"][mean[mine] % 16, scale[mine]]
            runs = [self.coder.signed_run(tables[i : i + 4096]) for i in range(0, len(tables), 4096)]
            z[mine] = mean[mine] // 16 + np.array(sum(runs, []), int)
        return z

    def _distribution(self, part, known, s, features=0):
        """Means and scales of step s."""
        i, j = np.indices(known.shape[1:])
        x = features + self.layer(part + "known", np.clip(known, -8191, 8191), 3, self.quality)
        x = act(x + self.integers(part + "step")[s][2 * (i % 2) + j % 2].transpose(2, 0, 1))
        x = act(self.layer(part + "second", act(self.layer(part + "first", x))))
        x = rescale(self.layer(part + "out", x))
        return x[: len(known)], np.clip(x[len(known) :], 0, 63)

    def _hyper_features(self, z):
        part = "continuous.exact."
        x = act(self.layer(part + "inward", np.clip(z, -127, 127), 3, self.quality))
        x = act(shuffle(self.layer(part + "upward", x)))
        return shuffle(self.layer(part + "outward", act(self.layer(part + "middle", x, 3))))

    def _y(self, features):
        known = np.zeros((self.size["latent_channels"], *features.shape[1:]), int)
        for s in range(4):
            mean, scale = self._distribution("continuous.exact.", known, s, features)
            for index, table in enumerate(self.tensors["continuous.scale_counts"][0]):
                run = (steps(known) == s) & (scale == index)
                if run.any():
                    known[run] = mean[run]
                    known[run] += 16 * np.array(self.coder.signed_run(run.sum() * [table])) if index else 0
        return known

    def _sent(self, schedule, h, w):
        i, j = np.indices((h, w))
        masks = [i >= 0, (i % 2 == 0) & (j % 2 == 0), (i % 3 == 1) & (j % 3 == 1), i < 0]
        if schedule < 4:
            return masks[schedule]
        rows, columns = -(-h // 6), -(-w // 6)
        seen, regions = np.array([2, 4, 4, 8]), []
        for position in range(rows * columns):
            n = seen.copy()
            if position % columns > 0:
                n[regions[position - 1]] += 1
            if position // columns > 0:
                n[regions[position - columns]] += 1
            regions.append(self.coder.symbol(counts(n)))
            seen[regions[-1]] += 1
        return np.choose(np.reshape(regions, (rows, columns))[i // 6, j // 6], masks)

    def _indices(self, y, sent):
        part, (h, w) = "index_prior.exact.", sent.shape
        x = act(self.layer(part + "first", np.clip(y, -8191, 8191), 3))
        features = self.layer(part + "third", act(self.layer(part + "second", x)), 3, self.quality)
        exponential = self.integers(part + "exponential")
        i, j = np.indices((h, w))
        even, odd = (i % 2 == 0) & (j % 2 == 0), (i % 2 == 1) & (j % 2 == 1)
        steps = np.where(even, (i // 2 + j // 2) % 2, np.where(odd, 2, 3))
        indices = np.zeros((h, w), int)
        for s in range(4):
            known = sent & (steps < s)
            rows = self.integers(part + "embedding")[indices] * known[..., None]
            around = self.layer(part + "known", rows.transpose(2, 0, 1), 5)
            x = act(features + around + self.integers(part + "step")[s][:, None, None])
            logits = rescale(self.layer(part + "out", act(self.layer(part + "hidden", x))))
            for a, b in np.argwhere(sent & (steps == s)):
                below = logits[:, a, b].max() - logits[:, a, b]
                indices[a, b] = self.coder.symbol(counts(np.append(exponential, 0)[np.minimum(below, 2048)]))
        return indices


def steps(latent):
    """At which each symbol of y or z is coded."""
    c, i, j = np.indices(latent.shape)
    return (np.argsort([0, 3, 1, 2])[2 * (i % 2) + j % 2] - c) % 4


def rescale(total):
    return (total + 2**19) // 2**20


def act(total):
    return np.clip(rescale(total), 0, 127)


def shuffle(x):
    channels, h, w = x.shape
    return x.reshape(channels // 4, 2, 2, h, w).transpose(0, 3, 1, 4, 2).reshape(channels // 4, 2 * h, 2 * w)


def test_the_document_describes_escapes():
    table = counts(list(range(1, 9)))
    values = [0, 3, -3, 4, -4, 5, -7, 100, -(2**20), 2**33 + 5]
    encoder = Encoder()
    encoder.encode_signed(np.array(values), table)
    assert RangeDecoder(encoder.finish()).signed_run(len(values) * [table]) == values


@pytest.mark.parametrize("width, height, quality", [(1, 1, 63), (15, 17, 0), (150, 139, 40)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_document_describes_the_file(codec, checkpoint_path, photos, width, height, quality, schedule, monkeypatch):
    def choose(self, analysed, y, quality):
        return np.random.default_rng(0).integers(0, 4, region_grid(*analysed.indices.shape))

    monkeypatch.setattr(HybridFlow, "_choose_regions", choose)
    picture = Image.open(photos[1]).crop((200, 200, 200 + width, 200 + height))
    data = codec.encode(picture, quality=quality, schedule=schedule)
    z, y, sent, indices = Reader(checkpoint_path).read(data)
    _, coded = codec.model.write(codec.analyse(picture), quality, schedule)
    assert (z == coded.z).all() and (y == coded.y).all()
    assert (sent == coded.sent).all() and (indices == coded.indices).all()
