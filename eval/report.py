"""One HTML page on a folder of results: table, figures, ablations, and every image to look at, ours against VVC.

    python -m eval.report --results eval/results/kodak --data KODAK --checkpoint tiny -o report.html --workers 2

The page needs nothing beside it: it works offline, from file://. Each image is coded anew at `--bpp`, and by VVC, the
best classical codec at such rates, at the smallest of its rates that is not below ours; where its lowest rate is higher
than that, the page says so. The pictures are WebP of quality 92, to keep the page small.
"""

import argparse
import base64
import io
import sys
from functools import cache, partial
from pathlib import Path

import matplotlib.pyplot as plt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from eval.against_vvc import QPS, smallest_from
from eval.bd import delta, line
from eval.curves import add_arguments, readable, worker_pool
from eval.datasets import list_images
from eval.ffmpeg import decode_vvc, encode_vvc
from eval.plot import figures_of, is_ablation, ours
from eval.readme import headline
from eval.result_files import METRICS, CurveResult, read_curves
from eval.run import load_codec
from hybridflow.errors import HybridFlowError
from hybridflow.image_io import read_image
from hybridflow.metrics import lpips, psnr

TEMPLATE = "report.html.j2"
FIGURE_TITLES = {
    "rate_distortion": "Quality against rate",
    "ablations": "What each part is worth",
    "speed": "Speed against quality",
}


def look_at(image: Path, checkpoint: str, bpp: float) -> dict:
    """One image coded by ours at or under a rate and by VVC: what the page shows of it."""
    original, codec = read_image(image), load_codec(checkpoint, "cpu")
    ours = codec.encode(original, bpp=bpp)
    encode = cache(partial(encode_vvc, original))
    vvc = smallest_from(encode, len(ours))
    versions = {
        "HybridFlow": (ours, codec.decode(ours)),
        "VVC": (vvc, decode_vvc(vvc, original.size)),
    }
    return {
        "name": image.stem,
        "width": original.width,
        "height": original.height,
        "original": data_uri(original),
        "vvc_is_at_its_lowest": len(vvc) > len(ours) and vvc == encode(QPS[-1]),
        "versions": [
            {
                "name": name,
                "bytes": len(data),
                "bpp": 8 * len(data) / (original.width * original.height),
                "psnr": psnr(original, decoded),
                "lpips": lpips(original, decoded),
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
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def deltas(curves: list[CurveResult]) -> list[str]:
    """Bjontegaard deltas of ours and its ablations against VVC, a line each."""
    anchor = next((curve for curve in curves if curve.key == "vvc"), None)
    if anchor is None:
        return []
    lines = []
    for curve in [*ours(curves), *filter(is_ablation, curves)]:
        for metric in METRICS:
            if metric in curve.results and metric in anchor.results:
                try:
                    lines.append(line(curve.name, metric, delta(anchor, curve, metric)))
                except ValueError as error:
                    lines.append(str(error))
    return lines


def render(curves: list[CurveResult], photos: list[dict], bpp: float) -> str:
    """The whole page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    titles, rows = headline(curves)
    figures = {FIGURE_TITLES[name]: svg(figure) for name, figure in figures_of(curves).items()}
    return environment.get_template(TEMPLATE).render(
        titles=titles, rows=rows, figures=figures, curves=curves, deltas=deltas(curves), photos=photos, bpp=bpp
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, output="HTML")
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="of eval.run and eval.baselines")
    parser.add_argument("--checkpoint", default="tiny", help="a preset's name or a .safetensors file (%(default)s)")
    parser.add_argument("--bpp", type=float, default=0.03, help="of the pictures, at most (%(default)s)")
    args = parser.parse_args(argv)

    try:
        curves, listed = read_curves(args.results), list_images(args.data)
        images = readable(listed)
        with worker_pool(args.workers) as run:
            found = run(look_at, [(image, args.checkpoint, args.bpp) for image in images])
            photos = list(tqdm(found, total=len(images), unit="image", disable=None))
        photos.sort(key=lambda photo: photo["name"])
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(render(curves, photos, args.bpp), encoding="utf-8")
    except (HybridFlowError, OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if len(images) < len(listed):
        print(f"skipped {len(listed) - len(images)} of {len(listed)} images: they could not be read", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
