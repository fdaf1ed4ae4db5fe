"""Compare weights by what training minimises, in real bytes, on photos that none of them was trained on.

    python -m eval.held_out checkpoints/tiny.safetensors runs/mean/frozen.safetensors --data photos/

Weights are chosen by this: a choice made on the images that a codec is judged by flatters it. Photos are those of the
validation split (numbers that are multiples of 50) that `hybridflow freeze` does not fit bits to, which are the first
64; of each the square of 256 pixels in its middle is coded, no index sent. Each weights gets a row of a Markdown table:
bits per pixel of the streams, PSNR in dB of 8-bit RGB, LPIPS-Alex and J = distortion + lambda * bpp, means over the
crops at each quality, and the sum of J over the qualities, of which less is better. Distortion is
`hybridflow.losses.plain_distortion`, lambda `hybridflow.losses.rate_weight`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eval import command, tables
from hybridflow.checkpoint import load_parts
from hybridflow.cli import named_path, positive
from hybridflow.container import QUALITIES
from hybridflow.errors import CheckpointError, TrainingError
from hybridflow.image_io import tensor_to_image
from hybridflow.losses import plain_distortion, rate_weight
from hybridflow.metrics import load_lpips, psnr
from hybridflow.model import PRESETS, HybridFlow
from hybridflow.training.data import PhotoSet
from hybridflow.training.freeze import COUNT, SIDE

USUAL = (5, 14, 23, 33, 45)
"""Qualities of the tables in docs/EXPERIMENTS.md."""

TITLES = ["weights", "bpp", "PSNR dB", "LPIPS", "J", "J, summed"]


def load(weights: Path, preset: str) -> HybridFlow:
    """A frozen model of a release, a run or a folder of parts.

    Raises:
        CheckpointError: it lacks a part, or is not frozen.
    """
    model = HybridFlow(preset)
    lacking = sorted({name for name, _ in model.named_children()} - load_parts(weights, model))
    if lacking:
        raise CheckpointError(f"{weights} lacks {', '.join(lacking)}: name what `hybridflow freeze` left")
    if not (model.continuous.exact.frozen and model.index_prior.exact.frozen):
        raise CheckpointError(f"{weights}: its bits are not frozen: run `hybridflow freeze` on it first")
    return model.eval()


def held_out_crops(data: Path, count: int) -> Tensor:
    """At most `count` crops (N,3,SIDE,SIDE) in [0,1] of photos that neither training nor freezing saw.

    Raises:
        TrainingError: there are none.
    """
    photos = PhotoSet(data, "validation", min_side=SIDE, limit=COUNT + count)
    if len(photos.photos) <= COUNT:
        what = f"{len(photos.photos)} held-out photos, of which `hybridflow freeze` fits bits to the first {COUNT}"
        raise TrainingError(f"{data} holds {what}: name a folder of more, whose names' numbers are multiples of 50")
    return photos.centre_crops(COUNT + count, SIDE)[COUNT:]


@torch.inference_mode()
def figures(model: HybridFlow, crops: Tensor, qualities: Sequence[int]) -> np.ndarray:
    """bpp, PSNR, LPIPS and J of each quality, means over crops (N,3,H,W) in [0,1]: (4, qualities)."""
    probability, lpips = model.probability(), load_lpips()
    rows = []
    for crop in tqdm(crops, desc="coding", unit="crop", leave=False, disable=None):
        x, original = crop[None], tensor_to_image(crop[None])
        analysed = model.analyse(x)
        for quality in qualities:
            stream, coded = model.write(analysed, quality, "none", probability=probability)
            x_hat = model.synthesise(coded, quality)
            bpp = 8 * len(stream) / x[0, 0].numel()
            j = plain_distortion(x, x_hat, lpips) + rate_weight(torch.tensor(quality)) * bpp
            distance = lpips(2 * x - 1, 2 * x_hat - 1)
            rows.append((bpp, psnr(original, tensor_to_image(x_hat)), float(distance), float(j)))
    return np.array(rows).reshape(len(crops), len(qualities), -1).mean(0).T


def row_of(weights: Path, found: np.ndarray) -> list[str]:
    """Cells under `TITLES` of what `figures` gave."""
    cells = [", ".join(f"{value:.{digits}f}" for value in values) for values, digits in zip(found, (4, 2, 3, 3))]
    return [str(weights), *cells, f"{found[3].sum():.3f}"]


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("held_out", __doc__)
    what = "a release, or safetensors or a folder of parts that `hybridflow freeze` left"
    parser.add_argument("weights", type=named_path, nargs="+", metavar="WEIGHTS", help=what)
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="sizes of the models (%(default)s)")
    command.add_data(parser, "folder of images or tar shards")
    parser.add_argument("--crops", type=positive(int), default=64, help="at most so many photos (%(default)s)")
    what = "0 to 63 (%(default)s)"
    parser.add_argument(
        "--qualities", type=int, nargs="+", choices=range(QUALITIES), default=USUAL, metavar="Q", help=what
    )
    args = parser.parse_args(argv)

    models = [load(weights, args.preset) for weights in args.weights]
    crops = held_out_crops(args.data, args.crops)
    rows = [row_of(path, figures(model, crops, args.qualities)) for path, model in zip(args.weights, models)]
    chosen = ", ".join(map(str, args.qualities))
    print(f"{len(crops)} crops, qualities {chosen}:\n\n{tables.markdown(TITLES, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
