"""Photos, decoded once into uint8 memory, and random crops of them made on the device that trains."""

import io
import tarfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

VALIDATION_STRIDE = 50
"""Images whose number is a multiple of this are the validation split: never trained on."""

AREA_POWER = 1.5
"""A photo's chance goes by its area to this power: large photos, as smooth as those that users bring, are few."""


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".tar":
            with tarfile.open(path) as shard:
                for member in shard:
                    if member.isfile():
                        yield member.name, shard.extractfile(member).read()
        elif path.suffix.lower() in Image.registered_extensions():
            yield path.name, path.read_bytes()


def _decode(named: tuple[str, bytes]) -> tuple[str, np.ndarray | None]:
    name, data = named
    try:
        with Image.open(io.BytesIO(data)) as image:
            return name, np.array(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError):
        return name, None


class PhotoSet:
    """Every photo of a folder of images or tar shards, as uint8 (3,H,W) tensors on `device`.

    A broken image is skipped, counted and named in a warning.

    Args:
        folder: tar shards and/or image files.
        split: "train", or "validation" (numbers divisible by `VALIDATION_STRIDE`).
        device: where the pixels are kept.
        min_side: smaller photos are left out.

    Raises:
        FileNotFoundError: the folder holds no photo of the split.
    """

    def __init__(self, folder: str | Path, split: str, device: str = "cpu", min_side: int = 1) -> None:
        def wanted(name: str) -> bool:
            digits = "".join(c for c in Path(name).stem if c.isdigit())
            held_out = digits != "" and int(digits) % VALIDATION_STRIDE == 0
            return held_out == (split == "validation")

        self.photos: list[Tensor] = []
        broken = []
        with ThreadPoolExecutor() as pool:
            files = (named for named in _files(Path(folder)) if wanted(named[0]))
            for name, pixels in tqdm(pool.map(_decode, files), desc=f"decoding {split} photos", unit=" photos"):
                if pixels is None:
                    broken.append(name)
                elif min(pixels.shape[:2]) >= min_side:
                    self.photos.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(device))
        if broken:
            warnings.warn(f"skipped {len(broken)} broken images: {', '.join(broken)}", stacklevel=2)
        if not self.photos:
            raise FileNotFoundError(f"{folder}: no {split} photo found (looked for .tar shards and image files)")
        areas = torch.tensor([photo[0].numel() for photo in self.photos], dtype=torch.float64)
        chance = areas**AREA_POWER
        self._cumulative_chance = chance.cumsum(0) / chance.sum()

    def crops(self, batch: int, size: int, generator: torch.Generator) -> Tensor:
        """Random crops (batch,3,size,size) in [0,1], mirrored half of the time, of photos with sides of at
        least `size` (see `min_side`).
        """
        rolls = torch.rand(batch, 4, generator=generator, dtype=torch.float64)
        crops = []
        for photo_roll, top_roll, left_roll, mirror_roll in rolls.tolist():
            index = int(torch.searchsorted(self._cumulative_chance, photo_roll))
            photo = self.photos[min(index, len(self.photos) - 1)]
            top = int(top_roll * (photo.shape[1] - size + 1))
            left = int(left_roll * (photo.shape[2] - size + 1))
            crop = photo[:, top : top + size, left : left + size]
            crops.append(crop.flip(2) if mirror_roll < 0.5 else crop)
        return torch.stack(crops).float().div_(255)

    def centre_crops(self, count: int, size: int) -> Tensor:
        """The first `count` photos' centres (count,3,size,size) in [0,1]: a fixed set to validate on."""
        crops = []
        for photo in self.photos[:count]:
            top, left = (photo.shape[1] - size) // 2, (photo.shape[2] - size) // 2
            crops.append(photo[:, top : top + size, left : left + size])
        return torch.stack(crops).float().div_(255)
