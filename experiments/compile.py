"""Compiles a config's steps for TPUs that are not there, and says what the compiler makes of them.

    python experiments/compile.py --config=llama70b_v5p
    python experiments/compile.py --config=llama70b_v6e --batch=64 --context=4096 --out=compiled.json

Needs the extra `tpu-aot`. Prints, of one chip and one call: bytes by kind beside the memory model, FLOPs beside the
cost model, XLA's estimated time beside the roofline, collectives, and copies of a whole layer. Exit code 0: everything
compiled. 1: a program does not fit; the compiler's message is printed. 2: something the user can mend.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from nanoserve.experiment import CONFIG_CLASSES, Experiment, resolve
from nanoserve.report.units import short, significant, time
from nanoserve.specs.config import load
from nanoserve.specs.config import resolve as resolve_config
from nanoserve.specs.errors import ConfigError, NanoserveError

if TYPE_CHECKING:
    from nanoserve.executors.aot_report import Memory, ProgramReport, Setting

REPOSITORY = Path(__file__).resolve().parents[1]
EXIT_REFUSED, EXIT_USER = 1, 2
# The compiler's process is no TPU host: it must neither ask for one's metadata nor take the machine's own devices.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
GIB = 2**30
MOST_LINES = 8


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
      arguments: as in `sys.argv`, the command's own name first.

    Returns:
      The exit code.
    """
    try:
        return _command(arguments)
    except NanoserveError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER


def _command(arguments: Sequence[str]) -> int:
    asked = _parse(arguments)
    if asked.help:
        print(__doc__)
        print(asked.get_help())
        return 0
    config = resolve_config(asked.config, REPOSITORY / "configs")
    experiment = load(config, CONFIG_CLASSES, "Experiment", asked.set).value
    resolve(experiment)  # misspelt models and chips are reported before anything heavy is imported
    reports = list(_compile(experiment, asked))
    if asked.out:
        _write(Path(asked.out), experiment.name, asked, reports)
    return EXIT_REFUSED if any(report.refused for report in reports) else 0


def _parse(arguments: Sequence[str]) -> flags.FlagValues:
    own = flags.FlagValues()
    flags.DEFINE_string("config", "llama70b_v5p", "name in configs/, or path of a gin file", flag_values=own)
    flags.DEFINE_multi_string("set", [], "Class.field=value, repeatable; wins over the file", flag_values=own)
    flags.DEFINE_integer("batch", 32, "sequences that decode", lower_bound=1, flag_values=own)
    flags.DEFINE_integer("context", 2048, "positions of each sequence", lower_bound=1, flag_values=own)
    flags.DEFINE_string(
        "attention",
        "auto",
        "implementation of paged attention; auto is the chip's kernel where it serves the model",
        flag_values=own,
    )
    flags.DEFINE_string("out", None, "also write the figures to this JSON file", flag_values=own)
    flags.DEFINE_bool("help", False, "show this help", flag_values=own, short_name="h")
    try:
        rest = own(arguments)
    except flags.Error as error:
        raise ConfigError(f"{error}. See --help") from error
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument '{rest[1]}'. Flags are written --name=value; see --help")
    return own


def _compile(experiment: Experiment, asked: flags.FlagValues) -> Iterator["ProgramReport"]:
    """Compiles one step after the other, and prints each as soon as it is known."""
    os.environ.update(ENVIRONMENT)
    from nanoserve.executors.aot import Compiler, Workload
    from nanoserve.executors.aot_report import Setting, describe

    facts, engine = resolve(experiment), experiment.engine
    budget = engine.prefill_chunk_tokens or engine.max_step_tokens
    work = Workload(
        batch=asked.batch,
        context_tokens=asked.context,
        chunk_tokens=min(budget, engine.max_step_tokens, asked.context),
        page_tokens=engine.page_tokens,
        slots=max(engine.max_seqs, asked.batch),
    )
    compiler = Compiler(facts.model, facts.cluster, experiment.precision, work, asked.attention)
    setting = Setting(
        model=facts.model,
        cluster=facts.cluster,
        precision=experiment.precision,
        work=work,
        attention=compiler.attention.name,
        temperature=experiment.sampling.temperature,
    )
    print("\n".join(_heading(setting)))
    for compile_step in (compiler.decode_step, compiler.prefill_step):
        report = describe(compile_step(), setting)
        print("\n" + "\n".join(page(report)), flush=True)
        yield report


def _write(path: Path, name: str, asked: flags.FlagValues, reports: Sequence["ProgramReport"]) -> None:
    figures = {
        "experiment": name,
        "batch": asked.batch,
        "context_tokens": asked.context,
        "attention": asked.attention,
        "programs": [dataclasses.asdict(report) for report in reports],
    }
    try:
        path.write_text(json.dumps(figures, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"--out={path}: {error.strerror}. Name a file in a folder that exists") from error


def _heading(setting: "Setting") -> Iterator[str]:
    work, cluster = setting.work, setting.cluster
    yield f"{setting.model.name} for {cluster.tensor} x {cluster.chip.name}, attention {setting.attention}"
    yield (
        f"  {work.batch} sequences of {work.context_tokens:,} positions in {work.pages:,} pages of "
        f"{work.page_tokens}; chunks of {work.chunk_tokens:,}. All figures are of one chip and one call"
    )


def page(report: "ProgramReport") -> Iterator[str]:
    """The lines that a person reads of one program."""
    took = f"lowered in {time(report.lower_s)}, compiled in {time(report.compile_s)}"
    if report.refused or report.memory is None:
        yield f"{report.name}: DOES NOT FIT ({took}). The compiler says:"
        yield from (f"  {line}" for line in report.refused.splitlines()[:MOST_LINES])
        return
    yield f"{report.name}: fits ({took})"
    yield from _memory_lines(report.memory)
    yield from _flop_lines(report)
    yield from _time_lines(report)
    yield "  collectives" if report.collectives else "  no collectives"
    for each in report.collectives[:MOST_LINES]:
        yield f"    {each.times:>7,.0f} x {each.kind:<18} {short(each.size_bytes):>7}B each"
    yield "  copies of a layer's weights or KV" if report.copies else "  no copy of a layer's weights or KV"
    for each in report.copies:
        yield f"    {each.times:>7,.0f} x {each.shapes[0]:<26} {time(each.estimated_s):>9}  {each.name}"


def _memory_lines(memory: "Memory") -> Iterator[str]:
    yield f"  {'GiB':<28}{'compiler':>10}{'model':>10}"
    rows = (
        ("weights", memory.weights, memory.model_weights),
        ("KV pages", memory.kv, memory.model_kv),
        ("other arguments, padding", memory.rest, None),
        ("resident", memory.weights + memory.kv + memory.rest, memory.model_weights + memory.model_kv),
        ("temporary", memory.temp, memory.model_activations),
        ("updated in place", memory.alias, None),
        ("program", memory.code, None),
    )
    for name, found, expected in rows:
        model = "" if expected is None else f"{expected / GIB:>10.3f}"
        yield f"    {name:<26}{found / GIB:>10.3f}{model}{_off(found, expected) if name == 'resident' else ''}"


def _off(found: float, expected: float | None) -> str:
    return f"  ({found / expected - 1:+.2%})" if expected else ""


def _flop_lines(report: "ProgramReport") -> Iterator[str]:
    yield (
        f"  products {short(report.product_flops)}FLOP, cost model {short(report.model_flops)}FLOP"
        f"{_off(report.product_flops, report.model_flops)}; XLA's count with each loop's body once: "
        f"{short(report.counted_flops)}FLOP"
    )


def _time_lines(report: "ProgramReport") -> Iterator[str]:
    ratio = significant(report.estimated_s / report.roofline_s)
    assumed = f"; attention's loops run {' x '.join(map(significant, report.trips))} times" if report.trips else ""
    yield (
        f"  XLA's estimate {time(report.estimated_s)}, roofline {time(report.roofline_s)}: {ratio} times "
        f"(only the roofline counts collectives){assumed}"
    )
    yield f"    {'part':<24}{'estimate':>12}{'roofline':>12}"
    for part in report.parts:
        yield f"    {part.name:<24}{time(part.estimated_s):>12}{time(part.roofline_s):>12}"
    yield "  costliest instructions"
    for each in report.costly:
        yield f"    {time(each.estimated_s):>9}  {each.times:>7,.0f} x {each.name:<34} {_end(each.scope)}"


def _end(scope: str) -> str:
    return "/".join(scope.split("/")[-3:])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
