"""Pillow opens and saves `.hf` files as it does its own formats."""

import copy
import io
import pickle

import pytest
from PIL import Image

import hybridflow
from hybridflow import pillow_plugin
from hybridflow.errors import FormatError, HybridFlowError


@pytest.fixture
def photo(photos):
    with Image.open(photos[0]) as image:
        return image.crop((200, 200, 290, 260))


def test_pillow_saves_and_opens(photo, tmp_path):
    for preset in hybridflow.available():
        codec, path = hybridflow.load(preset), tmp_path / f"{preset}.hf"
        photo.save(path, preset=preset, bpp=0.2)
        assert path.read_bytes() == codec.encode(photo, bpp=0.2)
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("HYBRIDFLOW", "RGB", photo.size)
            assert image.convert("RGB") == codec.decode(path) and image.getpixel((0, 0)) is not None
    assert Image.MIME[image.format] == "image/x-hybridflow"
    image = Image.open(path)
    file = image.fp
    image.load()
    assert file.closed and image.getpixel((0, 0)) is not None


def test_an_image_is_pickled_copied_and_closed_as_any_other(photo, tmp_path):
    path = tmp_path / "photo.hf"
    photo.save(path, preset="tiny", quality=0)
    image = Image.open(path).convert("RGB")
    for same in (pickle.loads(pickle.dumps(Image.open(path))), copy.deepcopy(Image.open(path))):
        assert same.convert("RGB") == image
    with Image.open(path) as closed:
        pass
    assert closed.convert("RGB") == image


def test_opening_decodes_nothing(photo, monkeypatch):
    buffer = io.BytesIO()
    photo.save(buffer, "HYBRIDFLOW", quality=0, preset="tiny")
    monkeypatch.setattr(pillow_plugin, "_codec", lambda name: pytest.fail("decodes"))
    assert Image.open(buffer).size == photo.size


def test_what_is_wrong_is_told(photo, tmp_path):
    with pytest.raises(HybridFlowError, match="quality must be 0 to 63"):
        photo.save(tmp_path / "photo.hf", quality=95)
    photo.save(tmp_path / "whole.hf", preset="tiny")
    (tmp_path / "cut.hf").write_bytes((tmp_path / "whole.hf").read_bytes()[:-3])
    with pytest.raises(FormatError, match="cut or damaged"):
        Image.open(tmp_path / "cut.hf")
