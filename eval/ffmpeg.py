"""HEVC and VVC of single images: x265 and vvenc as the ffmpeg of the package `imageio-ffmpeg` ships them.

Bytes are those of the raw stream. Images with odd sides are padded to even ones by repeating their last row or column,
and cropped again.
"""

import functools
import re
import subprocess

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from hybridflow.errors import HybridFlowError

VVC_SETTINGS = ("-pix_fmt", "yuv420p10le", "-c:v", "libvvenc", "-preset", "slow")
"""Its perceptual optimisation is on, as is its default."""
VVC_QPS = range(64)

HEVC_SETTINGS = ("-pix_fmt", "yuv420p", "-c:v", "libx265", "-preset", "slow")
HEVC_PARAMETERS = "log-level=none:info=0"
"""Without `info=0`, x265 writes its settings into every stream, which are 2 kB."""
HEVC_QPS = range(52)


def encode_vvc(image: Image.Image, qp: int) -> bytes:
    """RGB image -> a `.266` stream, smaller the higher qp (of `VVC_QPS`)."""
    return _encode(image, *VVC_SETTINGS, "-qp", str(qp), "-f", "vvc")


def encode_hevc(image: Image.Image, qp: int) -> bytes:
    """RGB image -> a `.265` stream, smaller the higher qp (of `HEVC_QPS`)."""
    return _encode(image, *HEVC_SETTINGS, "-x265-params", f"{HEVC_PARAMETERS}:qp={qp}", "-f", "hevc")


def decode_vvc(stream: bytes, size: tuple[int, int]) -> Image.Image:
    """Undo `encode_vvc` for an image of this width and height."""
    return _decode(stream, size, "vvc")


def decode_hevc(stream: bytes, size: tuple[int, int]) -> Image.Image:
    """Undo `encode_hevc` for an image of this width and height."""
    return _decode(stream, size, "hevc")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of ffmpeg, libvvenc and libx265, as they say themselves."""
    # x265 says its own in the stream that it makes, vvenc in ffmpeg's log.
    image = Image.new("RGB", (64, 64))
    x265 = _encode(image, "-c:v", "libx265", "-x265-params", "log-level=none", "-f", "hevc")
    vvenc = _run("info", _frame(image) + ["-c:v", "libvvenc", "-f", "null", "-"], image.tobytes()).stderr
    ffmpeg = subprocess.run([get_ffmpeg_exe(), "-version"], capture_output=True).stdout
    return {
        "ffmpeg": _version(rb"ffmpeg version (\S+)", ffmpeg),
        "libx265": _version(rb"x265 \(build \d+\) - ([\w.+-]+)", x265),
        "libvvenc": _version(rb"libvvenc version: (\S+)", vvenc),
    }


def _version(pattern: bytes, text: bytes) -> str:
    found = re.search(pattern, text)
    return found[1].decode() if found else "of unknown version"


def _encode(image: Image.Image, *coding: str) -> bytes:
    pixels = np.asarray(image)
    even = Image.fromarray(np.pad(pixels, ((0, image.height % 2), (0, image.width % 2), (0, 0)), mode="edge"))
    return _run("error", [*_frame(even), *coding, "-"], even.tobytes()).stdout


def _decode(stream: bytes, size: tuple[int, int], form: str) -> Image.Image:
    even = tuple(side + side % 2 for side in size)
    output = ["-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    pixels = _run("error", ["-f", form, "-i", "-", *output], stream).stdout
    return Image.frombytes("RGB", even, pixels).crop((0, 0, *size))


def _frame(image: Image.Image) -> list[str]:
    return ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{image.width}x{image.height}", "-i", "-"]


def _run(loglevel: str, arguments: list[str], data: bytes) -> subprocess.CompletedProcess:
    """Run ffmpeg on standard input; raises HybridFlowError with its words if it fails."""
    run = subprocess.run([get_ffmpeg_exe(), "-v", loglevel, *arguments], input=data, capture_output=True)
    if run.returncode:
        raise HybridFlowError(f"ffmpeg failed: {run.stderr.decode(errors='replace').strip()}")
    return run
