"""From curves to measure to their results: a CSV row for every image and point, a JSON in CompressAI's schema a curve.

A run that was stopped goes on where it was: rows that the CSV already holds, of the same image, point and makers, are
not measured again, and points that it holds beside those that are asked for stay in the curve. Images are measured by
worker processes of one thread each.
"""

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from eval.command import add_data, add_workers, exit_code
from eval.cost import Cost
from eval.datasets import describe, list_images, sha256
from eval.distortion import DISTORTIONS, VGG_SMALLEST, distortions, vgg_metrics
from eval.result_files import NAMES
from eval.tables import aligned
from eval.vgg import HOW_TO_GET_IT
from hybridflow.errors import HybridFlowError, ImageError
from hybridflow.image_io import read_image
from hybridflow.saving import replace_atomically

COSTS = ("encoding_time", "decoding_time", "encoding_mib", "decoding_mib")
"""Seconds, and peak memory beyond what was held before (`eval.cost`)."""

MEASURED = ("bpp", *DISTORTIONS, *COSTS)
"""What a curve averages. A figure that an image has none of is left blank in its row."""

KEY = ("sha256", "curve", "point")
COLUMNS = ("image", "width", "height", *KEY, "made_by", "bytes", *MEASURED)


class Coding(NamedTuple):
    """One image, coded: its bytes, what they decode to, and those of `COSTS` that are known."""

    bytes: float
    decoded: Image.Image
    costs: dict[str, float]


def costs(encoding: Cost, decoding: Cost) -> dict[str, float]:
    """Those of `COSTS` that are known."""
    found = zip(COSTS, (encoding.seconds, decoding.seconds, encoding.mib, decoding.mib))
    return {name: figure for name, figure in found if figure is not None}


class Curve(Protocol):
    """One codec at several points, of which a worker process can be told.

    Attributes:
        name: of its JSON file, without suffix.
        title: shown in figures and tables.
        description: settings and versions.
        points: operating points, as text.
        made_by: weights, settings or versions: a measurement by something else is made anew. Code does not count, so
            after a change of ours the rows have to go.
    """

    name: str
    title: str
    description: str
    points: tuple[str, ...]
    made_by: str

    def code(self, image: Path, point: str) -> Coding:
        """Encode a file of an image at a point, and decode it."""


class Rows:
    """A CSV of measurements that is appended to as they are made, and is read back when it is already there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_key: dict[tuple[str, ...], dict[str, str]] = {}
        if not path.exists():
            return
        whole, _, cut = path.read_text(errors=NAMES).rpartition("\n")
        if not whole and ",".join(COLUMNS).startswith(cut):  # cut in the header
            path.unlink()
            return
        reader = csv.DictReader(io.StringIO(whole, newline=""))
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise HybridFlowError(f"{path} has other columns than this version writes: move it or change -o")
        self.by_key = {self._key(row): row for row in reader}
        if cut:  # a full disk or a power cut ended the last row, to which the next one would be added
            _replace(path, whole + "\n")

    def get(self, digest: str, curve: Curve, point: str) -> dict[str, str] | None:
        """The row of an image's SHA-256 at this point, if it was made by what the curve is made by."""
        row = self.by_key.get((digest, curve.name, point))
        return row if row is not None and row["made_by"] == curve.made_by else None

    def complete(self, digests: Collection[str], curve: Curve) -> list[dict[str, str]]:
        """The rows of these images at every point that all of them have, made by what the curve is made by."""
        points = dict.fromkeys(point for _, name, point in self.by_key if name == curve.name)
        found = ([self.get(digest, curve, point) for digest in digests] for point in points)
        return [row for rows in found if None not in rows for row in rows]

    def add(self, row: dict) -> None:
        texts = {column: str(row.get(column, "")) for column in COLUMNS}
        self.by_key[self._key(texts)] = texts
        header = not self.path.exists()
        with self.path.open("a", newline="", errors=NAMES) as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if header:
                writer.writeheader()
            writer.writerow(texts)

    def tidy(self, curves: Sequence[Curve]) -> None:
        """Write the file anew, by curve, point and image, without what others than their makers measured of curves.
        What another run has added of other curves stays."""
        makers = {curve.name: curve.made_by for curve in curves}
        own = {key: row for key, row in self.by_key.items() if row["curve"] in makers}
        self.by_key = Rows(self.path).by_key | own
        kept = [row for row in self.by_key.values() if row["made_by"] == makers.get(row["curve"], row["made_by"])]
        rows = sorted(kept, key=lambda row: (row["curve"], row["point"], row["image"]))
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _replace(self.path, text.getvalue())

    @staticmethod
    def _key(row: dict[str, str]) -> tuple[str, ...]:
        return tuple(row[column] for column in KEY)


def _replace(path: Path, text: str) -> None:
    replace_atomically(path, lambda partial: partial.write_text(text, errors=NAMES))


def measure(curve: Curve, image: Path, point: str) -> dict:
    """Code one image at one point -> its row; a figure that is not finite is left out."""
    original = read_image(image)
    coding = curve.code(image, point)
    figures = distortions(original, coding.decoded) | coding.costs
    return {
        "image": image.name,
        "width": original.width,
        "height": original.height,
        "sha256": sha256(image),
        "curve": curve.name,
        "point": point,
        "made_by": curve.made_by,
        "bytes": coding.bytes,
        "bpp": 8 * coding.bytes / (original.width * original.height),
        **{name: value for name, value in figures.items() if math.isfinite(value)},
    }


@contextmanager
def worker_pool(workers: int) -> Iterator[Callable[[Callable, Iterable[tuple]], Iterator]]:
    """A function (function, arguments of each call) -> results as they come; one worker is this process itself."""
    if workers == 1:
        yield lambda function, calls: (function(*call) for call in calls)
        return
    executor = ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,))
    try:
        yield lambda function, calls: (
            future.result() for future in as_completed([executor.submit(function, *call) for call in calls])
        )
    finally:
        executor.shutdown(cancel_futures=True)


def readable(images: Sequence[Path]) -> list[Path]:
    """The images that can be read; the others are named on standard error."""
    found = []
    for path in images:
        try:
            read_image(path)
            found.append(path)
        except ImageError as error:
            print(f"skipped: {error}", file=sys.stderr)
    return found


def measure_all(curves: Sequence[Curve], images: Sequence[Path], rows: Rows, workers: int = 1) -> None:
    """Every readable image at every point of every curve: what `rows` lacks is measured and added.

    That is also a row without the figures of VGG16, where it has come to this machine since.
    """
    digests = {image: sha256(image) for image in images}
    wanted = [(curve, image, point) for image in images for curve in curves for point in curve.points]
    smallest = VGG_SMALLEST if vgg_metrics() else math.inf

    def is_missing(curve: Curve, image: Path, point: str) -> bool:
        row = rows.get(digests[image], curve, point)
        return row is None or not row["dists"] and min(int(row["width"]), int(row["height"])) >= smallest

    missing = [job for job in wanted if is_missing(*job)]
    with (
        worker_pool(workers) as run,
        tqdm(total=len(wanted), initial=len(wanted) - len(missing), unit="row", disable=None) as bar,
    ):
        for row in run(measure, missing):
            rows.add(row)
            bar.update()
    rows.tidy(curves)


def average(rows: Sequence[dict[str, str]], title: str, description: str) -> dict:
    """Averages over images at each operating point, in CompressAI's schema: parallel lists, sorted by bpp.

    A figure that any row lacks is left out, so that every average is over the same images; if others have it, that is
    told on standard error.
    """
    figures = []
    for figure in MEASURED:
        lacking = [row for row in rows if not row[figure]]
        if not lacking:
            figures.append(figure)
        elif len(lacking) < len(rows):
            print(f"{title}: no average of {figure}, which {lacking[0]['image']} has none of", file=sys.stderr)
    points = []
    for point in dict.fromkeys(row["point"] for row in rows):
        of_point = [row for row in rows if row["point"] == point]
        averages = {figure: float(np.mean([float(row[figure]) for row in of_point])) for figure in figures}
        points.append({"point": point, **averages})
    points.sort(key=lambda averages: averages["bpp"])
    results = {figure: [averages[figure] for averages in points] for figure in ("point", *figures)}
    return {"name": title, "description": description, "results": results}


def print_table(result: dict) -> None:
    """A line for every operating point."""
    results = result["results"]
    shown = ("bpp", "psnr-rgb", "ms-ssim-rgb", "lpips-alex", "lpips-vgg", "dists", "encoding_time", "decoding_time")
    shown = [figure for figure in shown if figure in results]
    rows = [[point, *(f"{results[figure][i]:.4f}" for figure in shown)] for i, point in enumerate(results["point"])]
    print(f"\n{result['name']}\n{aligned(['point', *shown], rows)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command takes that codes a folder of images."""
    add_data(parser)
    add_workers(parser)


def run(curves: Sequence[Curve], data: Path, output: Path, csv_name: str, workers: int) -> int:
    """Measure curves on a folder, write `csv_name` and a JSON a curve -> the exit code: 1 if an image was skipped.

    Raises:
        HybridFlowError: the output is a file.
    """
    if output.is_file():
        raise HybridFlowError(f"{output} is a file: name a folder by -o")
    torch.set_num_threads(1)
    listed = list_images(data)
    images = readable(listed)
    if not vgg_metrics():
        print(HOW_TO_GET_IT, file=sys.stderr)
    output.mkdir(parents=True, exist_ok=True)
    rows = Rows(output / csv_name)
    if images:
        distinct = {sha256(image): image for image in images}  # the same bytes count once
        dataset = describe([*distinct.values()])
        print(dataset, flush=True)
        measure_all(curves, [*distinct.values()], rows, workers)
        for curve in curves:
            result = average(rows.complete(distinct.keys(), curve), curve.title, f"{dataset}; {curve.description}")
            (output / f"{curve.name}.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
            print_table(result)
    return exit_code(len(listed), len(images))
