"""From curves to files: rows that are kept or made anew, averages, workers, CompressAI's plot tool."""

import csv
import json
import os
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import save_crops
from PIL import Image

from eval.baselines import Baseline
from eval.cost import Cost
from eval.curves import COLUMNS, Coding, Rows, average, costs, measure_all, run
from eval.datasets import sha256
from eval.result_files import _makers
from hybridflow.errors import HybridFlowError
from hybridflow.image_io import read_image


@dataclass(frozen=True)
class Darker:
    """A codec of one byte a point that darkens."""

    points: tuple[str, ...] = ("2", "1")
    made_by: str = "first"
    name: str = "darker"
    title: str = "Darker"
    description: str = "subtracts"

    def code(self, image: Path, point: str) -> Coding:
        level = int(point)
        return Coding(10 * level, read_image(image).point(lambda v: max(v - 10 // level, 0)), {"encoding_time": 0.5})


@pytest.fixture
def folder(photos, tmp_path) -> Path:
    """Crops of two photos."""
    return save_crops(photos, tmp_path / "pictures", (72, 48), (72, 48))


def row(point: str, bpp: float, **figures: float) -> dict[str, str]:
    values = dict.fromkeys(COLUMNS, "") | {"point": point, "bpp": bpp} | figures
    return {column: str(value) for column, value in values.items()}


def test_a_curve_averages_images_and_is_sorted_by_bpp():
    rows = [
        row("63:1_4", 0.08, **{"psnr-rgb": 30.0}), row("0:1_4", 0.01, **{"psnr-rgb": 20.0}),
        row("63:1_4", 0.06, **{"psnr-rgb": 26.0}), row("0:1_4", 0.03, **{"psnr-rgb": 22.0}),
    ]
    results = average(rows, "name", "description")["results"]
    assert results["point"] == ["0:1_4", "63:1_4"]
    assert results["bpp"] == pytest.approx([0.02, 0.07])
    assert results["psnr-rgb"] == pytest.approx([21.0, 28.0])


def test_a_figure_that_some_image_lacks_is_left_out_of_the_curve(capsys):
    rows = [row("0", 0.01, **{"ms-ssim-rgb": 0.9}), row("0", 0.02, image="small.png")]
    assert set(average(rows, "name", "description")["results"]) == {"point", "bpp"}
    assert capsys.readouterr().err == "name: no average of ms-ssim-rgb, which small.png has none of\n"


def test_a_row_that_was_cut_is_measured_again(folder, tmp_path):
    images, path = sorted(folder.iterdir()), tmp_path / "rows.csv"
    measure_all([Darker()], images, Rows(path))
    whole = path.read_text()
    for cut in (3, 60, len(whole) - 20, len(whole)):  # in the last row, in the header, all
        path.write_text(whole[:-cut])
        measure_all([Darker()], images, Rows(path))
        assert [line.split(",")[:6] for line in path.read_text().splitlines()] == [
            line.split(",")[:6] for line in whole.splitlines()
        ]
        assert all(None not in found.values() for found in Rows(path).by_key.values())


def test_rows_already_there_are_kept_and_others_are_made_anew(folder, tmp_path, monkeypatch):
    images, path = sorted(folder.iterdir()), tmp_path / "rows.csv"
    coded = []
    code = Darker.code
    monkeypatch.setattr(Darker, "code", lambda self, *job: coded.append(job) or code(self, *job))
    measure_all([Darker(points=("1",))], images, Rows(path))
    measure_all([Darker()], images, Rows(path))
    assert [point for _, point in coded] == ["1", "1", "2", "2"]
    measure_all([Darker(made_by="second")], images, Rows(path))
    assert len(coded) == 8
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["point"], row["made_by"]) for row in rows] == [("1", "second")] * 2 + [("2", "second")] * 2
    measure_all([Darker(points=("1",), made_by="third")], images, Rows(path))
    assert {row["made_by"] for row in Rows(path).by_key.values()} == {"third"}
    measure_all([Darker(name="other")], images, Rows(path))
    assert {row["curve"] for row in Rows(path).by_key.values()} == {"darker", "other"}


def test_a_copy_of_an_image_counts_once(folder, tmp_path):
    first = min(folder.iterdir())
    first.with_name("copy.png").write_bytes(first.read_bytes())
    assert run([Darker()], folder, tmp_path / "out", "rows.csv", 1) == 0
    curve = json.loads((tmp_path / "out" / "darker.json").read_text())
    assert curve["description"].startswith("pictures, 2 images")
    assert len((tmp_path / "out" / "rows.csv").read_text().splitlines()) == 1 + 2 * 2


def test_costs_are_named_and_left_out_where_unknown():
    known = costs(Cost(1.0, 2.0, 20.0), Cost(3.0, 4.0, 40.0))
    assert known == {"encoding_time": 1.0, "decoding_time": 3.0, "encoding_mib": 2.0, "decoding_mib": 4.0}
    assert costs(Cost(1.0, None, None), Cost(3.0, None, None)) == {"encoding_time": 1.0, "decoding_time": 3.0}


def test_rows_without_vggs_figures_are_made_anew_once_it_is_there(folder, tmp_path, monkeypatch):
    images, path = sorted(folder.iterdir()), tmp_path / "rows.csv"
    monkeypatch.setattr("eval.curves.vgg_metrics", dict)
    monkeypatch.setattr("eval.curves.distortions", lambda *_: {})
    measure_all([Darker()], images, Rows(path))
    monkeypatch.setattr("eval.curves.vgg_metrics", lambda: {"dists": None})
    monkeypatch.setattr("eval.curves.distortions", lambda *_: {"dists": 0.1})
    measure_all([Darker()], images, Rows(path))
    with path.open(newline="") as file:
        assert [row["dists"] for row in csv.DictReader(file)] == ["0.1"] * 4


def test_rows_of_images_that_vgg_cannot_see_are_whole_without_it(photos, tmp_path, monkeypatch):
    folder, path = save_crops(photos, tmp_path / "pictures", (40, 12)), tmp_path / "rows.csv"
    monkeypatch.setattr("eval.curves.vgg_metrics", lambda: {"dists": None})
    monkeypatch.setattr("eval.curves.distortions", lambda *_: {})
    measure_all([Darker()], [*folder.iterdir()], Rows(path))
    monkeypatch.setattr("eval.curves.distortions", lambda *_: pytest.fail("measured again"))
    measure_all([Darker()], [*folder.iterdir()], Rows(path))


def test_runs_side_by_side_keep_each_others_rows(folder, tmp_path):
    images, path = sorted(folder.iterdir()), tmp_path / "rows.csv"
    measure_all([Darker(made_by="before"), Darker(name="other", made_by="before")], images, Rows(path))
    first, second = Rows(path), Rows(path)
    measure_all([Darker()], images, first)
    measure_all([Darker(name="other")], images, second)
    measure_all([Darker(points=("3",))], images, first)
    found = [(row["curve"], row["point"], row["made_by"]) for row in Rows(path).by_key.values()]
    expected = [("darker", point) for point in "123"] + [("other", point) for point in "12"]
    assert found == [(*pair, "first") for pair in expected for _ in images]


def test_names_that_are_no_text_or_of_odd_lines_are_kept(folder, tmp_path, monkeypatch):
    images, path = sorted(folder.iterdir()), tmp_path / "rows.csv"
    names = [os.fsdecode(b"a\xff.png"), "b\u2028\x0bc.png"]
    for image, name in zip(images, names):
        image.rename(folder / name)
    measure_all([Darker()], sorted(folder.iterdir()), Rows(path))
    assert {row["image"] for row in Rows(path).by_key.values()} == {*names}
    monkeypatch.setattr(Darker, "code", lambda *_: pytest.fail("measured again"))
    measure_all([Darker()], sorted(folder.iterdir()), Rows(path))
    assert _makers(tmp_path) == {"darker": "first"}


def test_a_stopped_run_keeps_its_rows(folder, tmp_path, monkeypatch):
    images, path, given = sorted(folder.iterdir()), tmp_path / "rows.csv", [{}]
    monkeypatch.setattr("eval.curves.distortions", lambda *_: given.pop())
    with pytest.raises(IndexError):
        measure_all([Darker()], images, Rows(path))
    assert Rows(path).get(sha256(images[0]), Darker(), "2") and len(Rows(path).by_key) == 1


def test_another_csv_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(Exception, match="other columns"):
        Rows(path)
    assert path.read_text() == "a,b\n1,2\n"


def test_a_file_is_no_folder_for_results(folder, tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("mine")
    with pytest.raises(HybridFlowError, match="is a file: name a folder"):
        run([Darker()], folder, path, "rows.csv", workers=1)
    assert path.read_text() == "mine"


def test_an_unreadable_image_is_named_and_counted(folder, tmp_path, capsys):
    (folder / "broken.png").write_bytes(min(folder.iterdir()).read_bytes()[:500])
    assert run([Darker()], folder, tmp_path / "out", "rows.csv", workers=1) == 1
    errors = capsys.readouterr().err
    assert "broken.png" in errors and "skipped 1 of 3 images" in errors
    result = json.loads((tmp_path / "out" / "darker.json").read_text())
    assert result["results"]["point"] == ["1", "2"] and "2 images" in result["description"]


def test_points_measured_before_stay_in_the_curve(folder, tmp_path):
    def points_of(*named):
        assert run([Darker(points=named)], folder, tmp_path / "out", "rows.csv", workers=1) == 0
        return json.loads((tmp_path / "out" / "darker.json").read_text())["results"]["point"]

    assert points_of("1", "2") == ["1", "2"]
    assert points_of("3") == ["1", "2", "3"]
    Image.new("RGB", (72, 48), "gray").save(folder / "new.png")
    assert points_of("2") == ["2"]  # the others lack an image
    assert run([Darker(points=("1",), made_by="second")], folder, tmp_path / "out", "rows.csv", workers=1) == 0
    assert points_of("3") == ["3"]


def test_identical_pictures_leave_no_infinity_behind(folder, tmp_path):
    assert run([Darker(points=("99",))], folder, tmp_path, "rows.csv", workers=1) == 0
    text = (tmp_path / "darker.json").read_text()
    assert "psnr-rgb" not in text and "Infinity" not in text and "lpips-alex" in text


def test_workers_measure_the_same(folder, tmp_path):
    curves = [Baseline("jpeg", (1, 5))]
    run(curves, folder, tmp_path / "one", "rows.csv", workers=1)
    run(curves, folder, tmp_path / "two", "rows.csv", workers=2)
    one, two = (json.loads((tmp_path / name / "jpeg.json").read_text())["results"] for name in ("one", "two"))
    for figure in ("point", "bpp", "psnr-rgb"):
        assert one[figure] == two[figure]
    assert one["lpips-alex"] == pytest.approx(two["lpips-alex"], abs=1e-4)


def test_compressais_plot_tool_draws_our_curves(folder, tmp_path, monkeypatch):
    run([Darker()], folder, tmp_path, "rows.csv", workers=1)
    picture = tmp_path / "curve.png"
    arguments = ["plot", "-f", str(tmp_path / "darker.json"), "-m", "psnr", "-o", str(picture)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setenv("MPLBACKEND", "agg")
    runpy.run_module("compressai.utils.plot", run_name="__main__")
    assert Image.open(picture).width > 100
