"""Large images are decoded tile by tile, so that memory does not grow with their size and no seam shows."""

from collections.abc import Callable

import torch
from torch import Tensor

from hybridflow.pixel_decoder import REACH

TILE = 64
"""Side of a tile in latents: 1,024 pixels."""
HALO = REACH // 16


def decode_tiled(decode: Callable[..., Tensor], *latents: Tensor) -> Tensor:
    """decode(*latents), where every latent is (B,C,h,w) and the result (B,3,16h,16w), in tiles with enough margin that
    their pixels are those of the whole."""
    h, w = latents[0].shape[-2:]
    if h <= TILE and w <= TILE:
        return decode(*latents)
    rows = [
        torch.cat([_tile(decode, latents, top, left) for left in range(0, w, TILE)], dim=-1)
        for top in range(0, h, TILE)
    ]
    return torch.cat(rows, dim=-2)


def _tile(decode: Callable[..., Tensor], latents: tuple[Tensor, ...], top: int, left: int) -> Tensor:
    above, before = min(HALO, top), min(HALO, left)
    window = (slice(top - above, top + TILE + HALO), slice(left - before, left + TILE + HALO))
    pixels = decode(*(latent[(..., *window)] for latent in latents))
    return pixels[..., 16 * above : 16 * (above + TILE), 16 * before : 16 * (before + TILE)]
