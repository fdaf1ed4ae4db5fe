"""Bjontegaard deltas between curves: the rate saved at equal quality, and the quality gained at equal rate.

    python -m eval.bd results/vvc.json results/tiny.json results/tiny-codebook-only.json

The first curve is the anchor of the others. Both are interpolated (Akima, package `bjontegaard`) over their common
range only, and the overlap says how much of the two together that is: a delta over a small overlap says little.
Negative rates are savings; a metric's delta is in its own unit, so less LPIPS is better and more PSNR.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import bjontegaard

from eval.result_files import METRICS, CurveResult, read_curve


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
    for rate, figure in zip(curve.results["bpp"], curve.results[metric]):
        if not figures or (sign * figure > figures[-1] and rate > rates[-1]):
            rates.append(rate)
            figures.append(sign * figure)
    return rates, figures


def delta(anchor: CurveResult, test: CurveResult, metric: str) -> Delta:
    """Bjontegaard deltas of `test` against `anchor`.

    Raises:
        ValueError: a curve has fewer than two points that rise.
    """
    sign = 1 if METRICS[metric][1] else -1
    curves = increasing(anchor, metric), increasing(test, metric)
    for curve, (rates, _) in zip((anchor, test), curves):
        if len(rates) < 2:
            raise ValueError(f"{curve.name} has no two points that rise in {metric}: measure it at more points")
    (anchor_rates, anchor_figures), (test_rates, test_figures) = curves
    rate_overlap = overlap(anchor_figures, test_figures)
    metric_overlap = overlap(*([math.log(rate) for rate in rates] for rates, _ in curves))
    arguments = (anchor_rates, anchor_figures, test_rates, test_figures)
    options = {"method": "akima", "require_matching_points": False, "min_overlap": 0}
    rate = bjontegaard.bd_rate(*arguments, **options) if rate_overlap else None
    gain = sign * bjontegaard.bd_psnr(*arguments, **options) if metric_overlap else None
    return Delta(rate, rate_overlap, gain, metric_overlap)


def line(name: str, metric: str, found: Delta) -> str:
    """One line on a delta, its overlaps included."""
    rate = "no common range" if found.rate is None else f"{found.rate:+.1f} % (overlap {found.rate_overlap:.0%})"
    gain = "no common range" if found.metric is None else f"{found.metric:+.4f} (overlap {found.metric_overlap:.0%})"
    return f"{name:<40}{metric:<14}BD-rate {rate:<28}BD-metric {gain}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.bd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("anchor", type=Path, help="a curve's JSON")
    parser.add_argument("tests", type=Path, nargs="+", metavar="test", help="curves against it")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, metavar="M", help=f"{', '.join(METRICS)} (all shared)")
    args = parser.parse_args(argv)

    try:
        anchor, tests = read_curve(args.anchor), [read_curve(path) for path in args.tests]
        print(f"against {anchor.name}:")
        for test in tests:
            shared = [metric for metric in METRICS if metric in anchor.results and metric in test.results]
            for metric in args.metrics or shared:
                if metric not in shared:
                    raise ValueError(f"{metric} is not in both {anchor.name} and {test.name}: choose of {shared}")
                print(line(test.name, metric, delta(anchor, test, metric)))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
