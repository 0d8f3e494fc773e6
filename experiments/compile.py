"""Compiles a config's steps for chips that are not there, and says what the compiler makes of them.

    python experiments/compile.py --config=llama70b_v5p
    python experiments/compile.py --config=llama70b_v6e --batch=64 --context=4096 --out=compiled.json
    python experiments/compile.py --config=llama70b_h100 --programs=decode_step
    python experiments/compile.py --config=llama70b_v6e --oom_surface=fits.png --out=fits.json
    python experiments/compile.py --config=llama8b_h100 --batch=1 --programs=decode_step --kernels

TPUs need the extra `tpu-aot`, an H100 the compilers that `make aot-gpu` installs. Prints, of one chip and one call:
bytes by kind beside the memory model, FLOPs beside the cost model, collectives, and copies of a whole layer; for a TPU
XLA's estimated time beside the roofline, for a GPU what the Mosaic kernels use and, with `--kernels`, every kernel that
a step launches. With `--oom_surface` it finds instead how many sequences the compiler accepts at each context, and
draws that beside the memory model.

Exit code 0: everything compiled. 1: a program does not fit; the compiler's message is printed. 2: something the user
can mend.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command, compile_kernels
from nanoserve.experiment import CONFIG_CLASSES, Experiment, resolve
from nanoserve.report.units import short, significant, time
from nanoserve.specs.config import load
from nanoserve.specs.config import resolve as resolve_config
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    from kernels.pallas.aot_gpu import ResourceReport
    from nanoserve.executors.aot import Compiled
    from nanoserve.executors.aot_expected import Setting
    from nanoserve.executors.aot_kernels import KernelReport
    from nanoserve.executors.aot_report import Costly, Memory, ProgramReport

REPOSITORY = Path(__file__).resolve().parents[1]
# The compiler's process is no TPU host: it must neither ask for one's metadata nor take the machine's own devices.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
GIB = 2**30
MOST_LINES = 8
PROGRAMS = ("decode_step", "prefill_step", "mixed_step", "decode_loop")


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
      arguments: as in `sys.argv`, the command's own name first.

    Returns:
      The exit code.
    """
    return command.run(arguments, __doc__, _flags, _command)


def _command(asked: flags.FlagValues) -> int:
    command.known("--programs", "step", asked.programs, PROGRAMS)
    config = resolve_config(asked.config, REPOSITORY / "configs")
    experiment = load(config, CONFIG_CLASSES, "Experiment", asked.set).value
    resolve(experiment)  # misspelt models and chips are reported before anything heavy is imported
    os.environ.update(ENVIRONMENT)
    if asked.oom_surface:
        found = _surface(experiment, asked)
        if asked.out:
            command.write_json("--out", Path(asked.out), {"experiment": experiment.name, **found})
        return 0
    if asked.kernels and resolve(experiment).cluster.chip.platform != "gpu":
        raise ConfigError(
            f"--kernels: kernels are listed of GPUs' programs, and {experiment.name} is for another chip. Leave it out"
        )
    programs = list(_compile(experiment, asked))
    if asked.out:
        command.write_json("--out", Path(asked.out), _figures(experiment.name, asked, programs))
    return command.EXIT_FAILED if any(report.refused for report, _ in programs) else 0


def _flags(own: flags.FlagValues) -> None:
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
    flags.DEFINE_list("programs", list(PROGRAMS), "which steps to compile, of these", flag_values=own)
    flags.DEFINE_bool("kernels", False, "also list the kernels that a step launches, for a GPU", flag_values=own)
    flags.DEFINE_multi_string("xla", [], "OPTION=value of XLA besides those that we set, repeatable", flag_values=own)
    flags.DEFINE_string("oom_surface", None, "find and draw what fits: a .png, .svg or .pdf", flag_values=own)
    contexts = ["1024", "2048", "4096", "8192", "16384", "32768"]
    flags.DEFINE_list("contexts", contexts, "positions of each sequence, for --oom_surface", flag_values=own)
    flags.DEFINE_string("out", None, "also write the figures to this JSON file", flag_values=own)


def _compile(
    experiment: Experiment, asked: flags.FlagValues
) -> Iterator[tuple["ProgramReport", "KernelReport | None"]]:
    """Compiles one step after the other, and prints each as soon as it is known."""
    from nanoserve.executors.aot import Compiler, Workload
    from nanoserve.executors.aot_expected import Setting
    from nanoserve.executors.aot_kernels import launched
    from nanoserve.executors.aot_report import describe
    from nanoserve.model.sampling import sampler_for

    facts, engine = resolve(experiment), experiment.engine
    budget = engine.prefill_chunk_tokens or engine.max_step_tokens
    work = Workload(
        batch=asked.batch,
        context_tokens=asked.context,
        chunk_tokens=min(budget, engine.max_step_tokens, asked.context),
        page_tokens=engine.page_tokens,
        slots=max(engine.max_seqs, asked.batch),
        loop_steps=min(engine.max_horizon_steps, asked.context),
    )
    temperature = experiment.sampling.temperature
    sampler = sampler_for(temperature)
    options = dict(map(_option, asked.xla))
    compiler = Compiler(facts.model, facts.cluster, experiment.precision, work, asked.attention, sampler, options)
    setting = Setting(
        model=facts.model,
        cluster=facts.cluster,
        precision=experiment.precision,
        work=work,
        attention=compiler.attention.name,
        temperature=temperature,
    )
    print("\n".join(_heading(setting, compiler.attention.why)))
    for name in asked.programs:
        compiled: Compiled = getattr(compiler, name)()
        report = describe(compiled, setting)
        print("\n" + "\n".join(page(report)), flush=True)
        kernels = launched(compiled, setting) if asked.kernels and not report.refused else None
        if kernels:
            print("\n".join(compile_kernels.lines(kernels)), flush=True)
        yield report, kernels


def _surface(experiment: Experiment, asked: flags.FlagValues) -> dict[str, Any]:
    """Finds the boundary at each context, prints it, and draws all of them."""
    from nanoserve.executors.aot_surface import boundaries
    from nanoserve.report.memory_plot import save_boundary

    facts, cluster = resolve(experiment), resolve(experiment).cluster
    contexts = tuple(_number("--contexts", text) for text in asked.contexts)
    what, who = f"{facts.model.name} on {cluster.count} x {cluster.chip.name}", "XLA"
    print(f"{what}, decode steps, pages of {experiment.engine.page_tokens}\n{'context':>9}{who:>9}{'model':>9}   asked")
    found = []
    for each in boundaries(
        facts.model,
        cluster,
        experiment.precision,
        asked.attention,
        contexts=contexts,
        page_tokens=experiment.engine.page_tokens,
    ):
        found.append(each)
        print(f"{each.context_tokens:>9,}{each.compiler:>9,}{each.model:>9,}{each.asked:>8} times", flush=True)
    try:
        columns = [[getattr(each, name) for each in found] for name in ("context_tokens", "compiler", "model")]
        save_boundary(asked.oom_surface, what, *columns, who=who)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--oom_surface={asked.oom_surface}: {error}. Name a .png, .svg or .pdf in a folder that exists"
        ) from error
    return {"what": what, "boundaries": [dataclasses.asdict(each) for each in found]}


def _number(flag: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{flag}: '{text}' is not a number of positions")
    return int(text)


def _option(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--xla={text}: give a value, as in --xla=xla_gpu_autotune_level=0")
    return name, {"true": True, "false": False}.get(value, value)


def _figures(
    name: str, asked: flags.FlagValues, programs: Sequence[tuple["ProgramReport", "KernelReport | None"]]
) -> dict[str, Any]:
    launched = [compile_kernels.figures(kernels) for _, kernels in programs if kernels]
    return {
        "experiment": name,
        "batch": asked.batch,
        "context_tokens": asked.context,
        "attention": asked.attention,
        **({"xla": list(asked.xla)} if asked.xla else {}),
        "programs": [dataclasses.asdict(report) for report, _ in programs],
        **({"launched": launched} if launched else {}),
    }


def _heading(setting: "Setting", why: str) -> Iterator[str]:
    work, cluster = setting.work, setting.cluster
    yield f"{setting.model.name} for {cluster.count} x {cluster.chip.name}, attention {setting.attention}: {why}"
    yield (
        f"  {work.batch} sequences of {work.context_tokens:,} positions in {work.pages:,} pages of "
        f"{work.page_tokens}; chunks of {work.chunk_tokens:,}, loops of {work.loop_steps} steps. All figures are of "
        "one chip and one call"
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
    if report.estimated_s:
        yield from _time_lines(report)
    if report.kernels and report.kernels.kernels:
        yield _kernel_line(report.kernels)
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
    counted = f"; XLA's count with each loop's body once: {short(report.counted_flops)}FLOP"
    yield (
        f"  products {short(report.product_flops)}FLOP, cost model {short(report.model_flops)}FLOP"
        f"{_off(report.product_flops, report.model_flops)}{counted if report.counted_flops else ''}"
    )
    if report.trips:
        yield f"  loops whose length is data are taken to run {' x '.join(map(significant, report.trips))} times"
    yield f"  roofline {time(report.roofline_s)}"


def _time_lines(report: "ProgramReport") -> Iterator[str]:
    estimable = report.roofline_s - report.unestimated_s
    yield (
        f"  XLA's estimate {time(report.estimated_s)}, {significant(report.estimated_s / estimable)} times the "
        f"{time(estimable)} of what it estimates: no collectives, no Pallas kernels"
    )
    yield f"    {'part':<24}{'estimate':>12}{'roofline':>12}"
    for part in report.parts:
        yield f"    {part.name:<24}{time(part.estimated_s):>12}{time(part.roofline_s):>12}"
    yield "  costliest instructions: estimate, and over their own bytes and products at the chip's limits"
    for each in report.costly:
        yield _costly_line(each)
    yield (
        "  above 2% of the estimate and 1.5 times their own roofline:"
        if report.above
        else "  none above 2% of the estimate takes more than 1.5 times its own roofline"
    )
    for each in report.above:
        yield _costly_line(each)


def _costly_line(each: "Costly") -> str:
    over = f"{significant(each.estimated_s / each.roofline_s):>6}x" if each.roofline_s else f"{'':>7}"
    return f"    {time(each.estimated_s):>9} {over}  {each.times:>7,.0f} x {each.name:<34} {_end(each.scope)}"


def _kernel_line(kernels: "ResourceReport") -> str:
    return (
        f"  Mosaic kernels: {kernels.kernels}, of at most {kernels.registers} registers, {kernels.spill_bytes} bytes "
        f"of spills, {kernels.shared_bytes:,} bytes of shared memory"
        f"{', products one after the other' if kernels.wgmma_serialised else ''}"
    )


def _end(scope: str) -> str:
    return "/".join(scope.split("/")[-3:])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
