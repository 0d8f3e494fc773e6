"""The experiments that are replayed: configs of this repository, as values, and the slice of each that fits a minute.

A machine with a chip may have no reader of config files, so the configs are written down here once more;
`tests/experiments/test_h100_replay.py` holds them equal to what the files load to. A slice changes how many requests
there are and how long their prompts, and keeps the tables that are compiled and allocated small; its record says what
it changed.

Next: `replay` (the part), `replay_run` (what runs them).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.bench.parts import Case
from experiments.bench.results_file import Record
from nanoserve.engine.config import EngineConfig
from nanoserve.experiment import Cluster, Experiment, SloConfig
from nanoserve.specs.chips import Precision
from nanoserve.trace.source import TraceSource

_CHAT = TraceSource(preset="azure_conversation", requests=2000, arrivals="poisson", rate_rps=5.0, seed=0)
_ENGINE = EngineConfig(max_seqs=256, max_step_tokens=2048, page_tokens=16)

LLAMA_8B = Experiment(
    name="llama8b_h100",
    model="llama-3.1-8b",
    cluster=Cluster(chip="h100_sxm", mesh={"tensor": 1}),
    engine=_ENGINE,
    trace=_CHAT,
    slo=SloConfig(name="llama3.1-8b"),
)
LLAMA_70B_INT4 = Experiment(
    name="llama70b_int4_h100x1",
    model="llama-3.1-70b",
    cluster=Cluster(chip="h100_sxm", mesh={"tensor": 1}),
    precision=Precision(weights="int4", kv="fp8", activations="bf16", compute="bf16"),
    engine=dataclasses.replace(_ENGINE, max_seqs=64, max_horizon_steps=128, hbm_utilization=0.79),
    trace=dataclasses.replace(_CHAT, rate_rps=0.625),
    slo=SloConfig(name="llama2-70b"),
)
TINY = Experiment(
    name="tiny_cpu",
    model="tiny-llama",
    cluster=Cluster(chip="cpu_2core", mesh={"tensor": 1}),
    precision=Precision(weights="f32", kv="f32", activations="f32", compute="f32"),
    engine=EngineConfig(
        max_seqs=4,
        max_step_tokens=128,
        max_context_tokens=256,
        max_horizon_steps=16,
        num_pages=512,
        page_tokens=16,
    ),
    trace=TraceSource(
        requests=24,
        arrivals="poisson",
        rate_rps=20.0,
        prompt_median_tokens=48.0,
        prompt_sigma=0.6,
        max_prompt_tokens=192,
        output_median_tokens=24.0,
        output_sigma=0.5,
        max_output_tokens=64,
        seed=0,
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayCase(Case):
    """A slice of an experiment.

    Attributes:
      whole: the experiment of the config. trace, engine: fields of those that the slice has otherwise.
      fields: likewise, of the experiment itself.
    """

    whole: Experiment
    trace: Mapping[str, Any]
    engine: Mapping[str, Any]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def experiment(self, chip: str) -> Experiment:
        """The slice, to be executed on a chip, which may be a larger one than the config's."""
        return dataclasses.replace(
            self.whole,
            executor="jax",
            cluster=dataclasses.replace(self.whole.cluster, chip=chip),
            trace=dataclasses.replace(self.whole.trace, **self.trace),
            engine=dataclasses.replace(self.whole.engine, **self.engine),
            **self.fields,
        )

    def sizes(self) -> Record:
        """Which config, and what the slice changes of it."""
        changed = {f"TraceSource.{name}": value for name, value in self.trace.items()}
        changed |= {f"Engine.{name}": value for name, value in self.engine.items()}
        changed |= {f"Experiment.{name}": value for name, value in self.fields.items()}
        return {"config": self.whole.name, "changed": changed}


def cases(toy: bool) -> Sequence[ReplayCase]:
    """The slices; half a minute of a chat service with 8B, and more than a minute of one with 70B in int4."""
    return [_TOY, _TOY_INT4] if toy else [_EIGHT, _SEVENTY]


# A loop of 64 steps is long enough to hide its call, and short enough to be timed by itself; slots and pages are what
# the slice needs at most, so that few programs are compiled and both models leave room for them.
_EIGHT = ReplayCase(
    name=LLAMA_8B.name,
    whole=LLAMA_8B,
    trace={"requests": 150, "max_prompt_tokens": 4096},
    engine={"max_seqs": 32, "num_pages": 4096, "max_horizon_steps": 64},
)
_SEVENTY = ReplayCase(
    name=LLAMA_70B_INT4.name,
    whole=LLAMA_70B_INT4,
    trace={"requests": 40, "max_prompt_tokens": 2048},
    engine={"max_seqs": 16, "num_pages": 2048, "max_horizon_steps": 64},
)
_TOY_TRACE = {"requests": 8, "max_prompt_tokens": 24, "max_output_tokens": 16}
_TOY_ENGINE = {"max_seqs": 2, "max_step_tokens": 8, "num_pages": 64, "max_horizon_steps": 8}
_TOY = ReplayCase(name=TINY.name, whole=TINY, trace=_TOY_TRACE, engine=_TOY_ENGINE)
_TOY_INT4 = ReplayCase(
    name=f"toy_{LLAMA_70B_INT4.name}",
    whole=LLAMA_70B_INT4,
    trace=_TOY_TRACE | {"rate_rps": 20.0},
    engine=_TOY_ENGINE,
    fields={"model": TINY.model},
)
