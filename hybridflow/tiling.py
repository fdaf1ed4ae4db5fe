"""Large images are worked on tile by tile, so that what a network holds does not grow with them and no seam shows."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

STRIDE = 16
"""Pixels of a latent's side."""
REACH = 128
"""No pixel depends on a latent further than so many pixels away, nor a latent on such a pixel."""
HALO = REACH // STRIDE
TILE = 64
"""About the largest side of a tile in latents: 1,024 pixels. Smaller ones are mostly margin, and larger ones leave the
cache of a CPU: a photo of 12 megapixels is analysed in two thirds of the time that it takes as a whole."""

Window = tuple[slice, slice]


class Tile(NamedTuple):
    """A part of a map of latents."""

    window: Window
    """The part and `HALO` around it, as far as the map goes: what is worked on."""
    core: Window
    """The part inside the window."""
    part: Window
    """The part inside the map."""


def tiles(h: int, w: int, step: int = 1) -> Iterator[Tile]:
    """About equal tiles of h x w latents, whose inner borders are multiples of `step`."""
    for rows, columns in itertools.product(_spans(h, step), _spans(w, step)):
        yield Tile(*zip(rows, columns))


def _spans(size: int, step: int) -> list[tuple[slice, slice, slice]]:
    """Along one side, what `Tile` is along both."""
    parts = -(-size // TILE)
    borders = [round(part * size / parts / step) * step for part in range(parts)] + [size]
    spans = []
    for start, end in itertools.pairwise(borders):
        first = max(0, start - HALO)
        spans.append((slice(first, min(size, end + HALO)), slice(start - first, end - first), slice(start, end)))
    return spans


def pixels_of(window: Window) -> Window:
    """The pixels of a window of latents."""
    rows, columns = (slice(STRIDE * span.start, STRIDE * span.stop) for span in window)
    return rows, columns


def encode_tiled(encode: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """encode(image (B,3,16h,16w)) -> latents (B,C,h,w), in tiles whose margins make them those of the whole."""
    h, w = (side // STRIDE for side in image.shape[-2:])
    parts = [(encode(image[(..., *pixels_of(t.window))])[(..., *t.core)], t.part) for t in tiles(h, w)]
    return _joined(parts, h, w)


def decode_tiled(decode: Callable[..., Tensor], *latents: Tensor) -> Tensor:
    """decode(*latents), where every latent is (B,C,h,w) and the result (B,3,16h,16w), likewise."""
    h, w = latents[0].shape[-2:]
    parts = []
    for tile in tiles(h, w):
        decoded = decode(*(latent[(..., *tile.window)] for latent in latents))
        parts.append((decoded[(..., *pixels_of(tile.core))], pixels_of(tile.part)))
    return _joined(parts, STRIDE * h, STRIDE * w)


def compare_tiled(compare: Callable[..., Tensor], *images: Tensor) -> Tensor:
    """compare(*images), where every image is (B,3,16h,16w) and the result (B,1,16h,16w), nearly likewise: maps
    that are stretched to the size of a window differ by a few pixels from those of the whole."""
    height, width = images[0].shape[-2:]
    parts = []
    for tile in tiles(height // STRIDE, width // STRIDE):
        window, core, part = map(pixels_of, tile)
        parts.append((compare(*(image[(..., *window)] for image in images))[(..., *core)], part))
    return _joined(parts, height, width)


def _joined(parts: list[tuple[Tensor, Window]], height: int, width: int) -> Tensor:
    """Parts (B,C,...) and where they belong in a map of height x width -> the map."""
    first = parts[0][0]
    if len(parts) == 1:
        return first
    whole = first.new_empty(*first.shape[:2], height, width)
    for part, where in parts:
        whole[(..., *where)] = part
    return whole
