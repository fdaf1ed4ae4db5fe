"""Curves as `eval.run` and `eval.baselines` leave them in a folder, and published ones."""

import csv
import json
from pathlib import Path
from typing import NamedTuple

PUBLISHED = Path(__file__).parent / "anchors" / "kodak_published.csv"
PUBLISHED_COLUMNS = {"psnr_db": "psnr-rgb", "lpips_alex": "lpips-alex", "dists": "dists"}

KODAK_RESULTS = Path(__file__).parent / "results" / "kodak"
"""The committed results on Kodak."""

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


def read_curve(path: Path) -> CurveResult:
    """One JSON; ValueError if it is not in the schema."""
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or "bpp" not in content.get("results", {}):
        raise ValueError(f"{path} is no curve: it must hold name, description and results with bpp")
    return CurveResult(path.stem, content["name"], content["description"], content["results"])


def read_curves(folder: Path) -> list[CurveResult]:
    """Every JSON of a folder, by name; FileNotFoundError if there is none."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no results in {folder}: run eval.run and eval.baselines with -o {folder} first")
    return [read_curve(path) for path in paths]


def published_curves(metric: str) -> dict[str, tuple[list[float], list[float]]]:
    """Codec -> bpp and figures that its authors published on Kodak; those without the metric are left out."""
    columns = {name: column for column, name in PUBLISHED_COLUMNS.items()}
    curves: dict[str, tuple[list[float], list[float]]] = {}
    if metric not in columns:
        return curves
    with PUBLISHED.open(newline="") as file:
        for row in csv.DictReader(file):
            if row[columns[metric]]:
                rates, figures = curves.setdefault(row["codec"], ([], []))
                rates.append(float(row["bpp"]))
                figures.append(float(row[columns[metric]]))
    return curves
