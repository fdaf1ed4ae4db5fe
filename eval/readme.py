"""The README's table, from the committed results on Kodak.

    python -m eval.readme

writes it between the two marks in README.md.
"""

import sys
from pathlib import Path

from eval import command, tables
from eval.plot import CLASSICAL, ours
from eval.result_files import KODAK_RESULTS, CurveResult, read_curves
from hybridflow.errors import HybridFlowError

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- results: python -m eval.readme -->", "<!-- end of results -->"
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
    for curve in [*ours(curves), *(curve for key in CLASSICAL for curve in curves if curve.key == key)]:
        for i, point in enumerate(curve.results["point"]):
            if curve.key in CLASSICAL and curve.results["bpp"][i] > MOST_BPP:
                continue
            figures = [curve.results[column][i] if column in curve.results else None for column in shown]
            texts = ["" if f is None else COLUMNS[column][1].format(f) for column, f in zip(shown, figures)]
            rows.append([curve.name, point, *texts])
    return ["codec", "point", *(COLUMNS[column][0] for column in shown)], rows


def markdown_table(curves: list[CurveResult]) -> str:
    return tables.markdown(*headline(curves), words=2)


def with_table(text: str, table: str) -> str:
    """The README's text with this table between its marks; HybridFlowError if they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise HybridFlowError(f"{README.name} has no place for the table: put {BEGIN} and {END} on lines of their own")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


@command.one_line_errors
def main() -> int:
    README.write_text(with_table(README.read_text(), markdown_table(read_curves(KODAK_RESULTS))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
