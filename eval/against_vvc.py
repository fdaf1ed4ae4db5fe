"""The README's picture: a photo, VVC at our bytes or the nearest rate above them, and ours.

    python -m eval.against_vvc tests/photos/kodim07.png --bpp 0.03 -o docs/kodim_side_by_side.png

VVC is vvenc as ffmpeg ships it: one 4:2:0 frame, preset `slow`, its perceptual optimisation on as is its default,
decoded by ffmpeg; its bytes are those of the raw `.266` stream. All figures are of the whole photo; the pictures show
a part of it, pixel for pixel.
"""

import functools
import sys
from bisect import bisect_left
from collections.abc import Callable

from PIL import Image

import hybridflow
from eval import command
from eval.ffmpeg import VVC_QPS, decode_vvc, encode_vvc
from hybridflow.cli import named_path, positive
from hybridflow.image_io import read_image, writable_format
from hybridflow.metrics import lpips, psnr
from hybridflow.side_by_side import side_by_side

SHOWN = (384, 512)
"""Width and height, in pixels, of the largest part that is shown: three of them fit a page."""


def smallest_from(encode: Callable[[int], bytes], size: int) -> bytes:
    """The stream of the highest qp that has at least `size` bytes, or that of the lowest qp if none has."""
    encode = functools.cache(encode)
    first_smaller = bisect_left(VVC_QPS, True, key=lambda qp: len(encode(qp)) < size)
    return encode(max(first_smaller - 1, 0))


def caption(name: str, original: Image.Image, decoded: Image.Image, size: int) -> str:
    """Name, bytes, bpp, LPIPS and PSNR in a line."""
    bpp = 8 * size / (original.width * original.height)
    figures = f"LPIPS {lpips(original, decoded):.3f}, {psnr(original, decoded):.2f} dB"
    return f"{name}: {size:,} bytes, {bpp:.4f} bpp, {figures}"


def part(image: Image.Image, left: int | None) -> Image.Image:
    """What is shown of an image: `SHOWN` at most, in the middle, or from this column on."""
    width, height = (min(side, most) for side, most in zip(image.size, SHOWN))
    left = (image.width - width) // 2 if left is None else max(0, min(left, image.width - width))
    top = (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("against_vvc", __doc__)
    parser.add_argument("image", type=named_path, help="any that hybridflow encode takes")
    parser.add_argument("--bpp", type=positive(float), default=0.03, help="ours is at or under that (%(default)s)")
    command.add_checkpoint(parser)
    parser.add_argument("--left", type=int, metavar="X", help="show the columns from this one on (the middle)")
    what = "picture to write: the original, VVC and ours side by side"
    parser.add_argument("-o", "--output", type=command.file_to_write, required=True, metavar="PNG", help=what)
    args = parser.parse_args(argv)
    writable_format(args.output.suffix)

    original = read_image(args.image)
    codec = hybridflow.load(args.checkpoint)
    data = codec.encode(original, bpp=args.bpp)
    stream = smallest_from(functools.partial(encode_vvc, original), len(data))
    ours, vvc = codec.decode(data), decode_vvc(stream, original.size)
    captions = [
        f"{args.image.stem}: original, {original.width}x{original.height}",
        caption("VVC", original, vvc, len(stream)),
        caption("HybridFlow", original, ours, len(data)),
    ]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    side_by_side([part(image, args.left) for image in (original, vvc, ours)], captions).save(args.output, optimize=True)
    print("\n".join(captions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
