"""A run's plans as TensorBoard scalars; optional, and never the truth: that is `steps.parquet`."""

from pathlib import Path
from typing import TYPE_CHECKING

from nanoserve.specs.errors import CapacityError, ConfigError

if TYPE_CHECKING:
    import polars as pl

SCALARS = (
    "duration_s",
    "host_gap_s",
    "decode_seqs",
    "prefill_tokens",
    "running",
    "waiting",
    "pages_used",
    "mfu",
    "mbu",
    "roofline_fraction",
)


def write_scalars(folder: Path | str, steps: "pl.DataFrame") -> None:
    """Writes one point a plan for each of `SCALARS`: x is the plan's first step, the wall time its start in the run.

    Args:
      folder: where the event file goes.
      steps: `records.STEP_COLUMNS` and `records.COST_COLUMNS`.

    Raises:
      ConfigError: tensorboardX is not installed.
      CapacityError: the file cannot be written.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError("TensorBoard output needs the package tensorboardX, which is not installed here") from error
    try:
        with SummaryWriter(str(folder)) as writer:
            for row in steps.select("step", "start_s", *SCALARS).iter_rows(named=True):
                for name in SCALARS:
                    writer.add_scalar(f"plan/{name}", row[name], row["step"], walltime=row["start_s"])
    except OSError as error:
        raise CapacityError(f"cannot write TensorBoard events to {folder}: {error.strerror or error}") from error
