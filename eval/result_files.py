"""Curves as `eval.run` and `eval.baselines` leave them in a folder, and published ones."""

import csv
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from eval.datasets import description_of
from hybridflow.errors import HybridFlowError

PUBLISHED = Path(__file__).parent / "anchors" / "kodak_published.csv"
PUBLISHED_COLUMNS = {"psnr_db": "psnr-rgb", "lpips_alex": "lpips-alex", "dists": "dists"}

RESULTS = Path(__file__).parent / "results"
"""The committed results, a folder a data set."""

NAMES = "surrogateescape"
"""How the names of images that are no text are written to a CSV, and read again."""

METRICS = {
    "psnr-rgb": ("PSNR, dB", True),
    "ms-ssim-rgb": ("MS-SSIM", True),
    "lpips-alex": ("LPIPS-Alex", False),
    "lpips-vgg": ("LPIPS-VGG", False),
    "dists": ("DISTS", False),
}
"""Figure of a curve -> its label, and whether more is better."""


class CurveResult(NamedTuple):
    """One curve in CompressAI's schema."""

    key: str
    """The file's name without suffix."""
    name: str
    description: str
    results: dict[str, list]
    """Parallel lists, sorted by bpp."""
    made_by: str = ""
    """The makers of its rows (`eval.curves`), where they lie beside it."""

    @property
    def data(self) -> str:
        """What it was measured on."""
        return self.description.partition(";")[0]

    @property
    def on_kodak(self) -> bool:
        """Whether it may be compared with what was published on Kodak."""
        return self.data == description_of("kodak")

    def points(self, metric: str) -> tuple[list[float], list[float]]:
        """bpp and figures of the points that have the metric; both are empty if none has."""
        pairs = zip(self.results["bpp"], self.results.get(metric, []))
        known = [(rate, figure) for rate, figure in pairs if figure is not None]
        return [rate for rate, _ in known], [figure for _, figure in known]


def read_curve(path: Path) -> CurveResult:
    """One JSON; HybridFlowError if it is not in the schema."""
    try:
        content = json.loads(path.read_text())
        name, description, results = (content[key] for key in ("name", "description", "results"))
        rates = [float(rate) for rate in results["bpp"]]
        alike = all(len(figures) == len(rates) for figures in results.values())
        if rates and alike and isinstance(name, str) and isinstance(description, str):
            order = sorted(range(len(rates)), key=rates.__getitem__)
            sorted_results = {key: [figures[i] for i in order] for key, figures in results.items()}
            return CurveResult(path.stem, name, description, sorted_results)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    must = "name and description, texts, and results, lists of equal length, one of them bpp"
    raise HybridFlowError(f"{path} is no curve: it must hold {must}")


def read_curves(folder: Path) -> list[CurveResult]:
    """Every JSON of a folder, by key.

    Raises:
        FileNotFoundError: there is none.
        HybridFlowError: they were not all measured on the same images.
    """
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stem)  # a checkpoint before its variants
    if not paths:
        raise FileNotFoundError(f"no results in {folder}: run eval.run and eval.baselines with -o {folder} first")
    makers = _makers(folder)
    curves = [read_curve(path)._replace(made_by=makers.get(path.stem, "")) for path in paths]
    refuse_other_data(curves)
    return curves


def _makers(folder: Path) -> dict[str, str]:
    """What measured each curve, by the CSVs of a folder."""
    makers = {}
    for path in folder.glob("*.csv"):
        with path.open(newline="", errors=NAMES) as file:
            rows = [row for row in csv.DictReader(file) if {"curve", "made_by"} <= row.keys()]
        makers |= {row["curve"]: row["made_by"] for row in rows}
    return makers


def refuse_other_data(curves: Sequence[CurveResult]) -> None:
    """HybridFlowError unless curves were all measured on the same images."""
    for first, curve in pairwise(curves):
        if curve.data != first.data:
            both = f"{first.key} is of {first.data}, {curve.key} of {curve.data}"
            raise HybridFlowError(f"{both}: keep the results of each data set in a folder of their own")


def published_curves() -> list[CurveResult]:
    """Codecs as their authors published them on Kodak, None where a point lacks a metric; `description`: the source."""
    with PUBLISHED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    curves = []
    for codec in dict.fromkeys(row["codec"] for row in rows):
        own = sorted((row for row in rows if row["codec"] == codec), key=lambda row: float(row["bpp"]))
        results = {"bpp": [float(row["bpp"]) for row in own]}
        for column, metric in PUBLISHED_COLUMNS.items():
            results[metric] = [float(row[column]) if row[column] else None for row in own]
        curves.append(CurveResult(codec, codec, "; ".join(dict.fromkeys(row["source"] for row in own)), results))
    return curves
