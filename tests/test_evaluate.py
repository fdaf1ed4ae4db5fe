"""The evaluation loop, on a codec with random weights: rows, curves, resuming, unreadable images."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hybridflow
from eval import evaluate as evaluation
from eval.evaluate import COLUMNS, Point, curve, evaluate, main, weights_digest

POINTS = [Point(63, "full"), Point(0, "none")]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two small pictures; MS-SSIM has room in the second only."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("a.png", (48, 40)), ("b.png", (176, 168))):
        gradient = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
        Image.fromarray(gradient.astype(np.uint8)).save(folder / name)
    return folder


def test_points_are_parsed():
    assert Point.parse("31:1_4") == Point(31, "1_4")


@pytest.mark.parametrize("text", ["31", "64:full", "-1:full", "x:none", "3:1_5", ""])
def test_a_bad_point_is_named(text):
    with pytest.raises(Exception, match="is not QUALITY:SCHEDULE"):
        Point.parse(text)


def test_rows_hold_what_the_files_cost(codec, folder, tmp_path):
    rows, unreadable = evaluate(codec, sorted(folder.iterdir()), POINTS, tmp_path / "rows.csv")
    assert not unreadable
    assert [(row["image"], row["schedule"]) for row in rows] == [
        ("a.png", "full"), ("a.png", "none"), ("b.png", "full"), ("b.png", "none")
    ]
    for row in rows:
        data = codec.encode(folder / row["image"], quality=int(row["quality"]), schedule=row["schedule"])
        assert int(row["bytes"]) == len(data)
        assert float(row["bpp"]) == pytest.approx(8 * len(data) / (int(row["width"]) * int(row["height"])))
    assert [bool(row["ms-ssim-rgb"]) for row in rows] == [False, False, True, True]
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == rows


def test_rows_already_there_are_not_measured_again(codec, folder, tmp_path, monkeypatch):
    images = sorted(folder.iterdir())
    first, _ = evaluate(codec, images, POINTS[:1], tmp_path / "rows.csv")

    measured = []
    measure = evaluation.measure
    monkeypatch.setattr(evaluation, "measure", lambda *args: measured.append(args[-1]) or measure(*args))
    both, _ = evaluate(codec, images, POINTS, tmp_path / "rows.csv")
    assert measured == [POINTS[1]] * len(images)
    assert [row for row in both if row["schedule"] == "full"] == first


def test_any_weight_changes_the_digest(codec):
    before = weights_digest(codec.model)
    parameter = next(codec.model.parameters())
    value = parameter.data.flatten()[0].item()
    parameter.data.flatten()[0] = value + 1
    changed = weights_digest(codec.model)
    parameter.data.flatten()[0] = value
    assert changed != before == weights_digest(codec.model)


def row(quality: int, bpp: float, **figures: float) -> dict[str, str]:
    values = dict.fromkeys(COLUMNS, "") | {"quality": quality, "schedule": "1_4", "bpp": bpp} | figures
    return {column: str(value) for column, value in values.items()}


def test_a_curve_averages_images_and_is_sorted_by_bpp():
    rows = [
        row(63, 0.08, **{"psnr-rgb": 30.0}), row(0, 0.01, **{"psnr-rgb": 20.0}),
        row(63, 0.06, **{"psnr-rgb": 26.0}), row(0, 0.03, **{"psnr-rgb": 22.0}),
    ]
    results = curve(rows, "name", "description")["results"]
    assert results["point"] == ["0:1_4", "63:1_4"]
    assert results["bpp"] == pytest.approx([0.02, 0.07])
    assert results["psnr-rgb"] == pytest.approx([21.0, 28.0])


def test_a_figure_that_some_image_lacks_is_left_out_of_the_curve():
    rows = [row(0, 0.01, **{"ms-ssim-rgb": 0.9}), row(0, 0.02)]
    assert set(curve(rows, "name", "description")["results"]) == {"point", "bpp"}


def test_the_command_skips_and_counts_an_unreadable_image(codec, folder, tmp_path, monkeypatch, capsys):
    (folder / "broken.png").write_text("not a picture")
    monkeypatch.setattr(hybridflow, "load", lambda *_, **__: codec)
    output = tmp_path / "out" / "curve.json"
    assert main(["--data", str(folder), "--points", "0:none", "-o", str(output)]) == 1

    errors = capsys.readouterr().err
    assert "broken.png" in errors and "skipped 1 of 3 images" in errors
    result = json.loads(output.read_text())
    assert len(result["results"]["bpp"]) == 1 and result["results"]["bpp"][0] > 0
    assert len(list(csv.DictReader(output.with_suffix(".csv").open()))) == 2


def test_the_curve_can_be_read_by_compressais_plot_tool(codec, folder, tmp_path, monkeypatch):
    plot = pytest.importorskip("compressai.utils.plot.__main__")
    monkeypatch.setattr(hybridflow, "load", lambda *_, **__: codec)
    output = tmp_path / "curve.json"
    assert main(["--data", str(folder), "--points", "0:none", "63:full", "-o", str(output)]) == 0
    read = plot.parse_json_file(output, "psnr")
    assert len(read["xs"]) == len(read["ys"]) == 2 and read["xs"] == sorted(read["xs"])


def test_another_csv_is_refused_and_left_alone(codec, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hybridflow, "load", lambda *_, **__: codec)
    csv_path = tmp_path / "curve.csv"
    csv_path.write_text("a,b\n1,2\n")
    assert main(["--data", str(folder), "--points", "0:none", "-o", str(tmp_path / "curve.json")]) == 2
    assert "other columns" in capsys.readouterr().err
    assert csv_path.read_text() == "a,b\n1,2\n"
