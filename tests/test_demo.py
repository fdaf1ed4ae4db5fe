"""`make demo`: files, the figures that are printed of them, and the picture."""

import pytest
from conftest import save_crops
from PIL import Image

import hybridflow
from eval import demo
from hybridflow.image_io import read_image
from hybridflow.metrics import psnr


def test_the_demo_leaves_files_and_a_picture_and_prints_what_they_are(codec, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hybridflow, "load", lambda name: codec)
    monkeypatch.setattr(demo, "PHOTOS", save_crops(photos, tmp_path / "photos", (96, 64), (80, 64)))
    monkeypatch.setattr(demo, "TARGETS", (1.0, 2.0))
    output = tmp_path / "new" / "demo"
    assert demo.main(["-o", str(output)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:5]]
    files = [output / f"{photo.stem}_{bpp}bpp.hf" for photo in photos[:2] for bpp in ("1.00", "2.00")]
    for row, file in zip(rows, files, strict=True):
        original = read_image(demo.PHOTOS / f"{row[0]}.png")
        size, pixels = file.stat().st_size, original.width * original.height
        assert file.stem.startswith(row[0]) and int(row[1]) == size
        assert float(row[2]) == pytest.approx(8 * size / pixels, abs=1e-4)
        assert float(row[3]) == pytest.approx(psnr(original, codec.decode(file)), abs=0.01)
    assert Image.open(output / "side_by_side.png").width > 3 * 80


def test_photos_of_the_demo_are_there():
    assert len(list(demo.PHOTOS.glob("*.png"))) == 3
