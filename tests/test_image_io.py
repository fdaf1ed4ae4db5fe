"""Whatever Pillow opens becomes 8-bit sRGB of the right colours, or one clear line."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from hybridflow import container
from hybridflow.errors import ImageError
from hybridflow.image_io import (
    encode_image,
    image_to_tensor,
    looks_like_image,
    read_image,
    tensor_to_image,
    write_image,
)

RED, GREEN, GREY = (255, 0, 0), (0, 255, 0), (128, 128, 128)


@pytest.fixture
def photo():
    """A smooth colour image, 20 wide and 12 high."""
    x, y = np.meshgrid(np.arange(20), np.arange(12))
    return Image.fromarray(np.stack([x * 12, y * 20, 255 - x * 6 - y * 5], axis=-1).astype(np.uint8))


def file_bytes(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.fixture(autouse=True)
def no_silent_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_every_kind_of_source_gives_the_same_image(photo, tmp_path):
    path = tmp_path / "photo.png"
    photo.save(path)
    array, data = np.asarray(photo), path.read_bytes()
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    sources = [photo, path, str(path), data, memoryview(data), io.BytesIO(data), array, array / 255]
    sources += [(array / 255).astype(np.float32), tensor, tensor[None], tensor / 255, (tensor / 255)[None].double()]
    for source in sources:
        assert (pixels(read_image(source)) == array).all()


def test_greyscale_sources_become_rgb(photo):
    grey = np.asarray(photo.convert("L"))
    tensor = torch.from_numpy(grey.copy())[None]
    for source in (grey, grey[..., None], tensor, tensor[None], photo.convert("L"), file_bytes(photo.convert("L"))):
        assert (pixels(read_image(source)) == grey[..., None]).all()
    assert (pixels(read_image(grey / 255)) == grey[..., None]).all()
    assert set(pixels(read_image(photo.convert("1"))).ravel()) <= {0, 255}


def test_palette_and_cmyk(photo):
    palette = photo.quantize(16)
    assert (pixels(read_image(file_bytes(palette))) == pixels(palette.convert("RGB"))).all()
    cmyk = read_image(file_bytes(photo.convert("CMYK"), "JPEG", quality=100))
    assert np.abs(pixels(cmyk) - pixels(photo)).mean() < 6


@pytest.mark.parametrize(
    ("tag", "value", "sample", "grey"),
    [(262, 0, 0x3333, 204), (262, 1, 0x3333, 51), (258, 12, 0x8888, 136), (258, 16, 0x8080, 128)],
)
def test_what_is_black_and_white_in_a_deep_tiff(tag, value, sample, grey):
    """White at zero (262), and 12 bits, which Pillow reads but does not write (258)."""
    data = file_bytes(Image.fromarray(np.full((4, 6), sample, np.uint16)), "TIFF")
    before = {262: 1, 258: 16}[tag]
    old, new = (struct.pack("<HHIH", tag, 3, 1, number) for number in (before, value))
    assert data.count(old) == 1
    assert (pixels(read_image(data.replace(old, new))) == grey).all()


def test_16_bits_are_rounded_to_8():
    samples = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    expected = np.rint(samples / 257)[..., None]
    for source in (file_bytes(Image.fromarray(samples)), file_bytes(Image.fromarray(samples), "TIFF")):
        assert (pixels(read_image(source)) == expected).all()
    assert (pixels(read_image(Image.fromarray(samples.astype(np.int32)))) == expected).all()
    assert (pixels(read_image(Image.fromarray((samples / 65535).astype(np.float32)))) == expected).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    transpose = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    upright = photo.transpose(transpose[orientation]) if orientation > 1 else photo
    image = read_image(file_bytes(photo, exif=exif))
    assert (pixels(image) == pixels(upright)).all() and read_image(encode_image(image)) == image


def srgb_profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile():
    """sRGB whose red and green primaries have changed places."""
    return srgb_profile().replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")


def test_icc_profiles_are_turned_to_srgb():
    data = file_bytes(Image.new("RGB", (2, 2), RED), icc_profile=swapped_profile())
    assert read_image(encode_image(read_image(data))) == read_image(data)
    plain, swapped = (
        read_image(file_bytes(Image.new("RGB", (2, 2), RED), icc_profile=profile)).getpixel((0, 0))
        for profile in (srgb_profile(), swapped_profile())
    )
    assert np.abs(np.subtract(plain, RED)).max() <= 1
    assert np.abs(np.subtract(swapped, GREEN)).max() <= 1
    palette = Image.new("RGB", (2, 2), RED).quantize(2)
    from_palette = read_image(file_bytes(palette, icc_profile=swapped_profile())).getpixel((0, 0))
    assert np.abs(np.subtract(from_palette, GREEN)).max() <= 1


@pytest.mark.parametrize("mode, profile", [("RGB", b"no profile at all"), ("CMYK", srgb_profile())])
def test_an_unusable_profile_is_said_and_left_out(mode, profile):
    data = file_bytes(Image.new("RGB", (8, 8), GREY).convert(mode), "JPEG", icc_profile=profile, quality=100)
    with pytest.warns(UserWarning, match="ICC"):
        image = read_image(data)
    assert np.abs(np.subtract(image.getpixel((0, 0)), GREY)).max() <= 2


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_damaged_exif_is_said_and_the_picture_is_read(photo, file_format):
    data = file_bytes(photo, file_format, exif=b"Exif\0\0garbagegarbage", lossless=True)
    with pytest.warns(UserWarning, match="EXIF"):
        assert read_image(data) == photo


def test_transparency_is_laid_over_white_and_said(photo):
    see_through = photo.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(photo.size))
    with pytest.warns(UserWarning, match="transparency") as caught:
        image = read_image(file_bytes(see_through))
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="transparency") as caught:
        assert read_image(np.asarray(see_through)) == image
    assert caught[0].filename == __file__
    weight = np.asarray(see_through.getchannel("A"))[..., None] / 255
    assert np.abs(pixels(image) - (pixels(photo) * weight + 255 * (1 - weight))).max() <= 1


def test_every_way_of_being_transparent_is_seen():
    white = [255, 255, 255]
    grey_alpha = file_bytes(Image.new("LA", (2, 2), (0, 0)))
    palette = file_bytes(Image.new("P", (2, 2), 0), transparency=0)
    keyed = file_bytes(Image.new("RGB", (2, 2), RED), transparency=RED)
    keyed_16 = file_bytes(Image.fromarray(np.full((2, 2), 700, np.uint16)), transparency=700)
    for data in (grey_alpha, palette, keyed, keyed_16):
        with pytest.warns(UserWarning, match="transparency"):
            assert (pixels(read_image(data)) == white).all()


def png(depth, colour_type, row, key):
    """A PNG of two equal rows of two pixels, whose transparent colour is `key`; Pillow does not write all depths."""
    header = struct.pack(">IIBBBBB", 2, 2, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", key), (b"IDAT", zlib.compress(2 * (b"\0" + row))), (b"IEND", b"")]
    packed = (struct.pack(">I", len(data)) + name + data + zlib.crc32(name + data).to_bytes(4) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    "depth, colour_type, row, sample, other",
    [
        (1, 0, b"\xc0", 1, 0),
        (2, 0, b"\x50", 1, 3),
        (4, 0, b"\x77", 7, 9),
        (8, 0, b"\x07\x07", 7, 9),
        (16, 0, 2 * b"\x34\x56", 0x3456, 0x9934),
        (16, 2, 6 * b"\x34\x56", 0x3456, 0x9934),
    ],
)
def test_the_transparent_colour_is_that_of_the_file(depth, colour_type, row, sample, other):
    samples = 3 if colour_type == 2 else 1
    seen, opaque = (png(depth, colour_type, row, samples * key.to_bytes(2)) for key in (sample, other))
    with pytest.warns(UserWarning, match="transparency"):
        assert (pixels(read_image(seen)) == 255).all()
    value = round(255 * sample / (2**depth - 1))
    assert np.abs(pixels(read_image(opaque)) - value).max() <= 1


def test_premultiplied_grey_is_read():
    with pytest.warns(UserWarning, match="transparency"):
        assert (pixels(read_image(Image.new("La", (2, 2)))) == 255).all()


def test_opaque_alpha_is_dropped_in_silence(photo):
    assert (pixels(read_image(file_bytes(photo.convert("RGBA")))) == pixels(photo)).all()


def test_8_bits_are_not_taken_for_dark_16_bits(photo):
    with pytest.raises(ImageError, match="integers of 0 to 255 where 16 bits are taken: convert it to mode L"):
        read_image(photo.convert("L").convert("I"))


def test_frames_that_are_lost_are_told(photo):
    buffer = io.BytesIO()
    frames = [photo, photo.rotate(180)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="more than one frame"):
        assert read_image(buffer.getvalue()) == photo
    with Image.open(buffer) as image, pytest.warns(UserWarning, match="number 2 is taken"):
        image.seek(1)
        assert read_image(image) == frames[1]


def test_layers_are_no_frames(photo):
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, photo.height, photo.width, 8, 3)
    layers = b"".join(struct.pack(">4iH", 0, 0, 1, 1, 0) + b"8BIMnorm\xff\0\0\0" + bytes(4) for _ in range(2))
    info = struct.pack(">h", 2) + layers
    planes = struct.pack(">H", 0) + b"".join(plane.tobytes() for plane in photo.split())
    data = header + bytes(8) + struct.pack(">II", len(info) + 4, len(info)) + info + planes
    with Image.open(io.BytesIO(data)) as image:
        assert image.is_animated
    assert read_image(data) == photo


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_cut_images_are_refused(photo, tmp_path, file_format):
    data = file_bytes(photo.resize((200, 120)), file_format)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_damaged_images_never_escape_as_other_errors(photo):
    rng = np.random.default_rng(0)
    for file_format in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"):
        data = np.frombuffer(file_bytes(photo, file_format), np.uint8)
        for _ in range(40):
            damaged = data.copy()
            damaged[rng.integers(0, len(data), 5)] = rng.integers(0, 256, 5)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    read_image(damaged.tobytes())
                except ImageError as error:
                    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "source, words",
    [
        ("no/such/file.png", "No such file"),
        (".", "directory"),
        (b"just some text", "not an image"),
        (b"", "not an image"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros((4,), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "pixels"),
        (np.full((4, 4), 255.0), "in [0,1], not 255 to 255: divide 0 to 255 by 255"),
        (np.full((4, 4), np.nan), "[0,1]"),
        (np.zeros((4, 4), np.uint16), "uint16"),
        (torch.zeros(2, 3, 4, 4), "shape"),
        (torch.zeros(5, 4, 3), "shape"),
        (torch.zeros(2, 5, 4), "shape"),
        (torch.zeros(3, 0, 4), "pixels"),
        (Image.fromarray(np.full((4, 4), 7.0, np.float32)), "outside"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), "outside"),
        (file_bytes(Image.fromarray(np.full((4, 4), 7, np.int32)), "TIFF"), "32 bits"),
        (None, "NoneType"),
    ],
)
def test_each_refusal_has_its_line(source, words):
    with pytest.raises(ImageError) as error:
        read_image(source)
    assert words in str(error.value) and "\n" not in str(error.value)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n"
MPEG = b"\0\0\1\xb3@\0@"


@pytest.mark.parametrize("head", [POSTSCRIPT, MPEG])
def test_what_other_programs_would_draw_is_no_picture(head, tmp_path):
    with pytest.raises(ImageError, match="is not an image"):
        read_image(head + bytes(64))
    names = "a.eps", "a.ps", "a.mpg", "a.wmf", "a.h5", ".a.png", "a.txt", "a"
    assert not any(looks_like_image(tmp_path / name) for name in names)
    assert all(looks_like_image(tmp_path / name) for name in ("a.png", "a.JPG", "a.webp", "a.tif", "a.avif"))


def test_a_size_that_is_only_known_when_read_is_refused(photo, monkeypatch):
    monkeypatch.setattr(container, "MAX_PIXELS", 64 * 64)
    icon = bytearray(file_bytes(photo.resize((200, 120)), "ICO", sizes=[(200, 120)]))
    icon[6], icon[7] = 20, 12  # what its directory says of it
    with pytest.warns(UserWarning, match="not the expected size"), pytest.raises(ImageError, match="200 x 120"):
        read_image(bytes(icon))


def test_too_many_pixels_are_refused_before_they_are_read(photo, monkeypatch):
    monkeypatch.setattr(container, "MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(ImageError, match="20 x 12"):
        read_image(file_bytes(photo))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    with pytest.raises(ImageError, match="too many pixels: scale it"):
        read_image(file_bytes(photo))


def test_tensors_and_images_are_inverse(photo):
    tensor = image_to_tensor(photo)
    assert tensor.shape == (1, 3, 12, 20) and tensor.dtype == torch.float32
    assert tensor.min() >= 0 and tensor.max() <= 1
    assert tensor_to_image(tensor) == photo and tensor_to_image(tensor[0]) == photo
    assert tensor_to_image(torch.tensor([-1.0, 0.499 / 255, 9.0]).reshape(3, 1, 1)).getpixel((0, 0)) == (0, 0, 255)


def test_images_are_written_in_the_format_of_their_name(photo, tmp_path):
    write_image(photo, tmp_path / "a.png")
    assert read_image(tmp_path / "a.png") == photo
    write_image(photo, tmp_path / "a.JPG")
    assert (tmp_path / "a.JPG").read_bytes().startswith(b"\xff\xd8")
    for name in ("a", "a.xyz", "a.ico", "a.blp"):  # the last two: icons are scaled, and what holds palettes alone
        with pytest.raises(ImageError, match=".png"):
            write_image(photo, tmp_path / name)
    for name in ("a.tga", "a.gif", "a.sgi", "a.avif"):
        with pytest.raises(ImageError, match=".png"):
            write_image(Image.new("RGB", (70_000, 1)), tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["a.JPG", "a.png"]
    assert read_image(encode_image(photo)) == photo
