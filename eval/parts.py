"""Does every part earn its keep? Each part of a checkpoint against doing without it, on a folder of images.

    python -m eval.parts --data photos/ --checkpoint tiny -o parts.json

prints a Markdown table for every question and writes them all to one JSON file:

* masked indices: what the predictor knows of an index that was not sent, in bits, with and without y^_c.
* sent indices: what a sent index costs.
* decoders: both streams merged, the same file without correction, and each stream alone with a decoder of its own.
* curves, at equal bytes: every schedule, and the continuous stream alone, against sending no index.
* codewords: the expected codeword at predicted positions against the most probable one.
* round trip, order of bytes: what was written is read again, at the cost that was estimated.

The baselines' weights come from the checkpoint's ablation file, each as its own stage left it: fewer minutes than the
whole has had. A byte is a byte of a whole `.hf` file, but the continuous stream's alone are estimated.
"""

import argparse
import functools
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import hybridflow
from eval.datasets import describe, list_images
from hybridflow.ablation import Ablations
from hybridflow.checkpoint import load_parts
from hybridflow.codec import Codec
from hybridflow.container import QUALITIES, Header, pack, unpack
from hybridflow.continuous import Latent
from hybridflow.errors import HybridFlowError
from hybridflow.image_io import read_image, tensor_to_image
from hybridflow.losses import bits, masked_cross_entropy
from hybridflow.masking import SCHEDULES, UNIFORM_SCHEDULES, schedule_mask
from hybridflow.metrics import lpips, psnr
from hybridflow.model import Coded
from hybridflow.weights import weight_file

USUAL = (31, "1_4")
"""Quality and schedule at which parts are switched off."""

CURVE_QUALITIES = (0, 15, 31, 47, 63)
ROUND_TRIP_QUALITIES = (0, 31, 63)
CONTINUOUS_ALONE = "continuous alone"
RATES = 5
"""Rates, evenly spaced in log bpp, at which two curves are compared."""

CHECKS = 6
"""Bytes of the two checks of a file: one inside the stream, one behind it."""

Rows = list[dict[str, str | float]]


class Photo:
    """One image: analysed once, and written, read and compared once at every point, however often that is asked for.

    Attributes:
        indices: the whole index map (1,h,w) int64.
        file: (quality, schedule) -> the whole `.hf` file, and what it holds.
        reading: (quality, schedule) -> whether the file gives back what it holds; bits of each section of its stream.
        latent: quality -> the continuous stream as training sees it.
        figures: (quality, schedule) -> the decoded image's `compare`.
        continuous_alone: quality -> bytes and `compare` of the continuous codec as its own stage left it.
    """

    def __init__(self, codec: Codec, ablations: Ablations, path: Path) -> None:
        self.codec, self.model, self.ablations = codec, codec.model, ablations
        self.original = read_image(path)
        self.analysed = codec.analyse(self.original)
        self.device = self.analysed.latent.device
        self.indices = torch.from_numpy(self.analysed.indices)[None].to(self.device)
        self.file = functools.cache(self._file)
        self.reading = functools.cache(self._reading)
        self.latent = functools.cache(self._latent)
        self.figures = functools.cache(self._figures)
        self.continuous_alone = functools.cache(self._continuous_alone)

    def y_hat(self, quality: int) -> Tensor:
        """y^_c (1,M,h,w) of a file of this quality."""
        return self.model.y_hat(self.file(quality, "none")[1].y, self._tensor(quality))

    def compare(self, pixels: Tensor) -> dict[str, float]:
        """LPIPS and PSNR of a decoder's output (1,3,16h,16w)."""
        decoded = tensor_to_image(pixels.float().clamp(0, 1)[..., : self.original.height, : self.original.width])
        return {"lpips": lpips(self.original, decoded), "psnr": psnr(self.original, decoded)}

    @torch.inference_mode()
    def estimated_bytes(self, quality: int, schedule: str) -> float:
        """What a file takes by training's likelihoods, header and checks included."""
        header, sent = self._header(quality, schedule), torch.from_numpy(self.file(quality, schedule)[1].sent)[None]
        latent = self.latent(quality)
        likelihoods = self.model.index_likelihoods(
            self.indices, sent.to(self.device), latent.y_gained, self._tensor(quality)
        )
        total = sum(float(bits(p)) for p in (*latent.likelihoods.values(), likelihoods))
        return (total + self.reading(quality, schedule)[1]["schedules"]) / 8 + len(header.pack()) + CHECKS

    def _tensor(self, quality: int) -> Tensor:
        return torch.tensor([quality], device=self.device)

    def _header(self, quality: int, schedule: str) -> Header:
        return Header(*self.original.size, quality, schedule, bytes.fromhex(self.codec.model_id))

    def _file(self, quality: int, schedule: str) -> tuple[bytes, Coded]:
        header = self._header(quality, schedule)
        stream, coded = self.model.write(self.analysed, quality, schedule, header.pack(), self.codec.probability)
        return pack(header, stream), coded

    def _reading(self, quality: int, schedule: str) -> tuple[bool, dict[str, float]]:
        data, written = self.file(quality, schedule)
        header, stream = unpack(data)
        sections: dict[str, float] = {}
        shape = self.analysed.indices.shape
        read = self.model.read(
            stream, *shape, quality, schedule, header.pack(), self.codec.probability, sections=sections
        )
        true = np.where(read.sent, self.analysed.indices, 0)
        intact = np.array_equal(read.indices, true) and all(map(np.array_equal, read, written))
        return intact, sections

    @torch.inference_mode()
    def _latent(self, quality: int) -> Latent:
        return self.model.continuous(self.analysed.image, self._tensor(quality))

    def _figures(self, quality: int, schedule: str) -> dict[str, float]:
        return self.compare(self.model.synthesise(self.file(quality, schedule)[1], quality))

    @torch.inference_mode()
    def _continuous_alone(self, quality: int) -> tuple[float, dict[str, float]]:
        latent = self.ablations.continuous_alone(self.analysed.image, self._tensor(quality))
        size = sum(float(bits(p)) for p in latent.likelihoods.values()) / 8
        size += len(self._header(quality, "none").pack()) + CHECKS
        return size, self.compare(self.ablations.light_synthesis(latent.y_hat))


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

    The codebook stream alone is charged a `full` file without z and y_c: less than it would take by itself, as the
    index prior reads y^_c.
    """
    quality = USUAL[0]
    measured = defaultdict(list)
    for photo in tqdm(photos, desc="decoders", unit="image", disable=None):
        data, coded = photo.file(*USUAL)
        full, sections = photo.file(quality, "full")[0], photo.reading(quality, "full")[1]
        uncorrected = photo.model.synthesise(coded, quality, corrected=False)
        codebook_alone = photo.ablations.codebook_decoder(photo.model.codebook.lookup(photo.indices))
        measured["both streams"].append((len(data), photo.figures(*USUAL)))
        measured["uncorrected"].append((len(data), photo.compare(uncorrected)))
        codebook_bytes = len(full) - (sections["z"] + sections["y"]) / 8
        measured["codebook alone"].append((codebook_bytes, photo.compare(codebook_alone)))
        measured[CONTINUOUS_ALONE].append(photo.continuous_alone(quality))
    return [{"decoder": name} | averages(photos, *zip(*found)) for name, found in measured.items()]


def curves(photos: Sequence[Photo], qualities: Sequence[int]) -> Rows:
    """Every uniform schedule, and the continuous stream alone, over the qualities."""
    names = (*UNIFORM_SCHEDULES, CONTINUOUS_ALONE)
    rows = []
    with tqdm(desc="curves", unit="point", total=len(names) * len(qualities), disable=None) as bar:
        for name in names:
            for quality in qualities:
                if name == CONTINUOUS_ALONE:
                    sizes, figures = zip(*(photo.continuous_alone(quality) for photo in photos))
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
        return float(np.interp(math.log(bpp), np.log(column(curve, "bpp")), column(curve, figure)))

    rows = []
    for curve in by_curve:
        low = max(column(curve, "bpp")[0], column(reference, "bpp")[0])
        high = min(column(curve, "bpp")[-1], column(reference, "bpp")[-1])
        if curve == reference or low >= high:
            continue
        for bpp in np.geomspace(low, high, rates).tolist():
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
    -sum(log2 p) of what is coded; `region_bytes`, the most that dynamic masking's region schedules took.
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
                        "region_bytes": max(s["schedules"] for s in sections) / 8,
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


def markdown(rows: Rows) -> str:
    """Rows of equal columns -> a Markdown table."""
    if not rows:
        return "(nothing to compare)"

    def text(value: float) -> str:
        return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"

    lines = [[str(column) for column in rows[0]], ["---"] * len(rows[0])]
    lines += [[value if isinstance(value, str) else text(value) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.parts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--checkpoint", default="tiny", help="a preset's name or a .safetensors file (%(default)s)")
    parser.add_argument(
        "--ablations", type=Path, metavar="FILE", help="the baselines' weights (NAME-ablation.safetensors, as shipped)"
    )
    parser.add_argument(
        "--qualities",
        type=int,
        nargs="+",
        choices=range(QUALITIES),
        default=CURVE_QUALITIES,
        metavar="Q",
        help="of the curves, 0 to 63 (%(default)s)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    args = parser.parse_args(argv)

    try:
        images = list_images(args.data)
        codec = hybridflow.load(args.checkpoint, device=args.device)
        ablations = Ablations(codec.model.preset).to(args.device).eval()
        load_parts(args.ablations or weight_file(f"{codec.name}-ablation.safetensors"), ablations)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        photos = [Photo(codec, ablations, path) for path in tqdm(images, desc="analysis", unit="image", disable=None)]
    except (HybridFlowError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tables = measure_parts(photos, args.qualities)
    result = {
        "name": f"HybridFlow {codec.name}",
        "description": f"{describe(images)}; model id {codec.model_id}",
        "point": "{}:{}".format(*USUAL),
        "tables": tables,
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['name']}, {result['description']}")
    for name, rows in tables.items():
        print(f"\n### {name.capitalize()}\n\n{markdown(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
