"""Figures, the README's table and the page; the page in a headless browser where one is installed."""

import json
import shutil
import subprocess

import pytest
from PIL import Image

for package in ("matplotlib", "jinja2", "bjontegaard", "imageio_ffmpeg"):
    pytest.importorskip(package)

from eval import plot, readme, report
from eval.result_files import METRICS, PUBLISHED_COLUMNS, published_curves, read_curves

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def write_curve(folder, key: str, offset: float, description: str = "Kodak, 24 images") -> None:
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
    data = tmp_path / "photos"
    data.mkdir()
    for photo in photos[:2]:
        with Image.open(photo) as image:
            image.crop((300, 200, 364, 248)).save(data / photo.name)
    output = tmp_path / "report.html"
    command = ["--data", str(data), "--results", str(results), "--checkpoint", str(checkpoint_path), "--bpp", "2"]
    assert report.main([*command, "-o", str(output)]) == 0
    return output


def test_figures_mark_what_is_published(results):
    figures = plot.figures_of(read_curves(results))
    assert set(figures) == {"rate_distortion", "speed", "ablations"}
    panels = [panel for panel in figures["rate_distortion"].axes if panel.lines]
    assert len(panels) == 2
    for panel in panels:
        for line in panel.lines:
            assert (line.get_linestyle() == "--") == line.get_label().endswith("(published)")
    assert any(line.get_linestyle() == "--" for line in panels[0].lines)


def test_published_points_stay_away_from_other_data_sets(results):
    write_curve(results, "tiny", 0, "photos, 3 images")
    lines = plot.figures_of(read_curves(results))["rate_distortion"].axes[0].lines
    assert not any("published" in line.get_label() for line in lines)


def test_the_published_points_are_read():
    assert published_curves("lpips-alex")["OneDC"] == ([0.0165, 0.0245, 0.0355, 0.078], [0.183, 0.154, 0.132, 0.096])
    assert "TACO" in published_curves("psnr-rgb") and not published_curves("ms-ssim-rgb")
    assert set(PUBLISHED_COLUMNS.values()) <= set(METRICS)


def test_the_plot_command_writes_figures(results, tmp_path):
    assert plot.main([str(results), "-o", str(tmp_path / "figures")]) == 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "rate_distortion.svg", "speed.svg", "ablations.svg"
    }
    assert plot.main([str(tmp_path), "-o", str(tmp_path)]) == 2


def test_the_readme_holds_the_table_of_the_committed_results():
    text = readme.README.read_text()
    assert readme.with_table(text, readme.markdown_table(read_curves(readme.KODAK_RESULTS))) == text


def test_the_table_lists_ours_first_and_no_ablation(results):
    lines = readme.markdown_table(read_curves(results)).splitlines()
    assert lines[0] == "| codec | point | bpp | PSNR dB | LPIPS |"
    assert lines[2] == "| Codec tiny | 0 | 0.0100 | 23.00 | 0.300 |"
    assert [line.split("|")[1].strip() for line in lines[2::3]] == ["Codec tiny", "Codec jpeg", "Codec vvc"]


def test_a_readme_without_marks_is_an_error():
    with pytest.raises(ValueError, match="no place for the table"):
        readme.with_table("# Title", "table")


def test_the_page_is_whole_and_needs_nothing_else(page):
    text = page.read_text()
    assert text.count('<section class="photo"') == 2 and text.count("data:image/webp") == 6
    assert text.count("<svg") == 3 and "BD-rate" in text
    assert "src=\"http" not in text and "<link" not in text and "url(http" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt install chromium")
def test_a_browser_shows_and_sorts_it_offline(page, tmp_path):
    script = """<script>
      const range = document.querySelector("input[type=range]"), stack = range.parentNode.querySelector(".stack");
      range.value = 20; range.dispatchEvent(new Event("input"));
      const sorted = document.getElementById("sort");
      sorted.value = "lpips"; sorted.dispatchEvent(new Event("change"));
      const lpips = [...document.querySelectorAll(".photo")].map(photo => +photo.dataset.lpips);
      Promise.all([...document.images].map(image => image.decode())).then(() => {
        document.title = [stack.style.getPropertyValue("--cut"), lpips[0] <= lpips[1], document.images.length].join();
      });
    </script>"""
    tested = tmp_path / "tested.html"
    tested.write_text(page.read_text().replace("</body>", f"{script}</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", "--dump-dom"]
    run = subprocess.run([CHROMIUM, *options, tested.as_uri()], capture_output=True, text=True, timeout=120)
    assert "<title>20%,true,4</title>" in run.stdout, run.stderr[-500:]
