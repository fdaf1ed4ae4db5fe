"""Photos, decoded once into uint8 memory, and random crops of them made on the device that trains."""

import tarfile
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from hybridflow.draws import Draws
from hybridflow.errors import ImageError, TrainingError
from hybridflow.image_io import looks_like_image, read_image

VALIDATION_STRIDE = 50
"""Images whose number is a multiple of this are the validation split: never trained on."""

_HELD_OUT = f"(whose name's number is a multiple of {VALIDATION_STRIDE})"

AREA_POWER = 1.5
"""A photo's chance goes by its area to this power: large photos, as smooth as those that users bring, are few."""


def in_split(name: str, split: str) -> bool:
    """Whether the image of that file name is of the split, "train" or "validation"."""
    digits = "".join(c for c in Path(name).stem if c.isdecimal())
    held_out = digits != "" and int(digits) % VALIDATION_STRIDE == 0
    return held_out == (split == "validation")


def _files(folder: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the pictures of a split, those of tar shards too."""
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder: name one of .tar shards or images")
    for path in sorted(folder.iterdir()):
        if path.suffix == ".tar":
            yield from files_of_shard(path, split)
        elif _wanted(path.name, split) and not path.is_dir():
            yield path.name, _bytes_or_none(path)


def _bytes_or_none(path: Path) -> bytes:
    """A file's bytes, none if it cannot be read: then it counts as a broken image."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def files_of_shard(path: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the pictures of a split in a tar shard.

    Raises:
        TrainingError: the shard is damaged.
    """
    try:
        with tarfile.open(path) as shard:
            for member in shard:
                if member.isfile() and _wanted(member.name, split):
                    yield member.name, shard.extractfile(member).read()
    except tarfile.TarError as error:
        raise TrainingError(f"{path} is damaged ({error}): get or make the shard again") from None


def _wanted(name: str, split: str) -> bool:
    return looks_like_image(name) and in_split(name, split)


def decode_photo(named: tuple[str, bytes]) -> tuple[str, np.ndarray | None]:
    """A file's name and bytes -> its name and pixels (H,W,3) uint8 as an encoder sees them, or None if it is broken."""
    name, data = named
    try:
        return name, np.array(read_image(data))
    except ImageError:
        return name, None


def _decoded(files: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, np.ndarray | None]]:
    """`decode_photo` of each, in order, by as many threads as there are cores, a few files ahead of what is taken."""
    with ThreadPoolExecutor() as pool:
        ahead: deque[Future] = deque()
        for named in files:
            ahead.append(pool.submit(decode_photo, named))
            if len(ahead) > 64:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def name_skipped(what: str, names: list[str]) -> None:
    """Warn of images that were skipped."""
    if names:
        few = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        warnings.warn(f"skipped {len(names)} {what}: {few}", stacklevel=3)


class Augmentation(NamedTuple):
    """How crops are varied, beside mirroring half of them: see `TrainConfig`."""

    transpose: float = 0.0
    downscale: float = 1.0
    jitter: float = 0.0


class PackedPhotos:
    """Photos one after the other in one uint8 tensor (pixels,3), so that a batch of crops is one look-up.

    Args:
        photos: (H,W,3) uint8 arrays; emptied, so that no photo is in memory twice.
        device: where the pixels are kept.
    """

    def __init__(self, photos: list[np.ndarray], device: torch.device | str = "cpu") -> None:
        shapes = torch.tensor([photo.shape[:2] for photo in photos])
        areas = shapes.prod(1)
        self.pixels = torch.empty(int(areas.sum()), 3, dtype=torch.uint8, device=device)
        self.photos: list[Tensor] = []
        """Views (3,H,W)."""
        offsets = areas.cumsum(0) - areas
        for offset in offsets.tolist():
            photo = torch.from_numpy(photos.pop(0))
            view = self.pixels[offset : offset + photo.shape[0] * photo.shape[1]].view(photo.shape)
            self.photos.append(view.copy_(photo).permute(2, 0, 1))
        self._heights, self._widths = shapes.to(device).unbind(1)
        self._offsets = offsets.to(device)

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def crop(self, chosen: Tensor, size: int, draws: Draws, augmentation: Augmentation) -> Tensor:
        """Random crops (B,3,size,size) in [0,1], in channels-last memory, of the photos (B,) int64 `chosen`.

        Down-scaled pixels are means of 2x2 samples: exact for factors of 1 and 2.
        """
        heights, widths = self._heights[chosen], self._widths[chosen]
        top, left, mirrored, transposed, scaled, factor = draws.uniform(6).unbind(1)
        most = (torch.minimum(heights, widths) / size).clamp(max=augmentation.downscale)
        scale = torch.where(scaled < 0.5, 1 + factor * (most - 1), 1.0)
        samples = 1 if augmentation.downscale == 1 else 2
        steps = (torch.arange(samples * size, device=chosen.device) + 0.5) / samples
        window = scale * size
        rows = _positions(top * (heights - window + 1), scale, steps, heights)
        columns = _positions(left * (widths - window + 1), scale, steps, widths)
        columns = torch.where(mirrored[:, None] < 0.5, columns.flip(1), columns)
        rows = rows * widths[:, None] + self._offsets[chosen, None]
        swapped = transposed[:, None] < augmentation.transpose
        down, across = torch.where(swapped, columns, rows), torch.where(swapped, rows, columns)
        pixels = self.pixels[down[:, :, None] + across[:, None, :]].permute(0, 3, 1, 2)
        crops = (F.avg_pool2d(pixels.float(), samples) if samples > 1 else pixels.float()).div_(255)
        return jitter_colour(crops, augmentation.jitter, draws) if augmentation.jitter else crops


def _positions(start: Tensor, scale: Tensor, steps: Tensor, length: Tensor) -> Tensor:
    """Nearest positions (B,n) int64, in 0..length-1, of `steps` (n,) scaled by (B,) and moved by (B,) whole pixels."""
    moved = start.floor()[:, None] + scale[:, None] * steps
    return torch.minimum(moved.long(), length[:, None] - 1)


def jitter_colour(x: Tensor, strength: float, draws: Draws) -> Tensor:
    """Images (B,3,H,W) in [0,1], each with brightness, contrast and saturation changed by up to `strength`."""
    brightness, contrast, saturation = (1 + strength * (2 * draws.uniform(3, 1, 1, 1) - 1)).unbind(1)
    x = brightness * x
    x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, contrast)
    return torch.lerp(x.mean(1, keepdim=True), x, saturation).clamp(0, 1)


class PhotoSet(PackedPhotos):
    """Every photo of a split of a folder of images or tar shards, decoded in parallel.

    A broken image is skipped, counted and named in a warning, and so are small ones.

    Args:
        folder: tar shards and/or image files.
        split: "train", or "validation" (numbers divisible by `VALIDATION_STRIDE`).
        device: where the pixels are kept.
        min_side: smaller photos are left out.
        limit: take the first so many alone.

    Raises:
        TrainingError: there is no such folder, it holds no photo of the split, or a shard is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        device: torch.device | str = "cpu",
        min_side: int = 1,
        augmentation: Augmentation = Augmentation(),
        limit: int | None = None,
    ) -> None:
        photos, broken, small = [], [], []
        decoded = _decoded(_files(Path(folder), split))
        for name, pixels in tqdm(decoded, desc=f"decoding {split} photos", unit=" photos", mininterval=5):
            if pixels is None:
                broken.append(name)
            elif min(pixels.shape[:2]) >= min_side:
                photos.append(pixels)
            else:
                small.append(name)
            if len(photos) == limit:
                break
        name_skipped("broken images", broken)
        name_skipped(f"photos of less than {min_side} pixels a side", small)
        if not photos:
            rule, mend = "", "name a folder of .tar shards or images, no folder of folders"
            if split == "validation":
                rule, mend = f" {_HELD_OUT}", "give one such a name, as 0050.png, which then is not trained on"
            raise TrainingError(f"{folder}: no {split} photo{rule} of at least {min_side} pixels a side: {mend}")
        super().__init__(photos, device)
        self.augmentation = augmentation
        chance = (self._heights * self._widths).double() ** AREA_POWER
        self._cumulative_chance = chance.cumsum(0) / chance.sum()

    def crops(self, size: int, draws: Draws) -> Tensor:
        """Random crops (B,3,size,size) in [0,1], in channels-last memory, of photos with sides of at least `size` (see
        `min_side`)."""
        chosen = torch.searchsorted(self._cumulative_chance, draws.uniform().double())
        return self.crop(chosen.clamp(max=len(self.photos) - 1), size, draws, self.augmentation)

    def centre_crops(self, count: int, size: int) -> Tensor:
        """The first `count` photos' centres (count,3,size,size) in [0,1]: a fixed set to validate on."""
        crops = []
        for photo in self.photos[:count]:
            top, left = (photo.shape[1] - size) // 2, (photo.shape[2] - size) // 2
            crops.append(photo[:, top : top + size, left : left + size])
        return torch.stack(crops).float().div_(255)


def validation_crops(folder: str | Path, count: int, size: int) -> Tensor | None:
    """At most `count` crops (N,3,size,size) in [0,1] of the validation split, always the same; None, and a warning, if
    there is no photo for it."""
    try:
        return PhotoSet(folder, "validation", min_side=size, limit=count).centre_crops(count, size)
    except TrainingError as error:
        without = "training goes on without validation, but `freeze` and `export` need such photos"
        warnings.warn(f"{error}; {without}", stacklevel=2)
        return None
