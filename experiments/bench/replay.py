"""Measures how fast a trace is replayed on a virtual clock: the whole scheduler, every step priced.

    python experiments/bench/replay.py
    python experiments/bench/replay.py --requests=20000,1000000 --out=experiments/bench/results/replay.json

The load is that of a chat service: lengths of the published Azure conversation trace, drawn again with a seed, at 5
requests a second; Llama-2-70B on eight H100 in calibrated mode, chunked prefill of 512 tokens, 128 sequences, pages of
16. Prompts are cut where they would not fit into the model's context, so that every request is served. Without the
trace, lengths come from its quantiles, and the output says so.

Every row is a process of its own, on one core, timed from the first plan to the last; reading the trace and building
the engine are the start-up. The first size is replayed a second time with horizons off, one plan a step, and must give
the same events, byte for byte.
"""

import concurrent.futures
import dataclasses
import hashlib
import multiprocessing
import os
import resource
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments import command
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    from nanoserve.engine.engine import Engine
    from nanoserve.trace.types import Trace

TRACE = Path(__file__).resolve().parents[3] / "shared" / "traces" / "AzureLLMInferenceTrace_conv_2023.csv"
MODEL, CHIP, WAYS, MODE = "llama-2-70b", "h100_sxm", 8, "calibrated"
RATE_RPS, SEED = 5.0, 0
MAX_SEQS, CHUNK_TOKENS, PAGE_TOKENS, HORIZON_STEPS = 128, 512, 16, 1024
_HEADER = (
    f"{'requests':>10}{'horizons':>10}{'plans':>11}{'steps':>11}{'start s':>9}{'cpu s':>9}{'wall s':>9}"
    f"{'steps/s':>10}{'plans/s':>9}{'requests/s':>12}{'peak MB':>9}"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One replay.

    Attributes:
      requests: served. horizon_steps: most steps in one plan. plans, steps: of the scheduler, of the device.
      virtual_s: simulated time. startup_s: wall time of imports, trace and engine.
      cpu_s, wall_s: of the replay. peak_bytes: largest resident memory of the process so far.
      events_sha256: of `events.jsonl`.
    """

    requests: int
    horizon_steps: int
    plans: int
    steps: int
    virtual_s: float
    startup_s: float
    cpu_s: float
    wall_s: float
    peak_bytes: int
    events_sha256: str

    def line(self) -> str:
        """As a line of the table; rates are over CPU time, which other processes disturb least."""
        horizons = "on" if self.horizon_steps > 1 else "off"
        return (
            f"{self.requests:>10,}{horizons:>10}{self.plans:>11,}{self.steps:>11,}{self.startup_s:>9.2f}"
            f"{self.cpu_s:>9.2f}{self.wall_s:>9.2f}{self.steps / self.cpu_s:>10,.0f}{self.plans / self.cpu_s:>9,.0f}"
            f"{self.requests / self.cpu_s:>12,.0f}{self.peak_bytes / 1e6:>9,.0f}"
        )


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_list("requests", ["20000"], "how many to replay; several sizes with commas", flag_values=own)
    flags.DEFINE_string("trace", None, "request log whose lengths are drawn from; Azure's unless set", flag_values=own)
    flags.DEFINE_string("out", None, "write the figures to this JSON file", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    sizes = [_size(text) for text in asked.requests]
    path = asked.trace or (str(TRACE) if TRACE.exists() else None)
    source = f"lengths drawn from {Path(path).name}" if path else "lengths drawn from the quantiles of Azure's trace"
    print(f"{MODEL} on {WAYS} {CHIP}, {RATE_RPS:g} requests/s; {source}, seed {SEED}")
    print(_HEADER)
    load_average = os.getloadavg()[0]  # before our own work raises it
    rows = []
    for requests, horizon_steps in ((sizes[0], HORIZON_STEPS), (sizes[0], 1), *((n, HORIZON_STEPS) for n in sizes[1:])):
        rows.append(_in_a_new_process(path, requests, horizon_steps))
        print(rows[-1].line(), flush=True)
    same = rows[0].events_sha256 == rows[1].events_sha256
    ratio = rows[1].cpu_s / rows[0].cpu_s
    print(f"horizons off takes {ratio:.1f} times as long; events {'identical' if same else 'DIFFER'}")
    if asked.out:
        from experiments.bench.host import machine

        figures = {
            "command": shlex.join(["python", *sys.argv]),
            "machine": machine(),
            "load_average_1_min": load_average,
            "load": source,
            "seed": SEED,
            "events_identical": same,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        command.write_json("--out", Path(asked.out), figures)
    return 0 if same else command.EXIT_FAILED


def _size(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--requests={text}: must be a number of requests, at least 1; several with commas")
    return int(text)


def _in_a_new_process(path: str | None, requests: int, horizon_steps: int) -> Row:
    """Whose peak memory is the replay's own, and whose caches are cold."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(measure, path, requests, horizon_steps).result()


def measure(path: str | None, requests: int, horizon_steps: int) -> Row:
    """Replays the load once, showing progress.

    Args:
      path: of the trace whose lengths are drawn from; None draws from the quantiles.
      requests: how many. horizon_steps: most steps in one plan.

    Raises:
      TraceError: a trace that cannot be read.
    """
    begun = time.perf_counter()
    from nanoserve.engine.types import to_seconds
    from nanoserve.report.progress import Progress

    engine = _engine(load_of(path, requests), horizon_steps)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    startup_s = wall_s - begun
    with Progress(requests, "requests") as progress:
        engine.run(observe=lambda done, now: progress.due() and progress.update(done, clock_s=to_seconds(now)))
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    digest = hashlib.sha256()
    for line in engine.log.event_lines():
        digest.update(line.encode())
    return Row(
        requests=engine.log.finished_count,
        horizon_steps=horizon_steps,
        plans=engine.log.plan_count(),
        steps=engine.scheduler.steps_planned,
        virtual_s=to_seconds(engine.clock.now()),
        startup_s=startup_s,
        cpu_s=cpu_s,
        wall_s=wall_s,
        peak_bytes=peak_bytes,
        events_sha256=digest.hexdigest(),
    )


def load_of(path: str | None, requests: int) -> "Trace":
    """Draws requests: pairs of lengths from the rows of a trace, arrivals from a Poisson process.

    Args:
      path: of the trace; None draws from the quantiles of Azure's. requests: how many.
    """
    import numpy as np

    from nanoserve.specs.model_registry import model
    from nanoserve.trace.arrivals import Poisson
    from nanoserve.trace.presets import twin
    from nanoserve.trace.readers import read_trace
    from nanoserve.trace.synth import synthesize

    rng = np.random.default_rng(SEED)
    if path is None:
        base, rows = synthesize(twin("azure_conversation", requests=requests), SEED), np.arange(requests)
    else:
        base = read_trace(path)
        rows = rng.integers(len(base), size=requests)
    output_tokens = base.output_tokens[rows]
    return dataclasses.replace(
        base,
        arrival_s=Poisson(rate_rps=RATE_RPS).times_s(requests, rng),
        prompt_tokens=np.minimum(base.prompt_tokens[rows], model(MODEL).max_context_tokens - output_tokens),
        output_tokens=output_tokens,
    ).validated()


def _engine(trace: "Trace", horizon_steps: int) -> "Engine":
    from nanoserve.building import build_engine
    from nanoserve.engine.clock import VirtualClock
    from nanoserve.engine.config import EngineConfig
    from nanoserve.engine.memory import SIMULATED
    from nanoserve.engine.types import to_ticks
    from nanoserve.executors.roofline_executor import RooflineExecutor
    from nanoserve.roofline.calibration import constants_for
    from nanoserve.roofline.memory import num_pages
    from nanoserve.specs.chip_registry import chip
    from nanoserve.specs.chips import ClusterSpec, Precision
    from nanoserve.specs.model_registry import model
    from nanoserve.trace.load import OpenLoop

    config = EngineConfig(
        max_seqs=MAX_SEQS,
        max_step_tokens=CHUNK_TOKENS,
        prefill_chunk_tokens=CHUNK_TOKENS,
        page_tokens=PAGE_TOKENS,
        max_horizon_steps=horizon_steps,
    )
    spec, cluster, precision = model(MODEL), ClusterSpec(chip=chip(CHIP), mesh={"tensor": WAYS}), Precision()
    pages = num_pages(
        spec,
        cluster,
        precision,
        page_tokens=PAGE_TOKENS,
        hbm_utilization=config.hbm_utilization,
        max_step_tokens=config.max_step_tokens,
        max_seqs=config.max_seqs,
    )
    executor = RooflineExecutor(spec, cluster, precision, constants_for(cluster.chip, precision, MODE))
    load = OpenLoop(trace, to_ticks)
    return build_engine(config, spec, trace, pages, executor, VirtualClock(), load, facts=SIMULATED)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
