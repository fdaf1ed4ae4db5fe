"""The images of a folder, and whether they are the Kodak suite."""

import hashlib
from pathlib import Path

SUFFIXES = {".avif", ".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
KODAK_SUMS = Path(__file__).with_name("kodak_sha256.txt")
"""SHA-256 and name of each of Kodak's 24 PNGs, as `sha256sum` writes them."""


def list_images(folder: Path) -> list[Path]:
    """Every file of `folder` that has an image's suffix, by name."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder of images")
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not images:
        raise FileNotFoundError(f"no images in {folder}: looked for {', '.join(sorted(SUFFIXES))}")
    return images


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kodak_sums() -> dict[str, str]:
    """File name -> SHA-256 of the 24 Kodak images."""
    return {name: digest for digest, name in map(str.split, KODAK_SUMS.read_text().splitlines())}


def describe(images: list[Path]) -> str:
    """One line on a data set: Kodak only if all 24 files are there and each one's SHA-256 is right."""
    sums, kodak = {path.name: sha256(path) for path in images}, kodak_sums()
    if sums == kodak:
        return "Kodak, 24 images, SHA-256 checked"
    folder = f"{images[0].parent.name}, {len(images)} image{'s' * (len(images) != 1)}"
    changed = [name for name in sums if name in kodak and sums[name] != kodak[name]]
    return f"{folder}, not Kodak's bytes: {', '.join(changed)}" if changed else folder
