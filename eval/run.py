"""Measure a checkpoint and its ablations on a folder of images, in the bytes of real files.

Every image is encoded to a file at every operating point, decoded from that file, and compared with the original:

    python -m eval.run --data photos/ --checkpoint tiny -o results/ --workers 2

writes `tiny.csv`, a row for every image and point, and the averages of each curve in CompressAI's results schema (its
plot tool reads them). Bits per pixel are 8 x bytes of the file / (width x height); PSNR is of 8-bit RGB.

* tiny.json: the checkpoint as it is; tiny-effort-10.json if `--effort 10` has it refine what it encodes, and
  tiny-perceptual.json if `--decoder perceptual` has its second decoder read the files.
* tiny-without-correction.json: the same files, decoded without D_corr's features.
* tiny-without-predictor.json: every index sent, none predicted.
* tiny-codebook-only.json: the codebook stream alone, with a D_vq of its own, as `hybridflow train codebook-only` left
  it. A predictor that does not see y^_c fills in what is not sent, and gives the probabilities from which the bytes of
  what is sent are estimated.
* tiny-continuous-only.json: the continuous codec and a decoder of the hybrid's cost, as `hybridflow train baseline`
  left them; bytes are estimated.
* tiny-continuous-mse.json: likewise of another run, named by `--mse`, that trained both for rate + MSE.

The two before the last need the checkpoint's ablation file, if it holds them. Rows that the CSV already holds are not
measured again, so a run that was stopped goes on where it was. An image that cannot be read is named and skipped, and
the exit code is then 1.
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
from eval.curves import Coding, add_arguments, costs, run
from eval.photo import Photo, read_ablations
from hybridflow.ablation import Ablations
from hybridflow.checkpoint import PERCEPTUAL, released
from hybridflow.cli import named_path, positive
from hybridflow.codec import Codec
from hybridflow.container import QUALITIES
from hybridflow.image_io import read_image
from hybridflow.masking import SCHEDULES
from hybridflow.weights import DECODERS, ablation_file, checkpoint_file

USUAL_POINTS = 8
"""Of a checkpoint's operating points, measured unless others are named: evenly spread from the lowest rate up."""

ABLATED_POINTS = 4
"""Of those that are measured, where an ablation is, too."""


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


def spread(points: Sequence[tuple[int, str]], count: int) -> list[Point]:
    """Of points, about so many, evenly spaced, the first and the last among them."""
    steps = min(count, len(points)) - 1
    return [Point(*points[round(i * (len(points) - 1) / max(steps, 1))]) for i in range(steps + 1)]


@functools.cache
def load_codec(checkpoint: str, device: str, decoder: str = "fidelity") -> Codec:
    """One codec a process and decoder."""
    return hybridflow.load(checkpoint, device=device, decoder=decoder)


@functools.cache
def load_ablations(checkpoint: str, device: str, weights: Path) -> Ablations:
    """The baselines of a file beside a codec, one set a process."""
    return read_ablations(load_codec(checkpoint, device), weights)


@functools.lru_cache(maxsize=2)
def analyse(checkpoint: str, device: str, ablations: Ablations | None, image: Path) -> Photo:
    """A photo, and all that was measured of it: kept while its points are measured one after the other."""
    return Photo(load_codec(checkpoint, device), ablations, image)


def digest(module: nn.Module) -> str:
    """16 hexadecimal digits that change with any weight that was loaded, pixel decoders' too (`model_id` covers what
    makes bits). What a release does not hold is drawn anew whenever it is loaded, and does not count."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not (released(name) or name.startswith(PERCEPTUAL)):
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
    effort: int = 0
    decoder: str = "fidelity"

    @property
    def codec(self) -> Codec:
        return load_codec(self.checkpoint, self.device, self.decoder)

    @property
    def variant(self) -> tuple[str, str]:
        """What its name and its title end in."""
        if self.effort:
            return f"-effort-{self.effort}", f", effort {self.effort}"
        if self.decoder != "fidelity":
            return f"-{self.decoder}", f", {self.decoder} decoder"
        return "", ""

    @property
    def name(self) -> str:
        return self.codec.name + self.variant[0]

    @property
    def title(self) -> str:
        return f"HybridFlow {self.codec.name}" + self.variant[1]

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
            settings = {"quality": quality, "schedule": schedule, "effort": self.effort}
            encode = functools.partial(self.codec.encode, original, **settings)
            _, encoding = cost_of(lambda: path.write_bytes(encode()), self.device)
            decoded, decoding = cost_of(lambda: self.codec.decode(path.read_bytes()), self.device)
            return Coding(path.stat().st_size, decoded, costs(encoding, decoding))


class Ablation(NamedTuple):
    """What is left of the whole; `code` gives bytes and picture of a photo at a point, `needs` are its baselines."""

    description: str
    code: Callable[[Photo, Point], tuple]
    needs: tuple[str, ...] = ()


CONTINUOUS_ALONE = ("continuous_alone", "continuous_decoder")

ABLATIONS = {
    "without-correction": Ablation(
        "the same files, decoded without D_corr", lambda photo, point: photo.uncorrected(*point)
    ),
    "without-predictor": Ablation("every index sent", lambda photo, point: photo.whole(*point)),
    "codebook-only": Ablation(
        "codebook stream alone: bytes estimated",
        lambda photo, point: photo.codebook_alone(point.schedule),
        ("codebook_decoder", "blind_predictor"),
    ),
    "continuous-only": Ablation(
        "continuous stream alone: bytes estimated",
        lambda photo, point: photo.continuous_alone(point.quality),
        CONTINUOUS_ALONE,
    ),
    "continuous-mse": Ablation(
        "continuous stream alone, trained for rate + MSE: bytes estimated",
        lambda photo, point: photo.continuous_alone(point.quality),
        CONTINUOUS_ALONE,
    ),
}


@dataclass(frozen=True)
class Ablated:
    """An ablation of a checkpoint: `Curve`. Its times mean nothing, so it has none."""

    whole: Checkpoint
    ablation: str
    points: tuple[str, ...]
    weights: Path | None = None

    @property
    def baselines(self) -> Ablations | None:
        return self.weights and load_ablations(self.whole.checkpoint, self.whole.device, self.weights)

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
        return f"{self.whole.made_by} {digest(self.baselines)}" if self.baselines else self.whole.made_by

    def code(self, image: Path, point: str) -> Coding:
        photo = analyse(self.whole.checkpoint, self.whole.device, self.baselines, image)
        size, pixels = ABLATIONS[self.ablation].code(photo, Point.parse(point))
        return Coding(size, photo.picture(pixels), {})


def ablation_points(ablation: str, points: Sequence[Point]) -> tuple[str, ...]:
    """Where an ablation is measured: some of the whole's own points, as far as they differ in what is left of it."""
    points = spread(points, ABLATED_POINTS)
    if ablation == "without-predictor":
        points = [Point(point.quality, "full") for point in points]
    elif ablation == "codebook-only":
        points = [Point(0, schedule) for schedule in ("1_9", "1_4", "full")]
    elif ablation.startswith("continuous-"):
        points = [Point(point.quality, "none") for point in points]
    return tuple(dict.fromkeys(map(str, points)))


def whole_of(checkpoint: str, device: str, points: Sequence[Point] | None, effort: int, decoder: str) -> Checkpoint:
    """The checkpoint at the points that are named, or its usual ones."""
    points = points or spread(load_codec(checkpoint, device, decoder).operating_points, USUAL_POINTS)
    return Checkpoint(checkpoint, device, tuple(map(str, dict.fromkeys(points))), effort, decoder)


def ablations_of(whole: Checkpoint, mse: Path | None) -> list[Ablated]:
    """Those of its ablations that can be had.

    Args:
        mse: a run of the baseline stage, trained for rate + MSE.
    """
    beside = ablation_file(checkpoint_file(whole.checkpoint))
    if not beside.is_file():
        print(f"no {beside.name}: each stream alone is left out", file=sys.stderr)
        beside = None
    points = [Point.parse(point) for point in whole.points]
    curves = []
    for name, ablation in ABLATIONS.items():
        weights = mse if name == "continuous-mse" else beside
        if not ablation.needs:
            weights = None
        elif weights is None:
            continue
        curve = Ablated(whole, name, ablation_points(name, points), weights)
        missing = [part for part in ablation.needs if getattr(curve.baselines, part) is None]
        if missing:
            print(f"{weights} lacks {', '.join(missing)}: {name} is left out", file=sys.stderr)
        else:
            curves.append(curve)
    return curves


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("run", __doc__)
    add_arguments(parser)
    what = "folder to write: a CSV, a row an image and point, and a JSON a curve"
    parser.add_argument("-o", "--output", type=named_path, required=True, metavar="DIR", help=what)
    command.add_checkpoint(parser)
    parser.add_argument(
        "--points",
        type=Point.parse,
        nargs="+",
        metavar="QUALITY:SCHEDULE",
        help=f"quality 0..63, schedule {', '.join(SCHEDULES)} ({USUAL_POINTS} of the checkpoint's operating points)",
    )
    beside = parser.add_mutually_exclusive_group()
    beside.add_argument("--no-ablations", action="store_true", help="measure the checkpoint as it is alone")
    beside.add_argument(
        "--mse",
        type=named_path,
        metavar="WEIGHTS",
        help="weights.safetensors of `hybridflow train baseline --set mse_weight=...`: also the curve continuous-mse",
    )
    beside.add_argument(
        "--effort",
        type=positive(int),
        default=0,
        metavar="STEPS",
        help="measure nothing but the checkpoint when it refines in so many steps what it encodes",
    )
    beside.add_argument(
        "--decoder",
        choices=DECODERS,
        default="fidelity",
        help="measure nothing but the checkpoint as its perceptual decoder reads it (%(default)s)",
    )
    command.add_device(parser)
    args = parser.parse_args(argv)

    whole = whole_of(args.checkpoint, args.device, args.points, args.effort, args.decoder)
    alone = args.no_ablations or args.effort or args.decoder != "fidelity"
    curves = [whole, *([] if alone else ablations_of(whole, args.mse))]
    return run(curves, args.data, args.output, f"{whole.codec.name}.csv", args.workers)


if __name__ == "__main__":
    sys.exit(main())
