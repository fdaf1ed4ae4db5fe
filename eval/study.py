"""What `eval.parts` and `eval.freezing` share: tables of figures that a checkpoint shows on a folder of images."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from eval import command, tables
from eval.curves import readable
from eval.datasets import describe, list_images
from eval.photo import Photo
from eval.run import digest
from hybridflow.ablation import Ablations
from hybridflow.cli import named_path
from hybridflow.codec import Codec
from hybridflow.errors import ImageError
from hybridflow.weights import ablation_file, checkpoint_file

Rows = list[dict[str, str | float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command.add_data(parser)
    command.add_checkpoint(parser)
    parser.add_argument(
        "--ablations",
        type=named_path,
        metavar="FILE",
        help="the file beside it (NAME-ablation.safetensors, as shipped)",
    )
    what = "file to write the tables to"
    parser.add_argument("-o", "--output", type=command.file_to_write, required=True, metavar="JSON", help=what)


def baselines_file(args: argparse.Namespace) -> Path:
    return args.ablations or ablation_file(checkpoint_file(args.checkpoint))


def open_photos(folder: Path, codec: Codec, ablations: Ablations | None = None) -> tuple[list[Photo], int]:
    """The folder's images that can be read, analysed, and how many there are with those that cannot.

    Raises:
        ImageError: none can be read.
    """
    listed = list_images(folder)
    images = readable(listed)
    if not images:
        raise ImageError(f"{folder}: no image can be read: give a folder of photos")
    photos = [Photo(codec, ablations, path) for path in tqdm(images, desc="analysis", unit="image", disable=None)]
    return photos, len(listed)


def markdown(rows: Rows) -> str:
    """Rows of equal columns -> a Markdown table."""
    return tables.markdown(*tables.cells_of(rows)) if rows else "(nothing to compare)"


def publish(output: Path, photos: Sequence[Photo], found: dict[str, Rows], **facts: str) -> None:
    """Print the tables, by name, and write them to a JSON file.

    Args:
        facts: what else the file says of them.
    """
    codec = photos[0].codec
    name = f"HybridFlow {codec.name}"
    weights = f"model id {codec.model_id}, weights {digest(codec.model)}"
    description = f"{describe([photo.path for photo in photos])}; {weights}"
    print(f"{name}, {description}")
    for title, rows in found.items():
        print(f"\n### {title.capitalize()}\n\n{markdown(rows)}")
    result = {"name": name, "description": description, **facts, "tables": found}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
