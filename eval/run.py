"""Measure a checkpoint and its ablations on a folder of images, in the bytes of real files.

Every image is encoded to a file at every operating point, decoded from that file, and compared with the original:

    python -m eval.run --data photos/ --checkpoint tiny -o results/ --workers 2

writes `tiny.csv`, a row for every image and point, and the averages of each curve in CompressAI's results schema (its
plot tool reads them). Bits per pixel are 8 x bytes of the file / (width x height); PSNR is of 8-bit RGB.

* tiny.json: the checkpoint as it is.
* tiny-without-correction.json: the same files, decoded without D_corr's features.
* tiny-without-predictor.json: every index sent, none predicted.
* tiny-codebook-only.json: the codebook stream alone, decoded as its own stage left D_vq; what is not sent is predicted
  without y^_c. Its bytes are those of a whole file less z and y^_c: too few, as the index prior reads y^_c.
* tiny-continuous-only.json: the continuous codec and the decoder that its own stage left; its bytes are estimated.

The last two need the checkpoint's ablation file. Rows that the CSV already holds are not measured again, so a run that
was stopped goes on where it was. An image that cannot be read is named and skipped, and the exit code is then 1.
"""

import argparse
import functools
import hashlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import hybridflow
from eval import command
from eval.cost import cost_of
from eval.curves import Coding, Curve, add_arguments, costs, run
from eval.photo import Photo
from hybridflow.ablation import Ablations
from hybridflow.checkpoint import load_parts, released
from hybridflow.codec import Codec
from hybridflow.container import QUALITIES
from hybridflow.errors import CheckpointError
from hybridflow.image_io import read_image
from hybridflow.masking import SCHEDULES
from hybridflow.weights import weight_file

USUAL_POINTS = 8
"""Of a checkpoint's operating points, measured unless others are named: evenly spread from the lowest rate up."""


class Point(NamedTuple):
    """An operating point: quality 0..63 and mask schedule, written `31:1_4`."""

    quality: int
    schedule: str

    @classmethod
    def parse(cls, text: str) -> "Point":
        quality, _, schedule = text.partition(":")
        if not quality.isdecimal() or int(quality) >= QUALITIES or schedule not in SCHEDULES:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not QUALITY:SCHEDULE, a quality of 0 to 63 and one of {', '.join(SCHEDULES)}"
            )
        return cls(int(quality), schedule)

    def __str__(self) -> str:
        return f"{self.quality}:{self.schedule}"


def spread(points: Sequence[tuple[int, str]], count: int = USUAL_POINTS) -> list[Point]:
    """Of points, about so many, evenly spaced, the first and the last among them."""
    steps = min(count, len(points)) - 1
    return [Point(*points[round(i * (len(points) - 1) / max(steps, 1))]) for i in range(steps + 1)]


@functools.cache
def load_codec(checkpoint: str, device: str) -> Codec:
    """One codec a process."""
    return hybridflow.load(Path(checkpoint) if Path(checkpoint).suffix else checkpoint, device=device)


@functools.cache
def load_ablations(checkpoint: str, device: str, weights: Path) -> Ablations:
    """The baselines beside a codec, one set a process."""
    ablations = Ablations(load_codec(checkpoint, device).model.preset).to(device).eval()
    load_parts(weights, ablations)
    return ablations


@functools.lru_cache(maxsize=2)
def analyse(checkpoint: str, device: str, weights: Path | None, image: Path) -> Photo:
    """A photo, and all that was measured of it: kept while its points are measured one after the other."""
    ablations = load_ablations(checkpoint, device, weights) if weights else None
    return Photo(load_codec(checkpoint, device), ablations, image)


def digest(module: nn.Module) -> str:
    """16 hexadecimal digits that change with any weight of a release, pixel decoders' too (`model_id` covers what makes
    bits). What a release does not hold is drawn anew whenever it is loaded, and does not count."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not released(name):
            continue
        sha256.update(name.encode())
        sha256.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()[:16]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it is: `Curve`."""

    checkpoint: str
    device: str
    points: tuple[str, ...]

    @property
    def codec(self) -> Codec:
        return load_codec(self.checkpoint, self.device)

    @property
    def name(self) -> str:
        return self.codec.name

    @property
    def title(self) -> str:
        return f"HybridFlow {self.codec.name}"

    @property
    def description(self) -> str:
        return f"model id {self.codec.model_id}, {self.device}"

    @cached_property
    def made_by(self) -> str:
        return f"{self.codec.model_id} {digest(self.codec.model)} {self.device}"

    def code(self, image: Path, point: str) -> Coding:
        original, (quality, schedule) = read_image(image), Point.parse(point)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "image.hf")
            encode = functools.partial(self.codec.encode, original, quality=quality, schedule=schedule)
            _, encoding = cost_of(lambda: path.write_bytes(encode()), self.device)
            decoded, decoding = cost_of(lambda: self.codec.decode(path.read_bytes()), self.device)
            return Coding(path.stat().st_size, decoded, costs(encoding, decoding))


class Ablation(NamedTuple):
    """What is left of the whole; `code` gives bytes and picture of a photo at a point."""

    description: str
    code: Callable[[Photo, Point], tuple]
    needs_weights: bool


ABLATIONS = {
    "without-correction": Ablation(
        "the same files, decoded without D_corr", lambda photo, point: photo.uncorrected(*point), False
    ),
    "without-predictor": Ablation(
        "every index sent", lambda photo, point: photo.whole(*point), False
    ),
    "codebook-only": Ablation(
        "codebook stream alone: bytes of a file less z and y_c", lambda photo, point: photo.codebook_alone(*point), True
    ),
    "continuous-only": Ablation(
        "continuous stream alone: bytes estimated", lambda photo, point: photo.continuous_alone(point.quality), True
    ),
}


@dataclass(frozen=True)
class Ablated:
    """An ablation of a checkpoint: `Curve`. Its times mean nothing, so it has none."""

    whole: Checkpoint
    ablation: str
    points: tuple[str, ...]
    weights: Path | None

    @property
    def name(self) -> str:
        return f"{self.whole.name}-{self.ablation}"

    @property
    def title(self) -> str:
        return f"{self.whole.title}, {self.ablation.replace('-', ' ')}"

    @property
    def description(self) -> str:
        return f"{ABLATIONS[self.ablation].description}; {self.whole.description}"

    @cached_property
    def made_by(self) -> str:
        if not ABLATIONS[self.ablation].needs_weights:
            return self.whole.made_by
        return f"{self.whole.made_by} {digest(load_ablations(self.whole.checkpoint, self.whole.device, self.weights))}"

    def code(self, image: Path, point: str) -> Coding:
        photo = analyse(self.whole.checkpoint, self.whole.device, self.weights, image)
        size, pixels = ABLATIONS[self.ablation].code(photo, Point.parse(point))
        return Coding(size, photo.picture(pixels), {})


def ablation_points(ablation: str, points: Sequence[Point]) -> tuple[str, ...]:
    """Where an ablation is measured: the whole's own points, as far as they differ in what is left of it."""
    if ablation == "without-predictor":
        points = [Point(point.quality, "full") for point in points]
    elif ablation == "codebook-only":
        points = [Point(31, schedule) for schedule in ("1_9", "1_4", "full")]
    elif ablation == "continuous-only":
        points = [Point(point.quality, "none") for point in points]
    return tuple(dict.fromkeys(map(str, points)))


def ablation_file(codec: Codec, checkpoint: str) -> Path | None:
    """NAME-ablation.safetensors beside the checkpoint; None if there is none."""
    name = f"{codec.name}-ablation.safetensors"
    if Path(checkpoint).suffix:
        path = Path(checkpoint).with_name(name)
        return path if path.exists() else None
    try:
        return weight_file(name)
    except CheckpointError:
        return None


def curves_of(checkpoint: str, device: str, points: Sequence[Point] | None) -> list[Curve]:
    """The checkpoint, and those of its ablations that can be had."""
    codec = load_codec(checkpoint, device)
    points = list(dict.fromkeys(points or spread(codec.operating_points)))
    whole = Checkpoint(checkpoint, device, tuple(map(str, points)))
    weights = ablation_file(codec, checkpoint)
    if weights is None:
        print(f"no {codec.name}-ablation.safetensors: each stream alone is left out", file=sys.stderr)
    names = [name for name, ablation in ABLATIONS.items() if weights or not ablation.needs_weights]
    return [whole, *(Ablated(whole, name, ablation_points(name, points), weights) for name in names)]


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("run", __doc__)
    add_arguments(parser)
    parser.add_argument("--checkpoint", default="tiny", help="a preset's name or a .safetensors file (%(default)s)")
    parser.add_argument(
        "--points",
        type=Point.parse,
        nargs="+",
        metavar="QUALITY:SCHEDULE",
        help=f"quality 0..63, schedule {', '.join(SCHEDULES)} ({USUAL_POINTS} of the checkpoint's operating points)",
    )
    command.add_device(parser)
    args = parser.parse_args(argv)

    curves = curves_of(args.checkpoint, args.device, args.points)
    return run(curves, args.data, args.output, f"{curves[0].name}.csv", args.workers)


if __name__ == "__main__":
    sys.exit(main())
