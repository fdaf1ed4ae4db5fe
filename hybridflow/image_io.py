"""Pictures in and out: whatever Pillow opens or an array holds becomes 8-bit sRGB."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from hybridflow.container import MAX_PIXELS, too_large
from hybridflow.errors import HybridFlowError, ImageError
from hybridflow.saving import write_atomic

_SRGB = ImageCms.createProfile("sRGB")
_NOT_PICTURES = {"EPS", "WMF", "MPEG", "IPTC", "BUFR", "GRIB", "HDF5"}
"""What Pillow opens by starting another program, in the name of a file of another kind, or not at all."""
_CHANNELS = (1, 3, 4)
"""Of arrays and tensors: greyscale, colour, and colour with transparency."""
_WITHOUT_COLOURS = {".pgm", ".pbm", ".pfm"}
"""Names under which Pillow writes a colour picture all the same."""
_KEYS = {"L;2": lambda key: 85 * key, "L;4": lambda key: 17 * key, "RGB;16B": lambda key: tuple(c >> 8 for c in key)}
"""By layout of a PNG's samples: its transparent colour, as the file has it -> as Pillow's samples of 8 bits are."""
_SCALE = f"scale it to between 1 and {MAX_PIXELS} pixels, sides counted in steps of 64"


def read_image(source) -> Image.Image:
    """Any picture as an 8-bit sRGB image.

    EXIF orientation is applied, an ICC profile turned to sRGB; 16 bits become 8; palettes, greyscale and CMYK become
    RGB. Transparency is laid over white, and of an animation the first frame is taken, with a warning that says so.

    Args:
        source: a path; the bytes of an image file or a binary file object; a PIL image; a numpy array (H,W,C) or (H,W),
            or a tensor (C,H,W) or (1,C,H,W), uint8 or float in [0,1]. C is 3, or 1 for greyscale, or 4 with
            transparency.

    Returns:
        A PIL image of mode RGB.

    Raises:
        ImageError: the source cannot be read, is damaged, too large (`MAX_PIXELS`) or of an unknown layout.
    """
    if isinstance(source, (str, os.PathLike)):
        return _from_pillow(read_file(source, ImageError), str(source))
    if isinstance(source, (bytes, bytearray, memoryview, Image.Image)):
        return _from_pillow(source, "the input")
    if hasattr(source, "read"):
        return _from_pillow(source.read(), "the input")
    array = source if isinstance(source, np.ndarray) else _tensor_to_array(source)
    return _from_pillow(_from_array(array), "the array")


def image_to_tensor(image: Image.Image):
    """An RGB image as a float32 tensor (1,3,H,W) in [0,1]."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def tensor_to_image(tensor) -> Image.Image:
    """A float tensor (3,H,W) or (1,3,H,W) on any device, clamped to [0,1] and rounded to 8 bits, as an RGB image."""
    samples = tensor.detach().reshape(tensor.shape[-3:]).permute(1, 2, 0).float().clamp(0, 1).mul(255).round()
    return Image.fromarray(samples.byte().cpu().numpy())


def encode_image(image: Image.Image, suffix: str = ".png") -> bytes:
    """The bytes of an image file, its format by the suffix that its name would have; lossy formats at quality 95.

    Raises:
        ImageError: no format that Pillow writes has that suffix, or it holds no RGB.
    """
    file_format, buffer = writable_format(suffix), io.BytesIO()
    try:
        image.save(buffer, file_format, quality=95)
    except Exception as error:  # sides that a format cannot hold make Pillow's plugins raise almost anything
        raise ImageError(f"{suffix} cannot hold the picture ({error}): choose a name that ends in .png") from None
    return buffer.getvalue()


def writable_format(suffix: str) -> str:
    """Pillow's name of the format with that suffix; call it before long work. Raises ImageError if it writes none, or
    no colours, or one of icons, which scales them."""
    file_format = Image.registered_extensions().get(suffix.lower())
    try:
        if file_format in ("ICO", "ICNS") or suffix.lower() in _WITHOUT_COLOURS:
            raise ValueError
        Image.new("RGB", (1, 1)).save(io.BytesIO(), file_format or suffix)
    except Exception:  # formats that are read alone, or need a program, raise almost anything
        name = suffix or "a name without suffix"
        raise ImageError(f"no image format is written as {name}: choose a name that ends in .png") from None
    return file_format


def looks_like_image(path: str | os.PathLike) -> bool:
    """Whether a file of that name is a picture that `read_image` takes; hidden files are not."""
    file_format = Image.registered_extensions().get(Path(path).suffix.lower())
    return file_format in _readable_formats() and not Path(path).name.startswith(".")


def write_image(image: Image.Image, path: str | os.PathLike, *, force: bool = False) -> None:
    """Write an image file, made by :func:`encode_image` and put there by :func:`write_atomic`; raises as they do."""
    write_atomic(path, encode_image(image, Path(path).suffix), force=force)


def read_file(path: str | os.PathLike, refusal: type[HybridFlowError] = HybridFlowError) -> bytes:
    """A file's bytes; raises `refusal` if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise refusal(f"cannot read {path} ({error.strerror}): check the path") from None
    except ValueError:  # a null character
        raise refusal(f"cannot read {str(path)!r} (no name of a file): check the path") from None


def _readable_formats() -> list[str]:
    Image.init()
    return [file_format for file_format in Image.ID if file_format not in _NOT_PICTURES]


def _from_pillow(source: bytes | Image.Image, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            if not isinstance(source, Image.Image):
                source = Image.open(io.BytesIO(source), formats=_readable_formats())
            return _to_rgb(source, name)
    except (HybridFlowError, Warning):
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"{name} has too many pixels: {_SCALE}") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name} is not an image: give a PNG, JPEG, WebP or another that Pillow opens") from None
    except Exception as error:  # damaged files make Pillow's plugins raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ImageError(f"cannot read {name} ({reason}): give a whole, readable image") from None


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    _refuse_size(image.width, image.height, name)
    if image.format not in ("MPO", "PSD") and getattr(image, "is_animated", False):  # previews of a photo, layers of it
        taken = f"number {image.tell() + 1}" if image.tell() else "the first"
        warnings.warn(f"{name} has more than one frame: {taken} is taken", stacklevel=4)
    layout = image.tile[0].args if getattr(image, "tile", None) else None
    image.load()
    _refuse_size(image.width, image.height, name)  # some formats learn it only now
    if "transparency" in image.info and layout in _KEYS:
        image.info["transparency"] = _KEYS[layout](image.info["transparency"])
    profile, (black, white) = image.info.get("icc_profile"), _deep_range(image, name)
    image = _upright(image, name)
    if image.mode.startswith("I") or image.mode == "F":
        image, alpha = _deep_to_grey(image, black, white, name)
    else:
        image, alpha = _split_alpha(image)
    if profile:
        image = _to_srgb(image, profile, name)
    image = image.convert("RGB")
    if alpha is not None and alpha.getextrema()[0] < 255:
        warnings.warn(f"{name} has transparency: it is laid over white, and lost", stacklevel=4)
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    image.info.clear()  # a profile or orientation that is applied must not be written again
    return image


def _upright(image: Image.Image, name: str) -> Image.Image:
    """The image turned as its EXIF data say, or as it was (with a warning) if they cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged ones make Pillow raise almost anything
        warnings.warn(f"{name} has EXIF data that cannot be read: it is not turned", stacklevel=5)
        return image


def _refuse_size(width: int, height: int, name: str) -> None:
    if width * height == 0 or too_large(width, height):
        raise ImageError(f"{name} has {width} x {height} pixels: {_SCALE}")


def _deep_range(image: Image.Image, name: str) -> tuple[int, int]:
    """What black and white are in greyscale of floats (F) or of 16 bits (I, I;16), which Pillow leaves as a TIFF has
    it: of 12 bits, or with white at zero."""
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and image.format is None and 0 < image.getextrema()[1] <= 255:  # made of one of 8 bits?
        raise ImageError(f"{name} has integers of 0 to 255 where 16 bits are taken: convert it to mode L first")
    if image.mode == "I" and tags.get(BITSPERSAMPLE) == (32,):
        raise ImageError(f"{name} has integers of 32 bits, which have no agreed range: convert it to 8 bits first")
    limit = 1 if image.mode == "F" else 4095 if tags.get(BITSPERSAMPLE) == (12,) else 65535
    return (limit, 0) if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 else (0, limit)


def _deep_to_grey(
    image: Image.Image, black: int, white: int, name: str
) -> tuple[Image.Image, Image.Image | None]:
    """Greyscale of `_deep_range` as 8 bits, and its transparency if it has any."""
    samples, limit = np.asarray(image).astype(np.float64), max(black, white)
    if not (samples.min() >= 0 and samples.max() <= limit):
        raise ImageError(f"{name} has samples outside 0 to {limit}: convert it to 8 bits first")
    transparent = image.info.get("transparency")
    alpha = None if transparent is None else Image.fromarray(np.where(samples == transparent, 0, 255).astype(np.uint8))
    return Image.fromarray(np.rint(np.abs(samples - black) * (255 / limit)).astype(np.uint8)), alpha


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours alone, and the transparency as an image of mode L if there is any."""
    if not image.has_transparency_data:
        return image, None
    image = image.convert("LA") if image.mode == "La" else image
    colours = "L" if image.mode in ("L", "LA") else "RGB"
    image = image.convert("RGBA")
    return image.convert(colours), image.getchannel("A")


def _to_srgb(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """The image with its ICC profile applied, or as it was (with a warning) if the profile is of no use."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() == "RGB" and image.mode != "CMYK":
            image = image.convert("RGB")  # from greyscale or a palette
        return ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        warnings.warn(f"{name} has an ICC profile that cannot be used: its colours are taken as sRGB", stacklevel=5)
        return image


def _tensor_to_array(tensor) -> np.ndarray:
    import torch

    if not isinstance(tensor, torch.Tensor):
        kind = type(tensor).__name__
        raise ImageError(f"an image cannot be a {kind}: give a path, bytes, a PIL image, an array or a tensor")
    shape = tuple(tensor.shape)
    if len(shape) not in (3, 4) or shape[-3] not in _CHANNELS or shape[:-3] not in ((), (1,)):
        raise ImageError(f"a tensor of shape {shape} is no image: give (C,H,W) or (1,C,H,W), C being 1, 3 or 4")
    tensor = tensor.detach().reshape(shape[-3:]).permute(1, 2, 0).cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _from_array(array: np.ndarray) -> Image.Image:
    """The array as a Pillow image of 8 bits; refused by size before it is copied."""
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in _CHANNELS:
        raise ImageError(f"an array of shape {array.shape} is no image: give (H,W) or (H,W,C), C being 1, 3 or 4")
    _refuse_size(array.shape[1], array.shape[0], "the array")
    if array.shape[2:] == (1,):
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):
            found = f"{array.min():g} to {array.max():g}"
            mend = "divide 0 to 255 by 255, bring -1 to 1 to (x + 1) / 2, or clip what a network overshot"
            raise ImageError(f"a float image must lie in [0,1], not {found}: {mend}")
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(f"an image of {array.dtype} has no agreed range: give uint8, or floats in [0,1]")
    return Image.fromarray(array)
