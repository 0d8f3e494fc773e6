"""Runs many short requests through the real engine and watches what it holds on to.

    python experiments/bench/soak.py
    python experiments/bench/soak.py --requests=100000 --out=experiments/bench/results/soak_tiny_cpu.json

The model and the chip are those of `--config` (tiny_cpu), under a closed loop that keeps twice as many clients as there
are slots. After the first tenth of the requests, which is the warm-up: nothing may compile, the number of live device
arrays may not change, and resident memory may not grow by 1%. Records of requests that left are in a file meanwhile.

Exit code 0: all three hold. 1: one does not; the line says which. 2: something the user can mend.
"""

import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments import command
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    from nanoserve.experiment import Experiment

REPOSITORY = Path(__file__).resolve().parents[2]
WARM_UP_SHARE, SAMPLES, GROWTH_LIMIT = 0.1, 100, 0.01
SLOTS = 32
SHORT = {
    "TraceSource.loop": "closed",
    "TraceSource.clients": 2 * SLOTS,
    "TraceSource.prompt_median_tokens": 8.0,
    "TraceSource.max_prompt_tokens": 24,
    "TraceSource.output_median_tokens": 4.0,
    "TraceSource.max_output_tokens": 12,
    "Engine.max_seqs": SLOTS,
    "Engine.max_step_tokens": 128,
    "Engine.max_context_tokens": 64,
}
COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """The process when so many requests had left.

    Attributes:
      requests: that left. resident_bytes: of the process. live_arrays: arrays that JAX holds.
      compiled: programs compiled since the process began.
    """

    requests: int
    resident_bytes: int
    live_arrays: int
    compiled: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soak:
    """What a run held on to, after its warm-up.

    Attributes:
      samples: the first is taken at the end of the warm-up. requests: that were served in all.
    """

    samples: tuple[Sample, ...]
    requests: int

    @property
    def growth(self) -> float:
        """Of resident memory, from the end of the warm-up to the largest sample after it."""
        first, *_ = self.samples
        return max(sample.resident_bytes for sample in self.samples) / first.resident_bytes - 1

    def faults(self) -> list[str]:
        """What does not hold."""
        first, last = self.samples[0], self.samples[-1]
        arrays = {sample.live_arrays for sample in self.samples}
        return [
            *([f"{last.compiled - first.compiled} programs compiled"] if last.compiled != first.compiled else []),
            *([f"live arrays between {min(arrays)} and {max(arrays)}"] if len(arrays) > 1 else []),
            *([f"resident memory grew by {self.growth:.2%}"] if self.growth >= GROWTH_LIMIT else []),
        ]


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("config", "tiny_cpu", "whose model and chip", flag_values=own)
    flags.DEFINE_integer("requests", 100_000, "how many to serve", lower_bound=SAMPLES, flag_values=own)
    flags.DEFINE_string("out", None, "write the figures to this JSON file", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    soaked = soak(experiment_of(asked.config, asked.requests))
    first, last = soaked.samples[0], soaked.samples[-1]
    faults = soaked.faults()
    print(
        f"{soaked.requests:,} requests; after the first {first.requests:,}: resident memory "
        f"{first.resident_bytes / 1e6:,.1f} MB, at most {soaked.growth:+.2%} since; {last.live_arrays} live arrays; "
        f"{last.compiled - first.compiled} programs compiled"
    )
    print("holds on to nothing" if not faults else f"FAULT: {'; '.join(faults)}")
    if asked.out:
        from experiments.bench.host import machine

        figures = {
            "command": shlex.join(["python", *sys.argv]),
            "machine": machine(),
            "requests": soaked.requests,
            "growth": soaked.growth,
            "faults": faults,
            "samples": [dataclasses.asdict(sample) for sample in soaked.samples],
        }
        command.write_json("--out", Path(asked.out), figures)
    return command.EXIT_FAILED if faults else 0


def experiment_of(config: str, requests: int) -> "Experiment":
    """The config's experiment with many short requests.

    Raises:
      ConfigError: no such config.
    """
    from nanoserve.experiment import CONFIG_CLASSES
    from nanoserve.specs.config import load
    from nanoserve.specs.config import resolve as resolve_config

    overrides = [f"{field}={value!r}" for field, value in {**SHORT, "TraceSource.requests": requests}.items()]
    return load(resolve_config(config, REPOSITORY / "configs"), CONFIG_CLASSES, "Experiment", overrides).value


def soak(experiment: "Experiment") -> Soak:
    """Runs an experiment and samples the process, showing progress.

    Raises:
      ConfigError: it would be simulated. CapacityError, TraceError, WeightsError: as in `replay.prepare`.
    """
    import jax

    from nanoserve.replay import prepare
    from nanoserve.report.progress import Progress

    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    replay = prepare(experiment)
    if replay.choice.executor != "jax":
        raise ConfigError(f"a soak wants a run that is executed, and this one is {replay.choice.line}")
    for _ in replay.warm_up():
        pass
    requests, samples = len(replay.trace), []
    due = [round(requests * (WARM_UP_SHARE + (1 - WARM_UP_SHARE) * k / SAMPLES)) for k in range(SAMPLES)]
    with Progress(requests, "requests") as progress:

        def observe(done: int, now_ticks: int) -> None:
            if len(samples) < len(due) and done >= due[len(samples)]:
                samples.append(
                    Sample(
                        requests=done,
                        resident_bytes=resident_bytes(),
                        live_arrays=len(jax.live_arrays()),
                        compiled=len(compiled),
                    )
                )
                progress.update(done, resident_mb=round(samples[-1].resident_bytes / 1e6))

        replay.run(observe=observe)
    served = replay.engine.log.finished_count
    if not samples or not compiled:
        raise RuntimeError("nothing was sampled, or nothing was seen to compile: the soak itself is broken")
    return Soak(samples=tuple(samples), requests=served)


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
