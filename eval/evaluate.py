"""Measure a checkpoint on a folder of images, in the bytes of real files.

Every image is encoded to a file at every operating point, decoded from that file, and compared with the original:

    python -m eval.evaluate --data photos/ --checkpoint tiny --points 0:none 31:1_9 63:full -o results.json

writes `results.csv`, a row for every image and point, and `results.json`, the curve of the averages in CompressAI's
results schema (its plot tool reads it). Rows that the CSV already holds are not measured again, so a run that was
stopped goes on where it was. Bits per pixel are 8 x bytes of the file / (width x height); PSNR is of 8-bit RGB.
An image that cannot be read is named and skipped, and the exit code is then 1.
"""

import argparse
import csv
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_msssim import ms_ssim
from torch import nn
from tqdm import tqdm

import hybridflow
from eval.blockiness import PERIODS, blockiness
from eval.datasets import describe, list_images, sha256
from eval.dists import load_dists
from hybridflow.errors import HybridFlowError, ImageError
from hybridflow.image_io import image_to_tensor, read_image
from hybridflow.masking import SCHEDULES
from hybridflow.metrics import lpips, psnr

MS_SSIM_SMALLEST = 161
"""Shorter side, in pixels, of the smallest image that MS-SSIM's five scales fit in."""

KEY = ("sha256", "quality", "schedule", "model_id", "weights")
"""What makes two rows the same measurement: the image, the operating point, what made the bits, and all weights."""

MEASURED = (
    "bpp",
    "psnr-rgb",
    "ms-ssim-rgb",
    "lpips-alex",
    "dists",
    *(f"blockiness-{period}" for period in PERIODS),
    "encoding_time",
    "decoding_time",
)
"""What a curve averages; times in seconds. A figure that an image has none of is left blank in its row."""

COLUMNS = ("image", "width", "height", *KEY, "bytes", *MEASURED)


@dataclass(frozen=True)
class Point:
    """An operating point: quality 0..63 and mask schedule, written `31:1_4`."""

    quality: int
    schedule: str

    @classmethod
    def parse(cls, text: str) -> "Point":
        quality, _, schedule = text.partition(":")
        if not quality.isdecimal() or int(quality) > 63 or schedule not in SCHEDULES:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not QUALITY:SCHEDULE, a quality of 0 to 63 and one of {', '.join(SCHEDULES)}"
            )
        return cls(int(quality), schedule)


def distortions(original: Image.Image, decoded: Image.Image) -> dict[str, float]:
    """Two RGB images of equal size -> the figure of every metric that can be had; blockiness is the decoded one's."""
    x, x_hat = image_to_tensor(original), image_to_tensor(decoded)
    figures = {"psnr-rgb": psnr(original, decoded), "lpips-alex": lpips(original, decoded)}
    if min(original.size) >= MS_SSIM_SMALLEST:
        figures["ms-ssim-rgb"] = float(ms_ssim(x, x_hat, data_range=1.0))
    dists = load_dists()
    if dists is not None:
        figures["dists"] = float(dists(x, x_hat))
    for period in PERIODS:
        figures[f"blockiness-{period}"] = blockiness(np.asarray(decoded), period)
    return figures


class Rows:
    """A CSV of measurements that is appended to as they are made, and is read back when it is already there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_key: dict[tuple[str, ...], dict[str, str]] = {}
        if not path.exists():
            self._append(COLUMNS)
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise HybridFlowError(f"{path} has other columns than this version writes: move it or change -o")
            for row in reader:
                self.by_key[self._key(row)] = row

    def get(self, key: dict[str, str]) -> dict[str, str] | None:
        return self.by_key.get(self._key(key))

    def add(self, row: dict) -> dict[str, str]:
        texts = {column: str(row.get(column, "")) for column in COLUMNS}
        self._append(texts.values())
        self.by_key[self._key(texts)] = texts
        return texts

    def _append(self, values: Iterable[str]) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(values)

    @staticmethod
    def _key(row: dict[str, str]) -> tuple[str, ...]:
        return tuple(row[column] for column in KEY)


def weights_digest(model: nn.Module) -> str:
    """16 hexadecimal digits that change with any weight, pixel decoders' too (`model_id` covers what makes bits)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def measure(codec, original: Image.Image, point: Point) -> dict:
    """Encode an RGB image to a file, decode that file, compare: bytes, bpp, figures and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image.hf")
        start = time.perf_counter()
        path.write_bytes(codec.encode(original, quality=point.quality, schedule=point.schedule))
        encoded = time.perf_counter()
        decoded = codec.decode(path.read_bytes())
        end = time.perf_counter()
        size = path.stat().st_size
    return {
        "width": original.width,
        "height": original.height,
        "bytes": size,
        "bpp": 8 * size / (original.width * original.height),
        "encoding_time": encoded - start,
        "decoding_time": end - encoded,
        **distortions(original, decoded),
    }


def evaluate(codec, images: list[Path], points: list[Point], csv_path: Path) -> tuple[list[dict[str, str]], list[Path]]:
    """Every image at every point: rows that the CSV holds are taken from it, the others measured and added to it.

    Returns:
        The rows, image by image, all values as the CSV's text; and the images that could not be read, each of which
        was named on standard error.
    """
    found, unreadable = [], []
    rows = Rows(csv_path)
    made_by = {"model_id": str(codec.model_id), "weights": weights_digest(codec.model)}
    for path in tqdm(images, unit="image", disable=None):
        image_key = {"sha256": sha256(path), **made_by}
        try:
            original = read_image(path)
        except ImageError as error:
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            unreadable.append(path)
            continue
        for point in points:
            key = {**image_key, "quality": str(point.quality), "schedule": point.schedule}
            found.append(rows.get(key) or rows.add({"image": path.name, **key, **measure(codec, original, point)}))
    return found, unreadable


def curve(rows: list[dict[str, str]], name: str, description: str) -> dict:
    """Averages over images at each operating point, in CompressAI's schema: parallel lists, sorted by bpp.

    A figure that any row lacks is left out, so that every average is over the same images.
    """
    figures = [figure for figure in MEASURED if all(row[figure] for row in rows)]
    points = []
    for point in dict.fromkeys((row["quality"], row["schedule"]) for row in rows):
        of_point = [row for row in rows if (row["quality"], row["schedule"]) == point]
        averages = {figure: float(np.mean([float(row[figure]) for row in of_point])) for figure in figures}
        points.append({"point": ":".join(point), **averages})
    points.sort(key=lambda averages: averages["bpp"])
    results = {figure: [averages[figure] for averages in points] for figure in ("point", *figures)}
    return {"name": name, "description": description, "results": results}


def print_table(results: dict[str, list]) -> None:
    """A line for every operating point."""
    shown = [figure for figure in ("bpp", "psnr-rgb", "ms-ssim-rgb", "lpips-alex", "dists") if figure in results]
    print(f"{'point':<12}" + "".join(f"{figure:>14}" for figure in shown))
    for i, point in enumerate(results["point"]):
        print(f"{point:<12}" + "".join(f"{results[figure][i]:14.4f}" for figure in shown))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--checkpoint", default="tiny", help="a preset's name or a .safetensors file (%(default)s)")
    parser.add_argument(
        "--points",
        type=Point.parse,
        nargs="+",
        required=True,
        metavar="QUALITY:SCHEDULE",
        help=f"operating points: quality 0..63, schedule {', '.join(SCHEDULES)}",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON", help="the CSV goes beside it")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    args = parser.parse_args(argv)

    try:
        images = list_images(args.data)
        codec = hybridflow.load(args.checkpoint, device=args.device)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        points = list(dict.fromkeys(args.points))
        rows, unreadable = evaluate(codec, images, points, args.output.with_suffix(".csv"))
    except (HybridFlowError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if rows:
        measured = describe([image for image in images if image not in unreadable])
        result = curve(rows, f"HybridFlow {codec.name}", f"{measured}; model id {codec.model_id}")
        args.output.write_text(json.dumps(result, indent=2) + "\n")
        print_table(result["results"])
    if unreadable:
        print(f"skipped {len(unreadable)} of {len(images)} images: they could not be read", file=sys.stderr)
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
