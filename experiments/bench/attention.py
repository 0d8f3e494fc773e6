"""Measures paged attention on whatever device is present, beside the device's ceilings and attention by others.

    python experiments/bench/attention.py --out=attention.json --plot=attention.png
    python experiments/bench/attention.py --parts=ceilings,decode --shapes='decode_8b_b32_*,decode_8b_b128_*'
    JAX_PLATFORMS=cpu python experiments/bench/attention.py --toy --implementation=pallas_tpu_interpret

Parts: `ceilings` (a copy of memory, a bf16 matrix product), `decode` and `prefill` (shapes of a kind), `peers` (other
attention beside each of those shapes, where installed). Every result is compared with the implementation `xla`, a toy's
with plain loops in float64, before it is timed. An absolute time counts on an accelerator only; on a CPU, the command
shows that it works. Exit code 0: all shapes measured, or skipped because the implementation asked for does not serve
them. 1: a shape failed; it is in the table and in the file with its error. 2: something the user can mend.
130: interrupted; `--resume` goes on.

Next: `attention_shapes`, `attention_measure`, `attention_timing`, `attention_peers`, `attention_results`.
"""

import functools
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that a bare checkout runs without installing

from experiments import command
from experiments.bench import attention_plot
from experiments.bench.attention_results import (
    CEILINGS,
    FAILED,
    Record,
    Results,
    resumed,
    shape_record,
    skipped_peers,
    summary,
    summary_lines,
    table,
)
from experiments.bench.attention_shapes import KINDS, BenchShape, catalogue, select, toy_catalogue, useful
from experiments.bench.attention_timing import ACCELERATOR, CPU, INTERPRETER, Effort, ceilings
from experiments.bench.host import machine
from nanoserve.report.progress import Progress
from nanoserve.report.units import short
from nanoserve.specs.errors import ConfigError, nearest

if TYPE_CHECKING:
    from experiments.bench.attention_peers import Setting

PEERS = "peers"
PARTS = (CEILINGS, *KINDS, PEERS)
# Where XLA runs a CPU's programs concurrently, the interpreter of GPU kernels waits for ever: see tests/conftest.py.
NO_CONCURRENCY = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
CPU_NOTE = "its times are not meaningful, and say little beside one another"


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
      arguments: as in `sys.argv`, the command's own name first.

    Returns:
      The exit code.
    """
    return command.run(arguments, __doc__, _flags, functools.partial(_command, ["python", *arguments]))


def _command(words: Sequence[str], asked: flags.FlagValues) -> int:
    _check(asked)
    parts = _parts(asked.parts)
    kinds = [kind for kind in KINDS if kind in parts]
    patterns = [pattern for pattern in asked.shapes.split(",") if pattern]
    shapes = select(patterns, toy_catalogue() if asked.toy else catalogue(), kinds) if kinds else []
    setting = _setting(asked.implementation)
    results = _results(asked, _describe(setting, words))
    left = [shape for shape in shapes if not results.has(shape.name, PEERS in parts)]
    effort = _effort(setting)
    code = 0
    try:
        if CEILINGS in parts:
            results.add_ceilings(_ceilings(effort))
        print("\n".join(_heading(results.runs[-1], asked.toy)), flush=True)
        _measure_all(left, setting, effort, results, with_peers=PEERS in parts, oracle=asked.toy)
    except KeyboardInterrupt:
        print("interrupted; with --resume the same command goes on", file=sys.stderr)
        code = command.EXIT_INTERRUPTED
    return _finish(results, asked.plot) or code


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("shapes", "", "names, with '*', separated by commas; all if empty", flag_values=own)
    flags.DEFINE_bool("toy", False, "a few tiny shapes instead, checked against plain loops", flag_values=own)
    flags.DEFINE_string("parts", ",".join(PARTS), "what to do, separated by commas", flag_values=own)
    flags.DEFINE_string("implementation", "auto", "of paged attention; auto is the device's kernel", flag_values=own)
    flags.DEFINE_string("out", None, "write results to this JSON file, after every shape", flag_values=own)
    flags.DEFINE_bool("resume", False, "leave out the shapes that --out has measured already", flag_values=own)
    flags.DEFINE_string("plot", None, "draw the results into this file", flag_values=own)


def _check(asked: flags.FlagValues) -> None:
    if asked.resume and not asked.out:
        raise ConfigError("--resume goes on with a file: name it with --out")
    if asked.plot and not Path(asked.plot).parent.is_dir():
        raise ConfigError(f"--plot={asked.plot}: there is no such folder. Make it first")


def _parts(text: str) -> set[str]:
    parts = set(text.split(","))
    command.known("--parts", "part", sorted(parts), PARTS)
    if PEERS in parts and not parts.intersection(KINDS):
        raise ConfigError(f"--parts: peers are measured beside shapes; add {' or '.join(KINDS)}")
    return parts


def _setting(implementation: str) -> "Setting":
    """The device, and the implementation by its name."""
    if implementation == "pallas_gpu_interpret" and NO_CONCURRENCY not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {NO_CONCURRENCY}".strip()
    import jax

    from experiments.bench.attention_peers import Setting
    from kernels.pallas.choosing import AUTO
    from kernels.pallas.paged_attention import api

    names = (AUTO, *api.IMPLEMENTATIONS)
    if implementation not in names:
        raise ConfigError(f"--implementation={implementation} does not exist.{nearest(implementation, names)}")
    return Setting(jax.devices()[0], implementation)


def _effort(setting: "Setting") -> Effort:
    if setting.platform != "cpu":
        return ACCELERATOR
    return INTERPRETER if setting.implementation.endswith("_interpret") else CPU


def _describe(setting: "Setting", command: Sequence[str]) -> Record:
    """What a run's figures depend on."""
    from experiments.bench.attention_peers import versions

    device = setting.device
    return {
        "command": shlex.join(command),
        "implementation": setting.implementation,
        "device": device.device_kind,
        "platform": device.platform,
        "platform_version": device.client.platform_version,
        "absolute_times_count": device.platform != "cpu",
        "machine": machine() | versions(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        CEILINGS: None,
    }


def _results(asked: flags.FlagValues, run: Record) -> Results:
    """The file, with a run begun in it: a file that cannot be written is found out before anything is measured."""
    path = Path(asked.out) if asked.out else None
    results = resumed(path) if path and asked.resume else Results(path)
    results.begin(run)
    return results


def _ceilings(effort: Effort) -> Record:
    """The ceilings, or why there are none: shapes can be compared with peers all the same."""
    from experiments.bench.attention_peers import described

    try:
        return ceilings(effort)
    except Exception as error:
        return {"failed": described(error)}


def _heading(run: Record, toy: bool) -> list[str]:
    note = "" if run["absolute_times_count"] else f" ({CPU_NOTE}{'' if toy else '; --toy is made for it'})"
    lines = [f"{run['device']}{note}"]
    found = run[CEILINGS] or {}
    if "failed" in found:
        lines.append(f"  no ceilings: {found['failed']}")
    elif found:
        copy, matmul = short(found["copy_bytes_per_s"]), short(found["matmul_flops_per_s"])
        lines.append(f"  copy {copy}B/s read and written, bf16 product {matmul}FLOP/s")
    return lines


def _measure_all(
    shapes: Sequence[BenchShape],
    setting: "Setting",
    effort: Effort,
    results: Results,
    *,
    with_peers: bool,
    oracle: bool,
) -> None:
    """Measures shape after shape; whatever one of them raises becomes its record."""
    from experiments.bench.attention_measure import measure
    from experiments.bench.attention_peers import PEERS as KNOWN
    from experiments.bench.attention_peers import described

    found = results.runs[-1][CEILINGS]
    with Progress(len(shapes), "shapes") as progress:
        for done, shape in enumerate(shapes):
            progress.update(done, shape=shape.name)
            record = shape_record(shape, useful(shape))
            try:
                record |= measure(shape, setting, effort, found, peers=KNOWN if with_peers else {}, oracle=oracle)
            except Exception as error:  # the other shapes go on
                record |= {"status": FAILED, "reason": described(error)}
            results.add(shape.name, record)


def _finish(results: Results, plot: str | None) -> int:
    """Prints and draws what the file holds by now, earlier runs included."""
    if results.shapes:
        print("\n".join(("", *table(results.shapes), "", *summary_lines(summary(results.shapes)))))
    if skipped := skipped_peers(results.shapes):
        print("\n".join(("peers that were left out everywhere", *(f"  {line}" for line in skipped))))
    if results.path:
        print(f"-> {results.path}")
    if plot and results.shapes:
        run = results.runs[-1]
        note = run["device"] if run["absolute_times_count"] else f"{run['device']}: {CPU_NOTE}"
        attention_plot.save(Path(plot), results.shapes, note)
        print(f"-> {plot}")
    return command.EXIT_FAILED if any(record["status"] == FAILED for record in results.shapes.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
