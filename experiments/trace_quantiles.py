"""Prints what a synthetic twin of a trace needs: its rate, gap CV, correlation, and quantiles of both lengths.

The constants of `nanoserve.trace.presets` are the output of this command on the published trace.

    python -m experiments.trace_quantiles AzureLLMInferenceTrace_conv_2023.csv
"""

import argparse
import math
import sys
import textwrap

import numpy as np

from nanoserve.specs.errors import NanoserveError
from nanoserve.trace.presets import LEVELS
from nanoserve.trace.readers import read_trace
from nanoserve.trace.types import Trace


def describe(trace: Trace) -> str:
    """The constants of a preset, as Python source."""
    gaps_s = np.diff(trace.arrival_s)
    return "\n".join(
        (
            f"# {trace.name}: {len(trace):,} requests in {trace.arrival_s[-1]:.1f} s",
            f"rate_rps={1 / gaps_s.mean():.4f}, cv={gaps_s.std() / gaps_s.mean():.4f}",
            f"correlation={copula_correlation(trace.prompt_tokens, trace.output_tokens):.4f}",
            f"prompt_tokens={as_tuple(trace.prompt_tokens)}",
            f"output_tokens={as_tuple(trace.output_tokens)}",
        )
    )


def as_tuple(tokens: np.ndarray) -> str:
    """Quantiles at `LEVELS` as a Python tuple of whole tokens, wrapped to the line length."""
    values = np.rint(np.quantile(tokens, LEVELS)).astype(int)
    return (
        "(\n"
        + textwrap.fill(", ".join(map(str, values)), 110, initial_indent=" " * 4, subsequent_indent=" " * 4)
        + ",\n)"
    )


def copula_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """The correlation of two normals whose ranks correlate (Spearman's rho) as these do: 2 sin(pi rho / 6)."""
    spearman = float(np.corrcoef(ranks(first), ranks(second))[0, 1])
    return 2 * math.sin(math.pi * spearman / 6)


def ranks(values: np.ndarray) -> np.ndarray:
    """Place of each value in sorted order; equal values share their mean place."""
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(size) - (size - 1) / 2)[group]


def main() -> int:
    """Runs the command; 2 means that the trace cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="a trace file of any known format")
    try:
        print(describe(read_trace(parser.parse_args().path)))
    except NanoserveError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
