"""Finds block sizes of the paged attention kernels for a chip that need not be here, and writes them to their table.

    python experiments/tune.py --chip=h100_sxm
    python experiments/tune.py --chip=h100_sxm --out=/tmp/gpu.json

Needs the chip's compiler: `make aot-gpu` makes an environment that has it, .venv-aot-gpu. Prints a line for each
candidate as soon as the compiler has judged it, and then the table. Exit code 0: the table is written. 2: something the
user can mend.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command
from nanoserve.specs import chip_registry
from nanoserve.specs.chips import ChipSpec
from nanoserve.specs.errors import ConfigError, nearest

if TYPE_CHECKING:
    from kernels.pallas.paged_attention.gpu_search import Verdict

REPOSITORY = Path(__file__).resolve().parents[1]
TUNING = REPOSITORY / "kernels" / "pallas" / "paged_attention" / "tuning"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuner:
    """How a chip is tuned: `entries` makes the table's, which belongs in `file`."""

    entries: Callable[[ChipSpec], list[dict[str, Any]]]
    file: Path


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
      arguments: as in `sys.argv`, the command's own name first.

    Returns:
      The exit code.
    """
    return command.run(arguments, __doc__, _flags, _command)


def _command(asked: flags.FlagValues) -> int:
    chip = chip_registry.chip(asked.chip)
    tuner = TUNERS.get(chip.name)
    if tuner is None:
        raise ConfigError(f"--chip={chip.name}: its kernels have no tuner.{nearest(chip.name, TUNERS)}")
    entries = tuner.entries(chip)
    print("\n" + "\n".join(table(entries)))
    _write(Path(asked.out) if asked.out else tuner.file, {"chip": chip.name, "entries": entries})
    return 0


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("chip", "h100_sxm", "name of a chip in the registry", flag_values=own)
    flags.DEFINE_string("out", None, "write this file instead of the table that the kernels read", flag_values=own)


def _hopper(chip: ChipSpec) -> list[dict[str, Any]]:
    """Entries for the kernels of Hopper."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # the chip is described to the compiler, not looked for
    from kernels.pallas import aot_gpu
    from kernels.pallas.gpu_target import MULTIPROCESSORS
    from kernels.pallas.paged_attention import gpu_search

    if not aot_gpu.available():
        raise ConfigError(
            "the compiler for NVIDIA GPUs is not installed here: run `make aot-gpu`, and then this command with "
            ".venv-aot-gpu/bin/python"
        )
    found = []
    for number, problem in enumerate(gpu_search.PROBLEMS, start=1):
        verdicts = []
        for verdict in gpu_search.search(problem, chip, MULTIPROCESSORS[chip.name], gpu_search.compile_for):
            verdicts.append(verdict)
            print(f"[{number}/{len(gpu_search.PROBLEMS)}] {line(verdict)}", flush=True)
        found.append(gpu_search.entry(gpu_search.chosen(verdicts)))
    return found


TUNERS: Mapping[str, Tuner] = {"h100_sxm": Tuner(entries=_hopper, file=TUNING / "gpu.json")}


def line(verdict: "Verdict") -> str:
    """What a person reads of a candidate."""
    problem, blocks = verdict.problem, verdict.blocks
    sizes = f"blocks of {blocks.block_tokens:>3}, {blocks.stages} stages, {blocks.converted} converted"
    name = f"{problem.kind:<8} h {problem.head_size:>3}, {problem.kv_bytes} bytes"
    return f"{name}: {sizes}: {verdict.refused or 'taken'}"


def table(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The entries, a line each below their names."""
    names = list(entries[0])
    rows = [[str(entry[name]) for name in names] for entry in entries]
    widths = [max(len(name), *(len(row[column]) for row in rows)) for column, name in enumerate(names)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [names, *rows]]


def _write(path: Path, contents: dict[str, Any]) -> None:
    entries = ",\n".join(f"  {json.dumps(entry)}" for entry in contents["entries"])
    text = f'{{\n "chip": {json.dumps(contents["chip"])},\n "entries": [\n{entries}\n ]\n}}\n'
    command.write_text("--out", path, text)
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
