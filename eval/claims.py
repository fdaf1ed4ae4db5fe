"""Does the hybrid earn its place? The claims it was built on, at equal bits per pixel, from the curves of `eval.run`.

    python -m eval.claims eval/results/kodak

prints a Markdown table: a checkpoint against each baseline that was measured beside it, at the ends and the middle of
the rates that both have, interpolated in log bpp.

1. Against the codebook stream alone: PSNR 3.5 dB higher at the same LPIPS or a better one (HybridFlow, Lu et al., ACM
   MM 2024).
2. Against the continuous stream alone, trained for rate + MSE: LPIPS 55.7 % lower (ibid.).
3. Against the continuous stream alone, trained for what the hybrid is: LPIPS 10 % lower, PSNR at most 0.1 dB lower.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from eval import command, tables
from eval.equal_rates import at_rate, common_rates
from eval.plot import ours
from eval.result_files import CurveResult, read_curves
from hybridflow.cli import named_path
from hybridflow.errors import HybridFlowError

TITLES = ["claim", "against", "bpp", "PSNR dB", "theirs", "gain", "LPIPS", "theirs", "change", "holds"]
RATES = 3
"""At which two curves are compared."""


class Claim(NamedTuple):
    """What is claimed against a baseline, whose curve has the checkpoint's key and this ending."""

    number: int
    ending: str
    holds: Callable[[float, float], bool]
    """Of the gain in PSNR, in dB, and the relative change of LPIPS."""


CLAIMS = (
    Claim(1, "-codebook-only", lambda psnr_gain, lpips_change: psnr_gain >= 3.5 and lpips_change <= 0),
    Claim(2, "-continuous-mse", lambda psnr_gain, lpips_change: lpips_change <= -0.557),
    Claim(3, "-continuous-only", lambda psnr_gain, lpips_change: lpips_change <= -0.1 and psnr_gain >= -0.1),
)


def claim_rows(curves: Sequence[CurveResult]) -> list[list[str]]:
    """A row under `TITLES` for every checkpoint, claim and rate; none without baselines.

    Raises:
        HybridFlowError: a curve lacks a metric, a baseline was measured beside other weights of its checkpoint, or both
            have no rates in common.
    """
    by_key = {curve.key: curve for curve in curves}
    rows = []
    for whole in ours(curves):
        for claim in CLAIMS:
            baseline = by_key.get(whole.key + claim.ending)
            if baseline is None:
                continue
            for curve, metric in itertools.product((whole, baseline), ("psnr-rgb", "lpips-alex")):
                if not curve.points(metric)[0]:
                    raise HybridFlowError(f"{curve.key} has no {metric}: measure it on images that all have it")
            if whole.made_by and baseline.made_by and not baseline.made_by.startswith(whole.made_by):
                other = f"{baseline.key} was measured beside other weights of {whole.key}"
                raise HybridFlowError(f"{other}: measure it anew by eval.run, or take its JSON away")
            rates = common_rates(whole.results["bpp"], baseline.results["bpp"], RATES)
            if not rates:
                mend = "measure points of about the same bpp"
                raise HybridFlowError(f"{whole.key} and {baseline.key} have no rates in common: {mend}")
            for bpp in rates:
                psnr, psnr_theirs = (at_rate(bpp, *curve.points("psnr-rgb")) for curve in (whole, baseline))
                lpips, lpips_theirs = (at_rate(bpp, *curve.points("lpips-alex")) for curve in (whole, baseline))
                gain, change = psnr - psnr_theirs, lpips / lpips_theirs - 1
                texts = [f"{bpp:.4f}", f"{psnr:.2f}", f"{psnr_theirs:.2f}", f"{gain:+.2f}"]
                texts += [f"{lpips:.3f}", f"{lpips_theirs:.3f}", f"{change:+.1%}"]
                rows.append([str(claim.number), baseline.name, *texts, "yes" if claim.holds(gain, change) else "no"])
    return rows


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("claims", __doc__)
    parser.add_argument("results", type=named_path, help="folder of curves")
    args = parser.parse_args(argv)

    rows = claim_rows(read_curves(args.results))
    if not rows:
        raise HybridFlowError(f"no baseline is in {args.results}: eval.run measures them beside a checkpoint")
    print(tables.markdown(TITLES, rows, words=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
