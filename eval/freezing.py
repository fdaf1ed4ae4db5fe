"""What freezing the exact path costs in bytes, and whether a file alone decides what is read from it.

    python -m eval.freezing --data photos/ --checkpoint tiny -o freezing.json

prints a Markdown table for each question and writes both to a JSON file:

* bytes: of real files, which the frozen networks made, against what the networks that they were frozen from would have
  cost by their Gaussians, header and checks included: tables that were fitted give back some of it. Those floats are
  kept in the checkpoint's ablation file.
* readings: images whose file at every point gave the same z, y^_c and indices, with one thread and with two, and
  with bfloat16 wherever PyTorch may choose it; and images whose distributions, by themselves and in a batch, were the
  same integers.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import hybridflow
from eval import command, study
from eval.photo import Photo
from eval.study import Rows
from hybridflow.checkpoint import read_weights, refuse_other_model
from hybridflow.errors import CheckpointError
from hybridflow.exact import IntegerContextModel
from hybridflow.masking import coding_steps, step_places
from hybridflow.model import Coded, HybridFlow
from hybridflow.probability import MEAN_STEPS, latent_step_masks

POINTS = ((0, "none"), (22, "none"), (41, "none"), (63, "none"), (31, "1_4"), (31, "full"))
"""Quality and schedule of the files."""

BATCH = 4


def floats_of(frozen: HybridFlow, ablations: Path) -> HybridFlow:
    """The model that `frozen` was frozen from.

    Args:
        ablations: the checkpoint's ablation file.

    Raises:
        CheckpointError: it holds none of this model's floats, or another's.
    """
    refuse_other_model(ablations, frozen)
    model = HybridFlow(frozen.preset)
    own = model.state_dict()
    floats = {key: value for key, value in read_weights(ablations)[0].items() if key in own}
    if not floats:
        raise CheckpointError(f"{ablations}: holds no floats of a frozen model: name the file that export wrote")
    try:
        model.load_state_dict(frozen.state_dict() | floats)
    except RuntimeError:
        raise CheckpointError(f"{ablations}: is of another preset: name the file that export wrote") from None
    for network in (model.continuous.exact, model.index_prior.exact):
        network.thaw()
    return model.eval()


def bytes_at_points(photos: Sequence[Photo], floats: HybridFlow) -> Rows:
    """Bytes of all files of a point: by the likelihoods of the floats, and as written."""
    rows = []
    for point in tqdm(POINTS, desc="bytes", unit="point", disable=None):
        before = sum(photo.estimated_bytes(*point, floats) for photo in photos)
        after = sum(len(photo.file(*point)[0]) for photo in photos)
        change = 100 * (after / before - 1)
        rows.append({"point": "{}:{}".format(*point), "float": before, "frozen": after, "change_percent": change})
    return rows


def readings(photos: Sequence[Photo]) -> Rows:
    """Images whose files are read alike under every condition."""
    conditions = {"2 threads": lambda: threads(2), "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16)}
    rows = [
        {"condition": name, "images": len(photos), "same": sum(reads_alike(photo, condition) for photo in photos)}
        for name, condition in tqdm(conditions.items(), desc="readings", unit="condition", disable=None)
    ]
    by_size = defaultdict(list)
    for photo in photos:
        by_size[photo.indices.shape].append(photo)
    batches = [alike[i : i + BATCH] for alike in by_size.values() for i in range(0, len(alike), BATCH)]
    same = sum(batch_alike(batch) for batch in tqdm(batches, desc="batches", unit="batch", disable=None))
    return [*rows, {"condition": f"batches of up to {BATCH}", "images": len(photos), "same": same}]


def reads_alike(photo: Photo, condition: Callable) -> bool:
    """Whether one thread in float32, and the condition, both read from the files of all points what was written."""
    for point in POINTS:
        written = photo.file(*point)[1]
        with threads(1):
            plain = photo.read(*point)
        with condition():
            other = photo.read(*point)
        if not all(np.array_equal(a, b) and np.array_equal(a, c) for a, b, c in zip(written, plain, other)):
            return False
    return True


def batch_alike(photos: Sequence[Photo]) -> int:
    """How many of some images of equal size have the same distributions in a batch as by themselves, at all points."""
    same = torch.ones(len(photos), dtype=torch.bool)
    for quality, schedule in POINTS:
        coded = [photo.file(quality, schedule)[1] for photo in photos]
        together = integers(photos[0].model, coded, quality)
        alone = zip(*(integers(photo.model, [c], quality) for photo, c in zip(photos, coded)))
        for batch, singles in zip(together, alone):
            same &= (batch == torch.cat(singles)).flatten(1).all(1)
    return int(same.sum())


@torch.inference_mode()
def integers(model: HybridFlow, coded: Sequence[Coded], quality: int) -> Iterator[Tensor]:
    """All that feeds the coder for images of equal size, step by step: (B,...) int64 each."""
    z, y, sent, indices = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*coded))
    h, w = indices.shape[1:]
    latent, prior = model.continuous.exact, model.index_prior.exact
    yield from distributions(latent.hyper_prior, MEAN_STEPS * z, quality)
    yield from distributions(latent, y, quality, latent.features(z, quality)[..., :h, :w])
    features, steps = prior.features(y, quality), coding_steps(h, w)
    yield features
    for step, places in enumerate(step_places(h, w)):
        yield prior.logits(features, indices, sent & (steps < step), step, places)


def distributions(
    model: IntegerContextModel, values: Tensor, quality: int, features: Tensor | int = 0
) -> Iterator[Tensor]:
    """Means and scales of each step of z or y (B,C,h,w), in sixteenths: (B,2C,h,w) int64."""
    known = torch.zeros_like(values)
    for step, mask in enumerate(latent_step_masks(*values.shape[1:])):
        yield torch.cat(model.distribution(known, step, quality, features), 1)
        known = torch.where(mask, values, known)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads inside of PyTorch's operations."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("freezing", __doc__)
    study.add_arguments(parser)
    args = parser.parse_args(argv)

    codec = hybridflow.load(args.checkpoint)
    floats = floats_of(codec.model, study.baselines_file(args))
    photos, listed = study.open_photos(args.data, codec)
    tables = {"bytes": bytes_at_points(photos, floats), "readings": readings(photos)}
    study.publish(args.output, photos, tables)
    return command.exit_code(listed, len(photos))


if __name__ == "__main__":
    sys.exit(main())
