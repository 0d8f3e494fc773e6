"""What one experiment is: every choice a config makes, as frozen dataclasses, and the facts they name.

A config file sets fields of the classes in `CONFIG_CLASSES`; `nanoserve.specs.config.load` checks them and builds an
`Experiment`; `resolve` looks the names up. Nothing here reads files or imports JAX, so a mistake is reported at once.
Next: `nanoserve.replay`, which runs an experiment.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from nanoserve.engine import policy
from nanoserve.engine.types import EngineConfig
from nanoserve.report.slo import Slo, resolve_slo
from nanoserve.roofline.split import AXES
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import BYTES_PER_ELEMENT, ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError, nearest
from nanoserve.specs.huggingface import read_config
from nanoserve.specs.model_registry import model
from nanoserve.specs.models import ModelSpec
from nanoserve.trace.source import TraceSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Chips of one kind in a mesh; the product of the axes is their number.

    Attributes:
      chip: registry name. mesh: axis -> size; `tensor`, `expert` and `pipeline` are priced (`roofline.split`), only
        `tensor` is executed.
    """

    chip: str = "h100_sxm"
    mesh: dict[str, int] = dataclasses.field(default_factory=lambda: {"tensor": 1})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen when they are really generated.

    Attributes:
      temperature: 0 is greedy. top_k: 0 is off. top_p: 1 is off. min_p: 0 is off.
      ignore_eos: generate every token the trace asks for, as benchmarks do.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    ignore_eos: bool = True

    def __post_init__(self):
        limits = {"temperature": (0, 100), "top_k": (0, 10**9), "top_p": (1e-9, 1), "min_p": (0, 1)}
        for field, (low, high) in limits.items():
            if not low <= getattr(self, field) <= high:
                raise ConfigError(f"Sampling.{field} = {getattr(self, field)}: must be between {low:g} and {high:g}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pricing:
    """How a simulated step is priced.

    Attributes:
      mode: `sol` at datasheet limits, `calibrated` with fitted constants, `table` with measured operations looked up.
      stack: whose kernels the constants are of: `vllm`, `tensorrt_llm`, ...; `auto` is what the chip is calibrated for.
      table: folder of measured operations, for mode `table`; they are not ours to ship.
    """

    mode: Literal["sol", "calibrated", "table"] = "calibrated"
    stack: str = "auto"
    table: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SloConfig:
    """A named objective (MLPerf), or limits in seconds; all None for none."""

    name: str | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment.

    Attributes:
      name: title of its reports.
      model: registry name, or path of a Hugging Face folder or `config.json`. weights: a path, `package:NAME`, or None
      for random weights.
      seed: of random weights, sampling keys and prompts that a trace does not state.
      executor: `auto` executes where the chips are present and the model fits, and simulates elsewhere.
      attention: implementation of paged attention when executed: `auto` is the chip's kernel where it serves the model,
        else `xla`; a name is never replaced.
      cluster, precision, engine, trace, sampling, pricing, slo: see their classes.
    """

    name: str = "experiment"
    model: str = "llama-3.1-8b"
    weights: str | None = None
    seed: int = 0
    executor: Literal["auto", "jax", "roofline"] = "auto"
    attention: str = "auto"
    cluster: Cluster = Cluster()
    precision: Precision = Precision()
    engine: EngineConfig = EngineConfig()
    trace: TraceSource = TraceSource()
    sampling: Sampling = Sampling()
    pricing: Pricing = Pricing()
    slo: SloConfig = SloConfig()


CONFIG_CLASSES: Mapping[str, type] = {
    "Experiment": Experiment,
    "Cluster": Cluster,
    "Precision": Precision,
    "Engine": EngineConfig,
    "TraceSource": TraceSource,
    "Sampling": Sampling,
    "Pricing": Pricing,
    "Slo": SloConfig,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What an experiment's names stand for."""

    model: ModelSpec
    cluster: ClusterSpec
    slo: Slo | None


def model_of(name_or_path: str) -> ModelSpec:
    """A model of the registry, or the one that a Hugging Face `config.json`, or the folder that holds it, describes.

    Raises:
      ConfigError: no such name. WeightsError: a config that cannot be read.
    """
    if "/" in name_or_path or name_or_path.endswith(".json"):
        return read_config(name_or_path)
    return model(name_or_path)


def resolve(experiment: Experiment) -> Facts:
    """Looks up the model, the chip and the objective, and checks that the engine's policies exist.

    Raises:
      ConfigError: a name that does not exist, with the nearest that does; a mesh or dtype that cannot be.
    """
    _check_mesh(experiment.cluster.mesh)
    policy.check(experiment.engine)
    for field in dataclasses.fields(Precision):
        dtype = getattr(experiment.precision, field.name)
        if dtype not in BYTES_PER_ELEMENT:
            raise ConfigError(f"Precision.{field.name} = '{dtype}': no such dtype.{nearest(dtype, BYTES_PER_ELEMENT)}")
    slo = experiment.slo
    return Facts(
        model=model_of(experiment.model),
        cluster=ClusterSpec(chip=chip(experiment.cluster.chip), mesh=experiment.cluster.mesh),
        slo=resolve_slo(slo.name, slo.ttft_s, slo.tpot_s),
    )


def _check_mesh(mesh: Mapping[str, int]) -> None:
    if mesh.get("data", 1) > 1:
        raise ConfigError(
            f"Cluster.mesh = {mesh}: a replica is an engine of its own, and one engine is replayed. Leave 'data' out "
            "and divide TraceSource.rate_rps by it"
        )
    for axis, size in mesh.items():
        if axis not in AXES:
            raise ConfigError(f"Cluster.mesh: no axis '{axis}' is priced or executed.{nearest(axis, AXES)}")
        if size < 1:
            raise ConfigError(f"Cluster.mesh: axis '{axis}' has size {size}; must be at least 1")
