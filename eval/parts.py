"""Does every part earn its keep? Each part of a checkpoint against doing without it, on a folder of images.

    python -m eval.parts --data photos/ --checkpoint tiny -o parts.json

prints a Markdown table for every question and writes them all to one JSON file:

* masked indices: what the predictor knows of an index that was not sent, in bits, with and without y^_c.
* sent indices: what a sent index costs.
* decoders: both streams merged, the same file without correction, and each stream alone with a decoder of its own.
* curves, at equal bytes: every schedule, and the continuous stream alone, against sending no index.
* codewords: the expected codeword at predicted positions against the most probable one.
* round trip, order of bytes: what was written is read again, at the cost that was estimated.

The baselines' weights come from the checkpoint's ablation file, each as its own stage left it: the codebook stream
alone has had fewer minutes than the whole. The continuous one is left out if it is not there. A byte is a byte of a
whole `.hf` file, but those of a stream alone are estimated.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from tqdm import tqdm

import hybridflow
from eval import command, study
from eval.equal_rates import at_rate, common_rates
from eval.photo import Photo, read_ablations
from eval.study import Rows
from hybridflow.container import QUALITIES
from hybridflow.errors import CheckpointError, ImageError
from hybridflow.losses import masked_cross_entropy
from hybridflow.masking import SCHEDULES, UNIFORM_SCHEDULES, schedule_mask
from hybridflow.tiling import STRIDE

USUAL = (31, "1_4")
"""Quality and schedule at which parts are switched off."""

CURVE_QUALITIES = tuple(range(0, QUALITIES, 9))
ROUND_TRIP_QUALITIES = (0, 31, 63)
CONTINUOUS_ALONE = "continuous alone"
RATES = 5
"""Rates, evenly spaced in log bpp, at which two curves are compared."""


def averages(photos: Sequence[Photo], sizes: Sequence[float], figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Averages over images of their bytes, bits per pixel, and `compare`."""
    bpp = [8 * size / (photo.original.width * photo.original.height) for photo, size in zip(photos, sizes)]
    return {"bytes": float(np.mean(sizes)), "bpp": float(np.mean(bpp))} | average_figures(figures)


def average_figures(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Averages of what `compare` gave."""
    return {name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]}


def unigram_entropy(index_maps: Iterable[np.ndarray]) -> float:
    """Entropy, in bits, of the indices of all maps together."""
    counts = np.bincount(np.concatenate([indices.ravel() for indices in index_maps]))
    share = counts[counts > 0] / counts.sum()
    return float((share * np.log2(1 / share)).sum())


@torch.inference_mode()
def masked_indices(photos: Sequence[Photo]) -> Rows:
    """Bits of a masked index: by its frequency alone, by the predictor, and by one that does not see y^_c."""
    predictors = {"with_y": photos[0].model.predictor, "without_y": photos[0].ablations.blind_predictor}
    masks = ("1_4", "1_9", "none")
    masked = dict.fromkeys(masks, 0)
    nats = {(mask, name): 0.0 for mask in masks for name in predictors}
    for photo in tqdm(photos, desc="masked indices", unit="image", disable=None):
        y_hat = photo.y_hat(USUAL[0])
        for mask in masks:
            sent = schedule_mask(mask, *photo.indices.shape[1:], photo.device)[None]
            count = int((~sent).sum())
            masked[mask] += count
            for name, predictor in predictors.items():
                logits = predictor(photo.indices, sent, y_hat)
                nats[mask, name] += count * float(masked_cross_entropy(logits, photo.indices, sent))
    unigram = unigram_entropy(photo.analysed.indices for photo in photos)
    return [
        {"schedule": mask, "masked": masked[mask], "unigram_bits": unigram}
        | {f"bits_{name}": nats[mask, name] / masked[mask] / math.log(2) for name in predictors}
        for mask in masks
    ]


def sent_indices(photos: Sequence[Photo]) -> Rows:
    """Bits of a sent index in real files."""
    rows = []
    for schedule in tqdm(("full", "1_4", "1_9"), desc="sent indices", unit="schedule", disable=None):
        sent = sum(int(photo.file(USUAL[0], schedule)[1].sent.sum()) for photo in photos)
        total = sum(photo.reading(USUAL[0], schedule)[1]["indices"] for photo in photos)
        rows.append({"schedule": schedule, "sent": sent, "bits_each": total / sent})
    return rows


@torch.inference_mode()
def decoders(photos: Sequence[Photo]) -> Rows:
    """The whole decoder, less its correction, and each stream alone with the decoder that was trained for it.

    The codebook stream alone sends every index.
    """
    quality = USUAL[0]
    measured = defaultdict(list)
    for photo in tqdm(photos, desc="decoders", unit="image", disable=None):
        variants = {
            "both streams": photo.whole(*USUAL),
            "uncorrected": photo.uncorrected(*USUAL),
            "codebook alone": photo.codebook_alone("full"),
        }
        if photo.ablations.continuous_decoder is not None:
            variants[CONTINUOUS_ALONE] = photo.continuous_alone(quality)
        for name, (size, pixels) in variants.items():
            measured[name].append((size, photo.compare(pixels)))
    return [{"decoder": name} | averages(photos, *zip(*found)) for name, found in measured.items()]


def curves(photos: Sequence[Photo], qualities: Sequence[int]) -> Rows:
    """Every uniform schedule, and the continuous stream alone, over the qualities."""
    names = list(UNIFORM_SCHEDULES)
    if photos[0].ablations.continuous_decoder is not None:
        names.append(CONTINUOUS_ALONE)
    rows = []
    with tqdm(desc="curves", unit="point", total=len(names) * len(qualities), disable=None) as bar:
        for name in names:
            for quality in qualities:
                if name == CONTINUOUS_ALONE:
                    sizes, pixels = zip(*(photo.continuous_alone(quality) for photo in photos))
                    figures = [photo.compare(decoded) for photo, decoded in zip(photos, pixels)]
                else:
                    sizes = [len(photo.file(quality, name)[0]) for photo in photos]
                    figures = [photo.figures(quality, name) for photo in photos]
                rows.append({"curve": name, "quality": quality} | averages(photos, sizes, figures))
                bar.update()
    return rows


def at_equal_bytes(points: Rows, reference: str = "none", rates: int = RATES) -> Rows:
    """Every curve of `curves` against `reference`, both interpolated in log bpp over the range they share."""
    by_curve = defaultdict(list)
    for point in sorted(points, key=lambda point: point["bpp"]):
        by_curve[point["curve"]].append(point)

    def column(curve: str, figure: str) -> list[float]:
        return [point[figure] for point in by_curve[curve]]

    def at(bpp: float, curve: str, figure: str) -> float:
        return at_rate(bpp, column(curve, "bpp"), column(curve, figure))

    rows = []
    for curve in by_curve:
        if curve == reference:
            continue
        for bpp in common_rates(column(curve, "bpp"), column(reference, "bpp"), rates):
            row = {"curve": curve, "bpp": bpp}
            for figure in ("lpips", "psnr"):
                row |= {figure: at(bpp, curve, figure), f"{figure}_{reference}": at(bpp, reference, figure)}
            rows.append(row)
    return rows


@torch.inference_mode()
def codewords(photos: Sequence[Photo]) -> Rows:
    """What to put at predicted positions of the same file: the expected codeword, or the most probable one."""
    model = photos[0].model
    expected, argmax = [], []
    for photo in tqdm(photos, desc="codewords", unit="image", disable=None):
        sent = torch.from_numpy(photo.file(*USUAL)[1].sent)[None].to(photo.device)
        y_hat = photo.y_hat(USUAL[0])
        filled = torch.where(sent, photo.indices, model.predictor(photo.indices, sent, y_hat).argmax(1))
        argmax.append(photo.compare(model.pixel_decoder(model.codebook.lookup(filled), model.correction(y_hat))))
        expected.append(photo.figures(*USUAL))
    return [
        {"codeword": "expected"} | average_figures(expected),
        {"codeword": "most probable"} | average_figures(argmax),
    ]


def round_trips(photos: Sequence[Photo], qualities: Sequence[int] = ROUND_TRIP_QUALITIES) -> Rows:
    """Whether files give back what the encoder coded, and whether they cost what they should.

    Columns: `intact`, images whose z, y^_c, sent positions and indices were all equal; `estimate_right`, images whose
    estimate is within 2 % or 8 bytes of the file, and the largest difference; `overhead`, the most bytes beyond
    -sum(log2 p) of z, y^_c, region schedules and indices: header, checks, the coder's rounding and its end, but not the
    bits of escapes, which count as coded; `region_bytes`, the most that dynamic masking's region schedules took.
    """
    rows = []
    with tqdm(desc="round trips", unit="point", total=len(SCHEDULES) * len(qualities), disable=None) as bar:
        for schedule in SCHEDULES:
            for quality in qualities:
                sizes = np.array([len(photo.file(quality, schedule)[0]) for photo in photos])
                intact, sections = zip(*(photo.reading(quality, schedule) for photo in photos))
                errors = np.abs([photo.estimated_bytes(quality, schedule) for photo in photos] - sizes)
                coded = [sum(cost for name, cost in s.items() if name != "check") / 8 for s in sections]
                rows.append(
                    {
                        "schedule": schedule,
                        "quality": quality,
                        "images": len(photos),
                        "intact": sum(intact),
                        "bytes": float(sizes.mean()),
                        "estimate_right": int((errors <= np.maximum(8, 0.02 * sizes)).sum()),
                        "estimate_error": float(errors.max()),
                        "overhead": float((sizes - coded).max()),
                        "region_bytes": max(s["regions"] for s in sections) / 8,
                    }
                )
                bar.update()
    return rows


def order_of_bytes(photos: Sequence[Photo], qualities: Sequence[int] = ROUND_TRIP_QUALITIES) -> Rows:
    """Images of which `full` takes more bytes than `1_4`, that more than `1_9`, and that more than `none`."""
    rows = []
    for quality in qualities:
        sizes = np.array([[len(photo.file(quality, s)[0]) for s in UNIFORM_SCHEDULES] for photo in photos])
        in_order = (np.diff(sizes, axis=1) < 0).all(1)
        rows.append({"quality": quality, "images": len(photos), "in_order": int(in_order.sum())})
    return rows


def measure_parts(photos: Sequence[Photo], qualities: Sequence[int]) -> dict[str, Rows]:
    """Every table, by its name."""
    points = curves(photos, qualities)
    return {
        "masked indices": masked_indices(photos),
        "sent indices": sent_indices(photos),
        "decoders": decoders(photos),
        "curves": points,
        "at equal bytes": at_equal_bytes(points),
        "codewords": codewords(photos),
        "round trip": round_trips(photos),
        "order of bytes": order_of_bytes(photos),
    }


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("parts", __doc__)
    study.add_arguments(parser)
    parser.add_argument(
        "--qualities",
        type=int,
        nargs="+",
        choices=range(QUALITIES),
        default=CURVE_QUALITIES,
        metavar="Q",
        help="of the curves, 0 to 63 (%(default)s)",
    )
    command.add_device(parser)
    args = parser.parse_args(argv)

    codec = hybridflow.load(args.checkpoint, device=args.device)
    baselines = study.baselines_file(args)
    ablations = read_ablations(codec, baselines)
    for name in ("codebook_decoder", "blind_predictor"):
        if getattr(ablations, name) is None:
            raise CheckpointError(f"{baselines}: holds no {name}: name by --ablations the file that export wrote")
    photos, listed = study.open_photos(args.data, codec, ablations)
    if all(min(photo.indices.shape[1:]) == 1 for photo in photos):  # of which `1_9` sends none
        raise ImageError(f"{args.data}: no image is over {STRIDE} pixels wide and high: give a folder of photos")
    study.publish(args.output, photos, measure_parts(photos, args.qualities), point="{}:{}".format(*USUAL))
    return command.exit_code(listed, len(photos))


if __name__ == "__main__":
    sys.exit(main())
