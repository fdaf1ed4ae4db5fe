"""One HTML page on a folder of results: table, figures, ablations, and every image to look at, ours against VVC.

    python -m eval.report --results eval/results/kodak --data KODAK --checkpoint tiny -o report.html --workers 2
    python -m eval.report --results eval/results/kodak --parts eval/results/parts/tiny.json --data KODAK -o report.html

The page needs nothing beside it: it works offline, from file://. Each image is coded anew at `--bpp`, and by VVC, the
best classical codec at such rates, at the smallest of its rates that is not below ours; where the lowest rate of either
is higher than that, the page says so. The pictures are WebP of quality 92, to keep the page small.
"""

import base64
import io
import json
import sys
from functools import cache, partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from eval import bd, claims, command
from eval.against_vvc import smallest_from
from eval.curves import add_arguments, readable, worker_pool
from eval.datasets import list_images
from eval.distortion import distortions
from eval.ffmpeg import VVC_QPS, decode_vvc, encode_vvc
from eval.plot import figures_of, is_ablation, ours, save
from eval.readme import COLUMNS, headline
from eval.result_files import METRICS, CurveResult, read_curves
from eval.run import load_codec
from eval.tables import Cells, cells_of
from hybridflow.cli import named_path, positive
from hybridflow.errors import HybridFlowError
from hybridflow.image_io import read_image
from hybridflow.saving import write_atomic

TEMPLATE = "report.html.j2"
FIGURE_TITLES = {
    "rate_distortion": "Quality against rate",
    "ablations": "What each part is worth",
    "speed": "Speed against quality",
}


def look_at(image: Path, checkpoint: str, bpp: float) -> dict:
    """One image coded by ours at or under a rate and by VVC: what the page shows of it."""
    original, codec = read_image(image), load_codec(checkpoint, "cpu")
    at_its_lowest = False
    try:
        ours = codec.encode(original, bpp=bpp)
    except HybridFlowError:
        at_its_lowest = True
        quality, schedule = codec.operating_points[0]
        ours = codec.encode(original, quality=quality, schedule=schedule)
    encode = cache(partial(encode_vvc, original))
    vvc = smallest_from(encode, len(ours))
    versions = {
        "HybridFlow": (ours, codec.decode(ours)),
        "VVC": (vvc, decode_vvc(vvc, original.size)),
    }
    return {
        "name": image.name,
        "width": original.width,
        "height": original.height,
        "original": data_uri(original),
        "ours_is_at_its_lowest": at_its_lowest,
        "vvc_is_at_its_lowest": len(vvc) > len(ours) and vvc == encode(VVC_QPS[-1]),
        "versions": [
            {
                "name": name,
                "bytes": len(data),
                "bpp": 8 * len(data) / (original.width * original.height),
                "figures": {k: v for k, v in distortions(original, decoded).items() if k in METRICS},
                "picture": data_uri(decoded),
            }
            for name, (data, decoded) in versions.items()
        ],
    }


def data_uri(image: Image.Image) -> str:
    """An image as the page holds it."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=92)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def svg(figure: Figure) -> str:
    """A figure as an element of the page."""
    buffer = io.StringIO()
    save(figure, buffer)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def deltas(curves: list[CurveResult]) -> Cells:
    """Bjontegaard deltas of ours and its ablations against VVC: rows under `bd.TITLES`, none without VVC."""
    anchor = next((curve for curve in curves if curve.key == "vvc"), None)
    return bd.delta_rows(anchor, [*ours(curves), *filter(is_ablation, curves)]) if anchor else []


def read_parts(path: Path) -> dict:
    """What `eval.parts` wrote; HybridFlowError if it did not."""
    try:
        content = json.loads(path.read_text())
        if {"name", "description", "point", "tables"} <= content.keys():
            for rows in filter(None, content["tables"].values()):
                cells_of(rows)
            return content
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise HybridFlowError(f"{path} is not of eval.parts: it must hold name, description, point and tables")


def sort_orders(photos: list[dict]) -> dict[str, list[str]]:
    """Title -> the images' names in that order: by name, by our bpp, and by every metric that all of them have."""
    of_ours, of_vvc = ([photo["versions"][i] for photo in photos] for i in (0, 1))
    columns = {"bits per pixel": [version["bpp"] for version in of_ours]}
    for metric, (_, more_is_better) in METRICS.items():
        if all(metric in version["figures"] for version in of_ours):
            label, sign = COLUMNS[metric][0], -1 if more_is_better else 1
            figures = [sign * version["figures"][metric] for version in of_ours]
            columns[f"{label}, best first"] = figures
            columns[f"{label}, worst first"] = [-figure for figure in figures]
            columns[f"{label} against VVC, best first"] = [
                figure - sign * version["figures"][metric] for figure, version in zip(figures, of_vvc)
            ]
    names = [photo["name"] for photo in photos]
    orders = {title: [name for _, name in sorted(zip(keys, names))] for title, keys in columns.items()}
    return {"name": sorted(names)} | orders


def render(curves: list[CurveResult], photos: list[dict], bpp: float, parts: dict | None = None) -> str:
    """The whole page.

    Args:
        curves: of `read_curves`.
        photos: of `look_at`.
        bpp: what the photos were coded at or under.
        parts: what `eval.parts` wrote.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tables = {name: cells_of(rows) for name, rows in parts["tables"].items() if rows} if parts else {}
    figures = {FIGURE_TITLES[name]: svg(figure) for name, figure in figures_of(curves).items()}
    return environment.get_template(TEMPLATE).render(
        headline=headline(curves),
        figures=figures,
        ablated=any(map(is_ablation, curves)),
        deltas=(bd.TITLES, deltas(curves)),
        claims=(claims.TITLES, claims.claim_rows(curves)),
        parts=parts,
        parts_tables=tables,
        columns=COLUMNS,
        photos=photos,
        orders=sort_orders(photos),
        bpp=bpp,
        curves=curves,
    )


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("report", __doc__)
    add_arguments(parser)
    what = "page to write, pictures and all"
    parser.add_argument("-o", "--output", type=command.file_to_write, required=True, metavar="HTML", help=what)
    what = "of eval.run and eval.baselines"
    parser.add_argument("--results", type=named_path, required=True, metavar="DIR", help=what)
    parser.add_argument("--parts", type=named_path, metavar="JSON", help="of eval.parts: what each part is worth")
    command.add_checkpoint(parser)
    parser.add_argument("--bpp", type=positive(float), default=0.03, help="of the pictures, at most (%(default)s)")
    args = parser.parse_args(argv)

    curves, listed = read_curves(args.results), list_images(args.data)
    parts = read_parts(args.parts) if args.parts else None
    render(curves, [], args.bpp, parts)  # an error now, and not when every image is coded
    images = readable(listed)
    with worker_pool(args.workers) as run:
        found = run(look_at, [(image, args.checkpoint, args.bpp) for image in images])
        photos = list(tqdm(found, total=len(images), unit="image", disable=None))
    photos.sort(key=lambda photo: photo["name"])
    page = render(curves, photos, args.bpp, parts).encode("utf-8", "backslashreplace")  # a name may be no text
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.output, page, force=True)
    return command.exit_code(len(listed), len(images))


if __name__ == "__main__":
    sys.exit(main())
