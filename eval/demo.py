"""Three photos to bytes and back: `make demo`, or

    python -m eval.demo

Each photo is encoded at about 0.03 and 0.05 bits per pixel into a file in `demo/`, decoded from that file, and
compared with the original; `demo/side_by_side.png` shows them beside each other.
"""

import sys
import time
from pathlib import Path

from PIL import Image

import hybridflow
from eval import command
from hybridflow.cli import named_path
from hybridflow.image_io import read_image
from hybridflow.metrics import lpips, psnr
from hybridflow.side_by_side import side_by_side, stack

PHOTOS = Path(__file__).parent.parent / "tests" / "photos"
TARGETS = (0.03, 0.05)
"""Bits per pixel asked for; a file takes at most that."""


def show_photo(codec, photo: Path, output: Path) -> Image.Image:
    """Encode and decode one photo at every target, print a line for each, and return all versions side by side."""
    original = read_image(photo)
    images, captions = [original], [f"{photo.stem}: original, {photo.stat().st_size:,} bytes as PNG"]
    for target in TARGETS:
        path = output / f"{photo.stem}_{target:.2f}bpp.hf"
        start = time.perf_counter()
        path.write_bytes(codec.encode(original, bpp=target))
        encoded = time.perf_counter()
        decoded = codec.decode(path.read_bytes())
        end = time.perf_counter()

        size = path.stat().st_size
        bpp = 8 * size / (original.width * original.height)
        fidelity, perception = psnr(original, decoded), lpips(original, decoded)
        images.append(decoded)
        captions.append(f"{size:,} bytes, {bpp:.4f} bpp: {fidelity:.2f} dB, LPIPS {perception:.3f}")
        print(
            f"{photo.stem:<10}{size:>7,}{bpp:>9.4f}{fidelity:>9.2f}{perception:>8.3f}"
            f"{encoded - start:>10.2f}{end - encoded:>10.2f}",
            flush=True,
        )
    return side_by_side(images, captions)


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("demo", __doc__)
    command.add_checkpoint(parser)
    parser.add_argument("-o", "--output", type=named_path, default=Path("demo"), metavar="DIR", help="(%(default)s)")
    args = parser.parse_args(argv)

    args.output.mkdir(parents=True, exist_ok=True)
    codec = hybridflow.load(args.checkpoint)
    print(f"{'photo':<10}{'bytes':>7}{'bpp':>9}{'PSNR dB':>9}{'LPIPS':>8}{'encode s':>10}{'decode s':>10}")
    sheets = [show_photo(codec, photo, args.output) for photo in sorted(PHOTOS.glob("*.png"))]
    picture = args.output / "side_by_side.png"
    stack(sheets).save(picture)
    print(f"\nThe files are in {args.output}/; the pictures beside each other: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
