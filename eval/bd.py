"""Bjontegaard deltas between curves: the rate saved at equal quality, and the quality gained at equal rate.

    python -m eval.bd results/vvc.json results/tiny.json results/tiny-codebook-only.json
    python -m eval.bd OneDC results/tiny.json

The first curve is the anchor of the others; a name is that of a codec that its authors published points of
(`anchors/kodak_published.csv`). Both are interpolated (Akima, package `bjontegaard`) over their common
range only, and the overlap says how much of the two together that is: a delta over a small overlap says little.
Negative rates are savings; a metric's delta is in its own unit, so less LPIPS is better and more PSNR.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import bjontegaard

from eval import command
from eval.result_files import METRICS, CurveResult, published_curves, read_curve, refuse_other_data
from eval.tables import aligned
from hybridflow.errors import HybridFlowError

TITLES = ["curve", "metric", "BD-rate", "overlap", "BD-metric", "overlap"]


class Delta(NamedTuple):
    """A curve against its anchor; None where they share no range."""

    rate: float | None
    """Per cent."""
    rate_overlap: float
    """The common range of the metric, 0 to 1 of the range of both."""
    metric: float | None
    metric_overlap: float
    """The common range of log bpp, likewise."""


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Length of the common range of two sets of numbers, over the length of the range of both."""
    common = min(max(a), max(b)) - max(min(a), min(b))
    return max(0.0, common / ((max(max(a), max(b)) - min(min(a), min(b))) or math.inf))


def increasing(curve: CurveResult, metric: str) -> tuple[list[float], list[float]]:
    """Rates, and the metric with its sign such that more is better: only points better than all of a lower rate."""
    sign = 1 if METRICS[metric][1] else -1
    rates, figures = [], []
    for rate, figure in zip(*curve.points(metric)):
        if not figures or (sign * figure > figures[-1] and rate > rates[-1]):
            rates.append(rate)
            figures.append(sign * figure)
    return rates, figures


def delta(anchor: CurveResult, test: CurveResult, metric: str) -> Delta:
    """Bjontegaard deltas of `test` against `anchor`.

    Raises:
        HybridFlowError: a curve has fewer than two points that rise.
    """
    sign = 1 if METRICS[metric][1] else -1
    curves = increasing(anchor, metric), increasing(test, metric)
    for curve, (rates, _) in zip((anchor, test), curves):
        if len(rates) < 2:
            raise HybridFlowError(f"{curve.name} has no two points that rise in {metric}: measure it at more points")
    (anchor_rates, anchor_figures), (test_rates, test_figures) = curves
    rate_overlap = overlap(anchor_figures, test_figures)
    metric_overlap = overlap(*([math.log(rate) for rate in rates] for rates, _ in curves))
    arguments = (anchor_rates, anchor_figures, test_rates, test_figures)
    options = {"method": "akima", "require_matching_points": False, "min_overlap": 0}
    rate = bjontegaard.bd_rate(*arguments, **options) if rate_overlap else None
    gain = sign * bjontegaard.bd_psnr(*arguments, **options) if metric_overlap else None
    return Delta(rate, rate_overlap, gain, metric_overlap)


def delta_rows(anchor: CurveResult, tests: Sequence[CurveResult], metrics: Sequence[str] = ()) -> list[list[str]]:
    """A row under `TITLES` for every curve and metric, all that it shares with the anchor unless some are named.

    Raises:
        HybridFlowError: a metric that is named is not in both.
    """
    rows = []
    for test in tests:
        shared = [metric for metric in METRICS if anchor.points(metric)[0] and test.points(metric)[0]]
        for metric in metrics or shared:
            if metric not in shared:
                raise HybridFlowError(f"{metric} is not in both {anchor.name} and {test.name}: choose of {shared}")
            rows.append([test.name, metric, *_texts(anchor, test, metric)])
    return rows


def _texts(anchor: CurveResult, test: CurveResult, metric: str) -> list[str]:
    if min(len(increasing(curve, metric)[0]) for curve in (anchor, test)) < 2:
        return ["too few points", "", "too few points", ""]
    found = delta(anchor, test, metric)
    return [
        "no common range" if found.rate is None else f"{found.rate:+.1f} %",
        f"{found.rate_overlap:.0%}",
        "no common range" if found.metric is None else f"{found.metric:+.4f}",
        f"{found.metric_overlap:.0%}",
    ]


def find_curve(text: str) -> CurveResult:
    """A curve's JSON, or the published codec of this name; HybridFlowError if it is neither."""
    published = {curve.name: curve for curve in published_curves()}
    if text in published:
        return published[text]
    if not Path(text).exists():
        raise HybridFlowError(f"{text} is neither a curve's JSON nor one of {', '.join(published)}")
    return read_curve(Path(text))


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("bd", __doc__)
    parser.add_argument("anchor", help="a curve's JSON, or the name of a published codec")
    parser.add_argument("tests", nargs="+", metavar="test", help="curves against it, likewise")
    parser.add_argument(
        "--metrics", nargs="+", choices=METRICS, default=[], metavar="M", help=f"{', '.join(METRICS)} (all shared)"
    )
    args = parser.parse_args(argv)

    anchor, *tests = curves = [find_curve(text) for text in (args.anchor, *args.tests)]
    published = published_curves()
    measured = [curve for curve in curves if curve not in published]
    refuse_other_data(measured)
    for curve in measured:
        if len(measured) < len(curves) and not curve.on_kodak:
            mend = "compare published codecs with curves of all of Kodak"
            raise HybridFlowError(f"{curve.key} is of {curve.data}: {mend}")
    rows = delta_rows(anchor, tests, args.metrics)
    print(f"Against {anchor.name}:\n\n{aligned(TITLES, rows, words=2)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
