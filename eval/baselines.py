"""Measure the classical codecs on a folder of images, as `eval.run` measures a checkpoint, down to their lowest rates.

    python -m eval.baselines --data photos/ -o results/ --workers 2
    python -m eval.baselines --data photos/ -o results/ --codecs vvc --qualities 49 52 55 58

writes `baselines.csv` and a JSON a codec; versions and settings are in its `description`. JPEG, WebP and AVIF are
Pillow's, JPEG XL that of pillow-jxl-plugin, HEVC and VVC the x265 and vvenc of imageio-ffmpeg's ffmpeg. Rows that the
CSV already holds are not measured again; an image that cannot be read is skipped, and the exit code is then 1.
"""

import functools
import io
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from PIL import Image, features

from eval import command, ffmpeg
from eval.cost import cost_of
from eval.curves import Coding, add_arguments, costs, run
from hybridflow.cli import named_path
from hybridflow.errors import HybridFlowError
from hybridflow.image_io import read_image


@dataclass(frozen=True)
class Codec:
    """A classical codec: how it encodes and decodes, with which settings, and where it is measured by default."""

    title: str
    settings: str
    version: Callable[[], str]
    qualities: tuple[int, ...]
    """From the lowest rate up to about 0.1 bits per pixel of Kodak; VVC goes on until a learned codec's LPIPS."""
    takes: range
    """Its qualities."""
    encode: Callable[[Image.Image, int], bytes]
    decode: Callable[[bytes, tuple[int, int]], Image.Image]
    in_process: bool = True
    """Whether its memory is this process's, and so can be measured."""


def pillow_codec(title: str, form: str, version: Callable[[], str], qualities: tuple[int, ...], **settings) -> Codec:
    """A codec of Pillow or of one of its plugins, whose lowest rate is that of its lowest quality."""

    def encode(image: Image.Image, quality: int) -> bytes:
        stream = io.BytesIO()
        image.save(stream, form, quality=quality, **settings)
        return stream.getvalue()

    def decode(data: bytes, _: tuple[int, int]) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")

    text = ", ".join(f"{name}={value}" for name, value in {"quality": "q", **settings}.items())
    return Codec(title, text, version, qualities, range(101), encode, decode)


def _pillow(feature: str) -> str:
    return f"Pillow {version('pillow')}, {feature} {features.version(feature)}"


def _jpeg_xl() -> str:
    import pillow_jxl  # noqa: F401 - Pillow knows the format from here on

    return f"pillow-jxl-plugin {version('pillow-jxl-plugin')}"


def _ffmpeg(library: str) -> str:
    return f"{library} {ffmpeg.versions()[library]}, ffmpeg {ffmpeg.versions()['ffmpeg']}"


CODECS = {
    "jpeg": pillow_codec(
        "JPEG", "JPEG", lambda: _pillow("libjpeg_turbo"), (1,), progressive=True, optimize=True
    ),
    "webp": pillow_codec("WebP", "WEBP", lambda: _pillow("webp"), (0,), method=6),
    "avif": pillow_codec("AVIF", "AVIF", lambda: _pillow("avif"), (1, 10), speed=2),
    "jxl": pillow_codec("JPEG XL", "JXL", _jpeg_xl, (0, 1), effort=8),
    "hevc": Codec(
        "HEVC (x265)",
        f"{' '.join(ffmpeg.HEVC_SETTINGS)} -x265-params {ffmpeg.HEVC_PARAMETERS}:qp=q",
        lambda: _ffmpeg("libx265"),
        (51, 48, 45),
        ffmpeg.HEVC_QPS,
        ffmpeg.encode_hevc,
        ffmpeg.decode_hevc,
        in_process=False,
    ),
    "vvc": Codec(
        "VVC (vvenc)",
        f"{' '.join(ffmpeg.VVC_SETTINGS)} -qp q",
        lambda: _ffmpeg("libvvenc"),
        (63, 58, 55, 52, 49, 46, 43),
        ffmpeg.VVC_QPS,
        ffmpeg.encode_vvc,
        ffmpeg.decode_vvc,
        in_process=False,
    ),
}


@dataclass(frozen=True)
class Baseline:
    """A classical codec at several qualities: `eval.curves.Curve`."""

    name: str
    qualities: tuple[int, ...]

    @property
    def codec(self) -> Codec:
        return CODECS[self.name]

    @property
    def title(self) -> str:
        return self.codec.title

    @property
    def points(self) -> tuple[str, ...]:
        return tuple(map(str, self.qualities))

    @property
    def description(self) -> str:
        return self.made_by

    @functools.cached_property
    def made_by(self) -> str:
        return f"{self.codec.version()}; {self.codec.settings}"

    def code(self, image: Path, point: str) -> Coding:
        self.codec.version()  # where the codec is a plugin, this makes it known
        original = read_image(image)
        data, encoding = cost_of(lambda: self.codec.encode(original, int(point)))
        decoded, decoding = cost_of(lambda: self.codec.decode(data, original.size))
        if not self.codec.in_process:
            encoding, decoding = encoding._replace(mib=None), decoding._replace(mib=None)
        return Coding(len(data), decoded, costs(encoding, decoding))


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("baselines", __doc__)
    add_arguments(parser)
    what = "folder to write: a CSV, a row an image and point, and a JSON a curve"
    parser.add_argument("-o", "--output", type=named_path, required=True, metavar="DIR", help=what)
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS), help="(all)")
    parser.add_argument("--qualities", type=int, nargs="+", metavar="Q", help="of every codec (to its lowest rate)")
    args = parser.parse_args(argv)

    for name, quality in itertools.product(args.codecs, args.qualities or ()):
        if quality not in (takes := CODECS[name].takes):
            mend = "choose others, or codecs that take it by --codecs"
            raise HybridFlowError(f"{name} takes qualities of {takes[0]} to {takes[-1]}, not {quality}: {mend}")
    curves = [Baseline(name, tuple(args.qualities or CODECS[name].qualities)) for name in args.codecs]
    return run(curves, args.data, args.output, "baselines.csv", args.workers)


if __name__ == "__main__":
    sys.exit(main())
