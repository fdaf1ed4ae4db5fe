"""The README's tables and its figure, from the committed results.

    python -m eval.readme                           # write the figure, and each table between its marks in README.md
    python -m eval.readme build/results/kodak       # print that of other results
"""

import re
import sys
from pathlib import Path

from eval import command, tables
from eval.plot import CLASSICAL, beside_classical, headline_figure, save
from eval.result_files import RESULTS, CurveResult, read_curves
from hybridflow.cli import named_path
from hybridflow.errors import HybridFlowError

README = Path(__file__).parent.parent / "README.md"
FIGURE = README.parent / "docs" / "kodak_rate_distortion.svg"
BEGIN, END = "<!-- results/{}: python -m eval.readme -->", "<!-- end of results -->"
PLACE = re.compile(f"(?P<begin>{BEGIN.format('(?P<folder>[a-z0-9]+)')}).*?(?P<end>{END})", re.DOTALL)
COLUMNS = {
    "bpp": ("bpp", "{:.4f}"),
    "psnr-rgb": ("PSNR dB", "{:.2f}"),
    "ms-ssim-rgb": ("MS-SSIM", "{:.4f}"),
    "lpips-alex": ("LPIPS", "{:.3f}"),
    "lpips-vgg": ("LPIPS-VGG", "{:.3f}"),
    "dists": ("DISTS", "{:.3f}"),
}
MOST_BPP = 0.15
"""Classical points over that are left out."""


def headline(curves: list[CurveResult]) -> tuple[list[str], list[list[str]]]:
    """Column titles and rows: every point of ours, then those of classical codecs at comparable rates."""
    shown = [column for column in COLUMNS if any(column in curve.results for curve in curves)]
    rows = []
    for curve in beside_classical(curves):
        for i, point in enumerate(curve.results.get("point", [""] * len(curve.results["bpp"]))):
            if curve.key in CLASSICAL and curve.results["bpp"][i] > MOST_BPP:
                continue
            figures = [curve.results[column][i] if column in curve.results else None for column in shown]
            texts = ["" if f is None else COLUMNS[column][1].format(f) for column, f in zip(shown, figures)]
            rows.append([curve.name, point, *texts])
    return ["codec", "point", *(COLUMNS[column][0] for column in shown)], rows


def markdown_table(curves: list[CurveResult]) -> str:
    return tables.markdown(*headline(curves), words=2)


def with_tables(text: str, results: Path) -> str:
    """The README's text, each table between marks written anew from the folder of `results` that the marks name.

    Raises:
        HybridFlowError: no table has its place.
    """

    def place(marks: re.Match) -> str:
        table = markdown_table(read_curves(results / marks["folder"]))
        return f"{marks['begin']}\n\n{table}\n\n{marks['end']}"

    text, places = PLACE.subn(place, text)
    if not places:
        raise HybridFlowError(f"{README.name} has no place for a table: put {BEGIN.format('kodak')} and {END} on lines")
    return text


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("readme", __doc__)
    what = "print the table of this folder, and leave README.md"
    parser.add_argument("results", type=named_path, nargs="?", help=what)
    args = parser.parse_args(argv)

    if args.results:
        print(markdown_table(read_curves(args.results)))
    else:
        README.write_text(with_tables(README.read_text(), RESULTS))
        save(headline_figure(read_curves(RESULTS / "kodak")), FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
