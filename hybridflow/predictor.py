"""The token transformer that fills in the indices that were not sent, guided by y^_c."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridflow.layers import conv3x3

WINDOW = 8


def _windows(x: Tensor, shift: int) -> Tensor:
    """(B,h,w,D), h and w multiples of WINDOW -> (B*windows, WINDOW^2, D), rolled by `shift` first."""
    batch, h, w, dim = x.shape
    x = x.roll((-shift, -shift), (1, 2)) if shift else x
    x = x.view(batch, h // WINDOW, WINDOW, w // WINDOW, WINDOW, dim)
    return x.transpose(2, 3).reshape(-1, WINDOW * WINDOW, dim)


def _unwindows(x: Tensor, shape: torch.Size, shift: int) -> Tensor:
    batch, h, w, dim = shape
    x = x.view(batch, h // WINDOW, w // WINDOW, WINDOW, WINDOW, dim).transpose(2, 3).reshape(shape)
    return x.roll((shift, shift), (1, 2)) if shift else x


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, multiple: int) -> Tensor:
    """Attention of (N,heads,tokens,width), zeros added to a width that is no multiple of `multiple`: CUDA's fused
    kernels that take a bias take only multiples of 8, and without them each score goes through memory in float32."""
    width = query.shape[-1]
    if more := -width % multiple:
        query, key, value = (F.pad(t, (0, more)) for t in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, bias, scale=width**-0.5)[..., :width]


class WindowAttention(nn.Module):
    """Attention inside windows of 8x8 tokens with a learned relative position bias (Swin, Liu et al., ICCV 2021).

    Keys and values come from `source`: the tokens themselves, or y^_c's for cross-attention.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.relative_bias = nn.Parameter(torch.zeros(heads, (2 * WINDOW - 1) ** 2))
        row, column = torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")
        row, column = row.flatten(), column.flatten()
        offset = (row[:, None] - row + WINDOW - 1) * (2 * WINDOW - 1) + column[:, None] - column + WINDOW - 1
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, x: Tensor, source: Tensor, visible: Tensor, shift: int) -> Tensor:
        """x, source (B,h,w,D); visible (windows,1,WINDOW^2,WINDOW^2) bool says who may look at whom."""
        tokens, memory = _windows(x, shift), _windows(source, shift)

        def split(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        key, value = self.key_value(memory).chunk(2, -1)
        bias = self.relative_bias[:, self.offset].to(tokens.dtype)
        bias = bias.expand(len(visible), -1, -1, -1).masked_fill(~visible, float("-inf"))
        bias = bias.repeat(len(tokens) // len(bias), 1, 1, 1)
        mixed = _attend(split(self.query(tokens)), split(key), split(value), bias, 8 if x.is_cuda else 1)
        return _unwindows(self.out(mixed.transpose(1, 2).flatten(2)), x.shape, shift)


class Block(nn.Module):
    """Self-attention, cross-attention to y^_c, and a feed-forward layer, each behind a layer norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.self_attention = WindowAttention(dim, heads)
        self.cross_attention = WindowAttention(dim, heads)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, guide: Tensor, visible: Tensor, shift: int) -> Tensor:
        normed = self.norms[0](x)
        x = x + self.self_attention(normed, normed, visible, shift)
        x = x + self.cross_attention(self.norms[1](x), guide, visible, shift)
        return x + self.feed_forward(self.norms[2](x))


class Predictor(nn.Module):
    """Partly masked indices and y^_c -> logits for every position (HybridFlow, section 3; after MaskGIT, 2022).

    Attention is windowed, alternately shifted by half a window: the cost is linear in pixels and any size works.

    Args:
        latent_channels: M of y^_c.
        num_codes: K.
        dim, depth, heads: of the transformer.
        guided: whether y^_c is looked at; if not (an ablation), zeros take its place.
    """

    def __init__(
        self, latent_channels: int, num_codes: int, dim: int, depth: int, heads: int, guided: bool = True
    ) -> None:
        super().__init__()
        self.guided = guided
        self.embedding = nn.Embedding(num_codes, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.guide = nn.Sequential(conv3x3(latent_channels, dim), nn.GELU(), conv3x3(dim, dim))
        self.guide_norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, num_codes)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, indices: Tensor, sent: Tensor, y_hat: Tensor | None = None) -> Tensor:
        """Logits (B,K,h,w).

        Args:
            indices: (B,h,w) int64, read only where sent.
            sent: (B,h,w) bool.
            y_hat: (B,M,h,w), if it is guided.
        """
        h, w = indices.shape[1:]
        tokens = torch.where(sent[..., None], self.embedding(indices * sent), self.mask_token)
        if not self.guided:
            y_hat = self.mask_token.new_zeros(len(indices), self.guide[0].in_channels, h, w)
        guide = self.guide(y_hat).permute(0, 2, 3, 1)
        tokens, guide = tokens + guide, self.guide_norm(guide)

        pad = (0, 0, 0, -w % WINDOW, 0, -h % WINDOW)
        tokens, guide = F.pad(tokens, pad), F.pad(guide, pad)
        visible = [_visibility(h, w, shift, tokens.device) for shift in (0, WINDOW // 2)]
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, guide, visible[number % 2], (0, WINDOW // 2)[number % 2])
        return self.out(self.norm(tokens[:, :h, :w])).permute(0, 3, 1, 2)


def _visibility(h: int, w: int, shift: int, device) -> Tensor:
    """(windows,1,WINDOW^2,WINDOW^2) bool: padding is seen only by padding, and no window looks across the wrap-around
    of the shift."""
    rows = torch.arange(h + -h % WINDOW, device=device)
    columns = torch.arange(w + -w % WINDOW, device=device)

    def zone(position: Tensor, size: int) -> Tensor:
        wrapped = (position < shift).long() if shift else torch.zeros_like(position)
        return wrapped + 2 * (position >= size).long()

    zones = 4 * zone(rows, h)[:, None] + zone(columns, w)[None, :]
    flat = _windows(zones[None, ..., None], shift)[..., 0]
    return (flat[:, :, None] == flat[:, None, :])[:, None]
