"""Figures, the README's table and the page; the page in a headless browser where one is installed."""

import json
import re
import shutil
import subprocess
from string import ascii_uppercase

import matplotlib
import numpy as np
import pytest
from conftest import save_crops
from PIL import Image

from eval import plot, readme, report
from eval.datasets import description_of
from eval.result_files import METRICS, PUBLISHED_COLUMNS, published_curves, read_curves
from hybridflow.errors import HybridFlowError
from hybridflow.metrics import psnr

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


KODAK = description_of("kodak")


def write_curve(folder, key: str, offset: float, description: str = KODAK) -> None:
    results = {
        "point": ["0", "1", "2"],
        "bpp": [0.01, 0.03, 0.09],
        "psnr-rgb": [22.0 + offset, 24.0 + offset, 26.5 + offset],
        "lpips-alex": [0.4 - offset / 10, 0.3 - offset / 10, 0.2 - offset / 10],
        "encoding_time": [0.3, 0.4, 0.5],
        "decoding_time": [0.5, 0.6, 0.7],
    }
    folder.mkdir(exist_ok=True)
    content = {"name": f"Codec {key}", "description": description, "results": results}
    (folder / f"{key}.json").write_text(json.dumps(content))


@pytest.fixture
def results(tmp_path):
    for key, offset in (("tiny", 1), ("tiny-codebook-only", -1), ("vvc", 0), ("jpeg", -2)):
        write_curve(tmp_path / "results", key, offset)
    return tmp_path / "results"


@pytest.fixture
def page(results, checkpoint_path, photos, tmp_path):
    """A report on two crops."""
    data = save_crops(photos, tmp_path / "photos", (64, 48), (64, 48))
    output = tmp_path / "report.html"
    command = ["--data", str(data), "--results", str(results), "--checkpoint", str(checkpoint_path), "--bpp", "2"]
    assert report.main([*command, "-o", str(output)]) == 0
    return output


def test_figures_mark_what_is_published(results):
    figures = plot.figures_of(read_curves(results))
    assert set(figures) == {"rate_distortion", "speed", "ablations"}
    names = {f"{letter}  {curve.name}" for letter, curve in zip(ascii_uppercase, published_curves())}
    panels = [panel for panel in figures["rate_distortion"].axes if panel.lines]
    assert len(panels) == 2
    for panel in panels:
        assert {line.get_label() for line in panel.lines if line.get_linestyle() == "--"} == names
        assert {line.get_label() for line in panel.lines if line.get_linestyle() == "-"} == {
            "Codec tiny", "Codec jpeg", "Codec vvc"
        }
    sources = figures["rate_distortion"].get_supxlabel()
    assert all(curve.description in sources.replace("\n", " ") for curve in published_curves())


def test_panels_show_the_same_rates_and_every_point_there(results):
    panels = [panel for panel in plot.figures_of(read_curves(results))["rate_distortion"].axes if panel.lines]
    assert len({panel.get_xlim() for panel in panels}) == 1
    for panel in panels:
        (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
        points = [point for line in panel.lines for point in zip(*line.get_data())]
        assert all(bottom < figure < top for rate, figure in points if left <= rate <= right)


def test_the_same_figure_is_the_same_bytes(results):
    first, second = (report.svg(plot.figures_of(read_curves(results))["speed"]) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("data", ["photos, 3 images", "Kodak-dark, 24 images", "Kodak, 2 images, not Kodak's bytes: a"])
def test_published_points_stay_away_from_other_data_sets(results, data):
    for path in results.iterdir():
        write_curve(results, path.stem, 0, f"{data}; model")
    lines = plot.figures_of(read_curves(results))["rate_distortion"].axes[0].lines
    assert all(line.get_linestyle() == "-" for line in lines)


def test_results_of_two_data_sets_are_not_compared(results):
    write_curve(results, "jpeg", 0, f"{KODAK}; quality")
    assert len(read_curves(results)) == 4
    write_curve(results, "vvc", 0, "photos, 3 images; qp")
    with pytest.raises(HybridFlowError, match=f"{KODAK}, vvc of photos, 3 images"):
        read_curves(results)


def test_rates_beyond_the_usual_are_shown_where_there_are_no_others(tmp_path):
    write_curve(tmp_path, "tiny", 0, "icons, 3 images")
    content = json.loads((tmp_path / "tiny.json").read_text())
    content["results"]["bpp"] = [0.8, 1.2, 2.5]
    (tmp_path / "tiny.json").write_text(json.dumps(content))
    for panel in plot.figures_of(read_curves(tmp_path))["rate_distortion"].axes[:2]:
        assert panel.get_xlim()[0] < 0.8 and panel.get_xlim()[1] > 2.5


def test_no_two_lines_look_alike(results):
    for number in range(20):
        write_curve(results, f"tiny-{number}", number / 10)
    for figure in plot.figures_of(read_curves(results)).values():
        for panel in figure.axes:
            ours = [line for line in panel.lines if line.get_linestyle() != "--"]
            assert len({(line.get_color(), line.get_marker()) for line in ours}) == len(ours)


def test_a_checkpoint_comes_before_its_variants(results):
    write_curve(results, "tiny-effort-30", 0)
    keys = [curve.key for curve in read_curves(results)]
    assert keys == ["jpeg", "tiny", "tiny-codebook-only", "tiny-effort-30", "vvc"]


def test_the_published_points_are_read():
    curves = {curve.name: curve for curve in published_curves()}
    assert curves["OneDC"].points("lpips-alex") == ([0.0165, 0.0245, 0.0355, 0.078], [0.183, 0.154, 0.132, 0.096])
    assert curves["TACO"].points("dists")[0] == [0.014, 0.0258] and curves["TACO"].points("ms-ssim-rgb") == ([], [])
    assert all(curve.description for curve in curves.values())
    assert set(PUBLISHED_COLUMNS.values()) <= set(METRICS)


def test_the_plot_command_writes_figures(results, tmp_path):
    assert plot.main([str(results), "-o", str(tmp_path / "figures")]) == 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "rate_distortion.svg", "speed.svg", "ablations.svg"
    }
    assert plot.main([str(tmp_path), "-o", str(tmp_path)]) == 2


def test_the_readme_holds_the_table_of_the_committed_results():
    text = readme.README.read_text()
    assert readme.with_tables(text, readme.RESULTS) == text


def drawn(svg: str) -> np.ndarray:
    """Every number of its paths and of the places of its markers."""
    found = re.findall(r' (?:d|x|y)="([^"]*)"', svg)
    return np.array([float(number) for text in found for number in re.findall(r"-?\d+(?:\.\d+)?", text)])


def test_the_readme_holds_the_figure_of_the_committed_results(tmp_path):
    committed = readme.FIGURE.read_text()
    if f"Matplotlib v{matplotlib.__version__}," not in committed:
        pytest.skip("another version of matplotlib drew it")
    plot.save(plot.headline_figure(read_curves(readme.RESULTS / "kodak")), tmp_path / "figure.svg")
    np.testing.assert_allclose(drawn((tmp_path / "figure.svg").read_text()), drawn(committed), atol=0.01)


def test_the_table_lists_ours_first_and_no_ablation(results):
    lines = readme.markdown_table(read_curves(results)).splitlines()
    assert lines[0] == "| codec | point | bpp | PSNR dB | LPIPS |"
    assert lines[2] == "| Codec tiny | 0 | 0.0100 | 23.00 | 0.300 |"
    assert [line.split("|")[1].strip() for line in lines[2::3]] == ["Codec tiny", "Codec jpeg", "Codec vvc"]


def test_a_readme_without_marks_is_an_error():
    with pytest.raises(HybridFlowError, match="no place for a table"):
        readme.with_tables("# Title", readme.RESULTS)


def test_the_readme_command_prints_the_table_of_other_results(results, capsys):
    before = readme.README.read_text()
    assert readme.main([str(results)]) == 0
    assert capsys.readouterr().out.startswith("| codec | point | bpp |") and readme.README.read_text() == before


def test_the_page_is_whole_and_needs_nothing_else(page):
    text = page.read_text()
    assert text.count('<section class="photo"') == 2 and text.count("data:image/webp") == 6
    assert text.count("<svg") == 3 and "BD-rate" in text
    assert "src=\"http" not in text and "<link" not in text and "url(http" not in text


def test_images_are_sorted_by_every_metric_they_all_have():
    def photo(name, bpp, psnr, of_vvc):
        ours, vvc = ({"bpp": bpp, "figures": {"psnr-rgb": figure}} for figure in (psnr, of_vvc))
        return {"name": name, "versions": [ours, vvc]}

    orders = report.sort_orders([photo("b", 0.03, 20.0, 25.0), photo("a", 0.01, 21.0, 27.0)])
    assert orders == {
        "name": ["a", "b"],
        "bits per pixel": ["a", "b"],
        "PSNR dB, best first": ["a", "b"],
        "PSNR dB, worst first": ["b", "a"],
        "PSNR dB against VVC, best first": ["b", "a"],
    }


def test_the_page_says_what_ablations_it_has(results):
    curves = read_curves(results)
    parts = {"name": "Codec", "description": "3 images", "point": "31:1_4", "tables": {"decoders": [{"psnr": 20.123}]}}
    page = report.render(curves, [], 0.03, parts)
    assert "No ablation is among" not in page and "<td>20.12</td>" in page and "<td>-40.0%</td>" in page
    without = report.render([curve for curve in curves if not plot.is_ablation(curve)], [], 0.03)
    assert "No ablation is among" in without and "Each part" not in without and "Either stream" not in without


@pytest.mark.parametrize("lowest", [True, False])
def test_the_page_says_where_a_codec_cannot_go_as_low(results, lowest):
    version = {"bpp": 0.03, "figures": {}, "picture": "data:,"}
    versions = [version | {"name": name, "bytes": size} for name, size in (("HybridFlow", 400), ("VVC", 600))]
    photo = {"name": "a.png", "width": 64, "height": 48, "original": "data:,", "versions": versions}
    lowest_of = {"ours_is_at_its_lowest": lowest, "vvc_is_at_its_lowest": lowest}
    page = report.render(read_curves(results), [photo | lowest_of], 0.03)
    assert ("VVC's lowest rate is higher: it has 1.5 times our" in page) == lowest
    assert ("Ours is at its lowest rate, over 0.03 bits per pixel" in page) == lowest


def test_an_image_that_takes_more_is_coded_at_the_lowest_rate(checkpoint_path, photos, tmp_path):
    with Image.open(photos[0]) as image:
        image.crop((300, 200, 364, 264)).save(tmp_path / "a.png")
    found = report.look_at(tmp_path / "a.png", str(checkpoint_path), 1e-4)
    assert found["ours_is_at_its_lowest"] and found["versions"][0]["bpp"] > 1e-4
    codec = report.load_codec(str(checkpoint_path), "cpu")
    quality, schedule = codec.operating_points[0]
    lowest = codec.encode(tmp_path / "a.png", quality=quality, schedule=schedule)
    assert found["versions"][0]["bytes"] == len(lowest)
    assert not report.look_at(tmp_path / "a.png", str(checkpoint_path), 2)["ours_is_at_its_lowest"]


@pytest.mark.parametrize("least", [0, 2000])
def test_the_page_shows_what_each_codec_makes_of_an_image(least, checkpoint_path, photos, tmp_path, monkeypatch):
    folder = save_crops(photos, tmp_path / "photos", (64, 48))
    (path,) = folder.iterdir()
    red = Image.new("RGB", (64, 48), "red")
    monkeypatch.setattr(report, "encode_vvc", lambda original, qp: bytes(least + 10 * (64 - qp)))
    monkeypatch.setattr(report, "decode_vvc", lambda data, size: red)
    found = report.look_at(path, str(checkpoint_path), 2)
    original, codec = report.read_image(path), report.load_codec(str(checkpoint_path), "cpu")
    data = codec.encode(original, bpp=2)
    ours, vvc = found["versions"]
    assert found["original"] == report.data_uri(original)
    for version, size, decoded in ((ours, len(data), codec.decode(data)), (vvc, vvc["bytes"], red)):
        assert version["bytes"] == size and version["bpp"] == pytest.approx(8 * size / (64 * 48))
        assert version["picture"] == report.data_uri(decoded)
        assert version["figures"]["psnr-rgb"] == pytest.approx(psnr(original, decoded))
    assert vvc["bytes"] == max(least + 10, -(-len(data) // 10) * 10)
    assert found["vvc_is_at_its_lowest"] == (least > 0)


def test_deltas_are_against_vvc(results):
    rows = report.deltas(read_curves(results))
    assert [(row[0], row[4]) for row in rows if row[1] == "psnr-rgb"] == [
        ("Codec tiny", "+1.0000"), ("Codec tiny-codebook-only", "-1.0000")
    ]


@pytest.mark.parametrize("content", [[], {"name": "", "description": "", "point": "", "tables": {"a": [1]}}])
def test_parts_of_another_file_are_an_error(content, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(HybridFlowError, match="other.json is not of eval.parts"):
        report.read_parts(tmp_path / "other.json")


def test_a_broken_image_is_named_and_the_page_is_made_of_the_others(results, photos, tmp_path, monkeypatch, capsys):
    data = tmp_path / "photos"
    data.mkdir()
    (data / "broken.png").write_bytes(photos[0].read_bytes()[:5000])
    (data / "whole.png").write_bytes(photos[0].read_bytes())
    monkeypatch.setattr(report, "look_at", lambda image, *_: {"name": image.name})
    monkeypatch.setattr(report, "render", lambda curves, found, *_: str(found) + "\udcff")
    command = ["--data", str(data), "--results", str(results), "-o", str(tmp_path / "report.html")]
    assert report.main(command) == 1
    assert (tmp_path / "report.html").read_text() == "[{'name': 'whole.png'}]\\udcff"
    errors = capsys.readouterr().err
    assert "broken.png" in errors and "skipped 1 of 2 images" in errors


def test_results_that_make_no_page_are_told_before_images_are_coded(results, photos, tmp_path, monkeypatch, capsys):
    def no_rates_in_common(curves):
        raise HybridFlowError("no rates in common")

    monkeypatch.setattr(report.claims, "claim_rows", no_rates_in_common)
    monkeypatch.setattr(report, "look_at", lambda *_: pytest.fail("an image was coded"))
    command = ["--data", str(photos[0].parent), "--results", str(results), "-o", str(tmp_path / "report.html")]
    assert report.main(command) == 2 and "no rates in common" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt install chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_zooms_and_sorts_it_offline(page, width, tmp_path):
    script = """<script>
      const photo = document.querySelector(".photo"), range = photo.querySelector("input[type=range]");
      const frame = photo.querySelector(".frame"), stack = photo.querySelector(".stack");
      const change = (element, value, event) => { element.value = value; element.dispatchEvent(new Event(event)); };
      const names = () => [...document.querySelectorAll(".photo")].map(photo => photo.dataset.name);
      change(range, 20, "input");
      change(document.getElementById("left"), "original", "change");
      const seen = [parseFloat(stack.style.getPropertyValue("--cut")) / frame.clientWidth];
      change(document.getElementById("zoom"), "4", "change");
      seen.push(Math.round(stack.clientWidth / frame.clientWidth));
      seen.push(document.documentElement.scrollWidth <= innerWidth, photo.querySelector(".name").textContent);
      change(document.getElementById("sort"), "LPIPS, worst first", "change");
      seen.push(String(names()) === String(orders["LPIPS, worst first"]));
      Promise.all([...document.images].map(image => image.decode())).then(() => {
        parent.postMessage([...seen, document.images.length].join(), "*");
      });
    </script>"""
    tested = tmp_path / "tested.html"
    tested.write_text(page.read_text().replace("</body>", f"{script}</body>"))
    window = tmp_path / "window.html"  # a frame, as a headless window may be wider than asked for
    window.write_text(f"""<title></title><iframe src="tested.html" width="{width}" height="900"></iframe>
      <script>addEventListener("message", event => document.title = event.data)</script>""")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", "--dump-dom"]
    run = subprocess.run([CHROMIUM, *options, window.as_uri()], capture_output=True, text=True, timeout=120)
    assert "<title>0.2,4,true,original,true,4</title>" in run.stdout, run.stderr[-500:]
