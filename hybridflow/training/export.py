"""From a run's weights to a released checkpoint: bits frozen, operating points chosen, floats in half precision."""

import json
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from hybridflow.ablation import Ablations
from hybridflow.checkpoint import (
    held_parts,
    load_parts,
    model_id,
    read_metadata,
    released_bytes,
    save_ablation,
    save_perceptual,
    save_release,
)
from hybridflow.container import QUALITIES
from hybridflow.errors import CheckpointError, TrainingError
from hybridflow.losses import plain_distortion
from hybridflow.masking import UNIFORM_SCHEDULES
from hybridflow.metrics import load_lpips
from hybridflow.model import HybridFlow
from hybridflow.saving import refuse_overwrite, require_writable
from hybridflow.training.data import PhotoSet
from hybridflow.training.freeze import COUNT, SIDE, freeze, held_out_photos
from hybridflow.weights import ablation_file, perceptual_file

LARGEST_RELEASE = 66 * 10**6
"""Bytes of weights that a checkpoint may take, without the perceptual decoder."""
PROBED_QUALITIES = range(0, QUALITIES, 9)
CODED = 24
"""Photos by whose centres operating points are compared."""


@torch.inference_mode()
def choose_operating_points(model: HybridFlow, photos: PhotoSet, count: int) -> list[tuple[int, str]]:
    """The (quality, schedule) pairs worth using, from the lowest rate up: no other pair has less distortion at no more
    bits. Pairs between the probed qualities are interpolated.

    Args:
        photos: the validation split; the centres of its first `count` photos are coded, in real bits.
    """
    probability, lpips = model.probability(), load_lpips()
    crops = [model.analyse(crop[None]) for crop in photos.centre_crops(count, SIDE)]

    def measure(quality: int, schedule: str) -> tuple[float, float]:
        bpp, distortion = [], []
        for analysed in crops:
            stream, coded = model.write(analysed, quality, schedule, probability=probability)
            bpp.append(8 * len(stream) / SIDE**2)
            distortion.append(float(plain_distortion(analysed.image, model.synthesise(coded, quality), lpips)))
        return float(np.mean(bpp)), float(np.mean(distortion))

    points = []
    for schedule in tqdm(UNIFORM_SCHEDULES, desc="choosing operating points", unit=" schedules"):
        bpp, distortion = zip(*(measure(quality, schedule) for quality in PROBED_QUALITIES))
        for quality in range(QUALITIES):
            cost = np.exp(np.interp(quality, PROBED_QUALITIES, np.log(bpp)))
            points.append((cost, np.interp(quality, PROBED_QUALITIES, distortion), (quality, schedule)))
    return _pareto_front(points)


def _pareto_front(points: list[tuple[float, float, tuple[int, str]]]) -> list[tuple[int, str]]:
    """Of (bpp, distortion, point), the points that none beats in both, by bpp."""
    front, least = [], float("inf")
    for _, distortion, point in sorted(points):
        if distortion < least:
            front.append(point)
            least = distortion
    return front


def export(
    weights: Path, preset: str, out: Path, name: str, data: Path, force: bool = False
) -> list[Path]:
    """Write `NAME.safetensors`, all that encodes and decodes, `NAME-ablation.safetensors`, which comparisons and
    training need, and `NAME-perceptual.safetensors`, the second decoder, if the weights hold it. What is not frozen
    yet, the index prior after `refit` at least, is frozen here.

    Args:
        weights: safetensors of a run, or a folder of parts.
        data: folder of images or tar shards, whose validation split is read.

    Returns:
        The paths of what was written.

    Raises:
        TrainingError: the checkpoint would be larger than `LARGEST_RELEASE`, or the weights lack a part of it, or the
            name is that of a folder.
        HybridFlowError: a file exists and force is not set, or nothing can be written there.
    """
    if Path(name).name != name or name == "..":
        raise TrainingError(f"{name!r} is no name of a file: give the folder by --out")
    model = HybridFlow(preset)
    model.add_perceptual()
    ablations = Ablations(model.preset)
    size = released_bytes(model)
    if size > LARGEST_RELEASE:
        raise TrainingError(f"{preset} takes {size:,} bytes, more than {LARGEST_RELEASE:,}: make the preset smaller")
    loaded = load_parts(weights, model, ablations)
    lacking = [part for part, _ in model.named_children() if part not in loaded and part != "perceptual"]
    if lacking:
        raise TrainingError(f"{weights} lacks {', '.join(lacking)}: name what refit left, or a folder of all parts")
    checkpoint = out / f"{name}.safetensors"
    second = perceptual_file(checkpoint)
    paths = [checkpoint, ablation_file(checkpoint)]
    if "perceptual" in loaded:
        paths.append(second)
    for path in dict.fromkeys([*paths, second]):  # of another model it would be removed
        refuse_overwrite(path, force=force)
    require_writable(out)
    photos = held_out_photos(data)
    freeze(model, photos.centre_crops(COUNT, SIDE))
    model.half().float().eval()  # the points are chosen for what will be loaded
    points = choose_operating_points(model, photos, CODED)
    out.mkdir(parents=True, exist_ok=True)
    with suppress(CheckpointError):  # there is none, or what is there is no loss
        if lost := held_parts(paths[1]) - loaded:
            mend = "they are gone: to keep them, export a folder of parts that has them too"
            warnings.warn(f"{paths[1]} held {', '.join(sorted(lost))}, which {weights} lacks: {mend}")
    save_ablation(paths[1], model, ablations, loaded)
    if "perceptual" in loaded:
        save_perceptual(second, model)
    save_release(paths[0], model, {"operating_points": json.dumps(points), "model_id": model_id(model).hex()})
    if second not in paths and second.is_file() and read_metadata(second).get("model_id") != model_id(model).hex():
        second.unlink()
        warnings.warn(f"{second} decoded for the model that was replaced, and is removed: train perceptual anew")
    return paths
