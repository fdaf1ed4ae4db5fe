"""The committed results: every curve averages its rows, and the rows of ours are of the weights that are shipped."""

import csv
import functools
import json

import pytest

from eval.curves import average
from eval.result_files import RESULTS
from eval.run import ablations_of, digest, load_codec, whole_of
from hybridflow.image_io import read_image
from hybridflow.metrics import lpips, psnr
from hybridflow.weights import DECODERS, available

FOLDERS = ("kodak", "cid22val")


@functools.cache
def rows_of(folder: str) -> dict[str, list[dict[str, str]]]:
    """Curve -> its rows."""
    rows: dict[str, list[dict[str, str]]] = {}
    for path in sorted((RESULTS / folder).glob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                rows.setdefault(row["curve"], []).append(row)
    return rows


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_curve_averages_its_rows(folder):
    curves = {path.stem: json.loads(path.read_text()) for path in (RESULTS / folder).glob("*.json")}
    assert curves.keys() == rows_of(folder).keys()
    for key, curve in curves.items():
        found = average(rows_of(folder)[key], curve["name"], curve["description"])["results"]
        assert found.pop("point") == curve["results"].pop("point")
        assert found.keys() == curve["results"].keys()
        for figure, values in found.items():
            assert values == pytest.approx(curve["results"][figure], rel=1e-9), (key, figure)


@pytest.mark.parametrize("study", ["parts", "freezing"])
def test_studies_are_of_the_weights_that_are_shipped(study):
    paths = list((RESULTS / study).glob("*.json"))
    assert paths
    for path in paths:
        model = load_codec(path.stem, "cpu").model
        assert json.loads(path.read_text())["description"].endswith(f"weights {digest(model)}"), f"{path}: measure anew"


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", available())
def test_shipped_weights_make_the_pictures_that_were_measured(name, decoder, photos):
    """What encoder and decoder do alike, another slope of all rectifiers say, no other test sees: of random weights any
    will do."""
    curve, photo = whole_of(name, "cpu", None, 0, decoder), photos[-1]
    *_, row = (row for row in rows_of("kodak")[curve.name] if row["image"] == photo.name)
    coding, original = curve.code(photo, row["point"]), read_image(photo)
    assert coding.bytes == pytest.approx(int(row["bytes"]), rel=0.01)
    assert psnr(original, coding.decoded) == pytest.approx(float(row["psnr-rgb"]), abs=0.05)
    assert lpips(original, coding.decoded) == pytest.approx(float(row["lpips-alex"]), abs=0.005)


@pytest.mark.parametrize("name", available())
def test_rows_are_of_the_weights_that_are_shipped(name):
    """Baselines that are not shipped are held to the hybrid alone, of which they were trained."""
    fidelity, perceptual = (whole_of(name, "cpu", None, 0, decoder) for decoder in DECODERS)
    made_by = {curve.name: curve.made_by for curve in (fidelity, perceptual, *ablations_of(fidelity, None))}
    for folder in FOLDERS:
        for key, rows in rows_of(folder).items():
            if key.split("-")[0] == name:
                found = {row["made_by"] for row in rows}
                if key not in made_by:
                    found = {maker[: len(fidelity.made_by)] for maker in found}
                assert found == {made_by.get(key, fidelity.made_by)}, f"{folder}/{key}: measure anew"
