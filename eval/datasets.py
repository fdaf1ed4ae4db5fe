"""The images of a folder, and whether they are a data set that results are committed of.

    python -m eval.datasets kodak FOLDER

says so, or names the files that are missing, are another's, or have other bytes.
"""

import hashlib
import sys
from pathlib import Path

from eval import command
from hybridflow.cli import named_path
from hybridflow.errors import HybridFlowError
from hybridflow.image_io import looks_like_image

DATA_SETS = {"kodak": "Kodak", "cid22val": "CID22 validation"}
"""Stem of the file of a data set's sums, and of its folder of committed results -> its name."""


def list_images(folder: Path) -> list[Path]:
    """Every file of `folder` whose name is an image's, by name."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder of images")
    images = sorted(filter(looks_like_image, folder.iterdir()))
    if not images:
        raise FileNotFoundError(f"no images in {folder}: name a folder of files that Pillow opens, such as .png")
    return images


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def known_sums(key: str) -> dict[str, str]:
    """File name -> SHA-256 of every image of one of `DATA_SETS`, from KEY_sha256.txt, as `sha256sum` writes it."""
    lines = Path(__file__).with_name(f"{key}_sha256.txt").read_text().splitlines()
    return {name: digest for digest, name in map(str.split, lines)}


def description_of(key: str) -> str:
    """What `describe` says of all images of one of `DATA_SETS`."""
    return f"{DATA_SETS[key]}, {len(known_sums(key))} images, SHA-256 checked"


def describe(images: list[Path]) -> str:
    """One line on images: they are called a data set only if all its files are there, each with the right SHA-256."""
    sums = {path.name: sha256(path) for path in images}
    folder = f"{images[0].parent.name}, {len(images)} image{'s' * (len(images) != 1)}"
    for key, name in DATA_SETS.items():
        known = known_sums(key)
        if sums == known:
            return description_of(key)
        changed = [image for image in sums if image in known and sums[image] != known[image]]
        if changed:
            return f"{folder}, not {name}'s bytes: {', '.join(changed)}"
    return folder


def check(key: str, folder: Path) -> None:
    """HybridFlowError, naming the files that are not as they should be, unless a folder is one of `DATA_SETS`."""
    sums, known = {path.name: sha256(path) for path in list_images(folder)}, known_sums(key)
    wrong = sorted(name for name in sums.keys() | known.keys() if sums.get(name) != known.get(name))
    if wrong:
        raise HybridFlowError(f"{folder} is not {DATA_SETS[key]}: missing, another's or changed: {', '.join(wrong)}")


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("datasets", __doc__)
    parser.add_argument("name", choices=DATA_SETS)
    parser.add_argument("folder", type=named_path)
    args = parser.parse_args(argv)

    check(args.name, args.folder)
    print(describe(list_images(args.folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
