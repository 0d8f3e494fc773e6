"""Fits the constants that come from whole published results rather than from single operations, and prints them.

    python experiments/fit_training.py

They are the host's time of a step (vLLM without asynchronous scheduling; TensorRT-LLM behind its HTTP server, with the
overhead of its fp8 products), on the rows that docs/validation.md calls training rows, and how much a matrix product
overlaps moving with computing on an RTX PRO 6000, on the first requests of a log. What it prints belongs into the
"host" and "matmul" entries of nanoserve/roofline/constants. Exit code 2: something the user can mend.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command
from experiments.validate import LOG
from nanoserve.analysis.published.comparison import training_of
from nanoserve.analysis.published.results import read_published
from nanoserve.analysis.published.rows import Case, case_of
from nanoserve.analysis.published.training import fit_host, fit_overlap
from nanoserve.analysis.published.vllm_log import read_vllm_log

REPOSITORY = Path(__file__).resolve().parents[1]
STACKS = {"vllm_sync": False, "trtllm_serve": True}  # stack -> whether the overhead of fp8 products is fitted too


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
      arguments: as in `sys.argv`, the command's own name first.

    Returns:
      The exit code.
    """
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("from", str(REPOSITORY.parent / "shared"), "folder with facts/ and profiles/", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    folder = Path(str(asked["from"].value))
    found = [case_of(row) for row in read_published(folder / "facts" / "published_throughput.csv")]
    cases = [item for item in found if isinstance(item, Case) and training_of(item)]
    for stack, launches in STACKS.items():
        rows = [case for case in cases if case.stack == stack]
        fit = fit_host(rows, launches=launches)
        print(
            f"{stack}, {len(rows)} rows: gap {fit.gap_s * 1e3:.2f} ms a step, {fit.row_s * 1e6:.1f} us a row"
            + (f", fp8 products {fit.launch_s * 1e6:.1f} us each" if launches else "")
            + f"; TPOT off by {fit.without.mean_abs:.1%} without and {fit.fitted.mean_abs:.1%} with them",
            flush=True,
        )
    overlap = fit_overlap(read_vllm_log(folder / "profiles" / LOG))
    print(f"{LOG}: overlap {overlap:.2f} of moving and computing in bf16 products")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
