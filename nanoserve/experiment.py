"""What one experiment is: every choice a config makes, as frozen dataclasses, and the facts they name.

A config file sets fields of the classes in `CONFIG_CLASSES`; `nanoserve.specs.config.load` checks them and builds an
`Experiment`; `resolve` looks the names up. Nothing here reads files or imports JAX, so a mistake is reported at once.
Next: `nanoserve.replay`, which runs an experiment.
"""

import dataclasses
import datetime
import math
import typing
from collections.abc import Mapping
from typing import Literal

from nanoserve.engine import policy, routing
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.faults import Leak
from nanoserve.report.slo import Slo, resolve_slo
from nanoserve.roofline.split import AXES
from nanoserve.specs import literals
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import BYTES_PER_ELEMENT, ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError, nearest
from nanoserve.specs.huggingface import read_config
from nanoserve.specs.model_registry import model
from nanoserve.specs.models import ModelSpec, check_draft
from nanoserve.trace.source import TraceSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Chips of one kind in a mesh; the product of the axes is their number.

    Attributes:
      chip: registry name. mesh: axis -> size, of the axes of `roofline.split`.
      expert_divides: what the axis `expert` divides besides experts: `sequences`, which is priced only, or `heads` as
        `tensor` does, which is executed, too.
    """

    chip: str = "h100_sxm"
    mesh: dict[str, int] = dataclasses.field(default_factory=lambda: {"tensor": 1})
    expert_divides: Literal["sequences", "heads"] = "sequences"


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
class FleetConfig:
    """How replicas share a load, where `Cluster.mesh` has an axis `data`.

    Attributes:
      router: who serves a request, by its name in `engine.routing`.
    """

    router: str = "least_loaded"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshots:
    """When a run keeps its state, so that `run.py --resume` goes on after it was killed.

    Attributes:
      interval_s: seconds of the run's own clock between two snapshots; None takes none.
      keep: how many of the newest stay on the disk.
      mtbf_s: mean time between failures of the machine; with it a run says which interval would cost least.
    """

    interval_s: float | None = None
    keep: int = 1
    mtbf_s: float | None = None

    def __post_init__(self):
        for field in ("interval_s", "mtbf_s"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"Snapshots.{field} = {value}: must be positive and finite, or None for none")
        if self.keep < 1:
            raise ConfigError(f"Snapshots.keep = {self.keep}: must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceLogs:
    """Logs as a production service would have left them (`report.service_logs`), beside a run's own records.

    Attributes:
      start: date of the run's time 0 in UTC, such as `2026-03-02`, which is a Monday; None writes no such logs.
      bucket_s: seconds that one row of telemetry stands for.
    """

    start: str | None = None
    bucket_s: float = 60.0

    def __post_init__(self):
        if not 0 < self.bucket_s < math.inf:
            raise ConfigError(f"ServiceLogs.bucket_s = {self.bucket_s}: must be positive and finite")
        if self.start is not None:
            try:
                datetime.date.fromisoformat(self.start)
            except ValueError:
                raise ConfigError(
                    f"ServiceLogs.start = '{self.start}': must be a date such as '2026-03-02', or None for no logs"
                ) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """Faults that are planted in a simulated run, so that whoever looks for causes can be held to the truth.

    Attributes:
      leak_every: of so many requests that leave an engine, one never gives back `leak_pages` of its pages; None for no
        leak. leak_pages: how many.
      slow_replica: number of a replica all of whose steps take `slow_factor` times as long, like a chip that throttles;
        None for none; a single engine is replica 0. slow_factor: more than 1 where there is one.
    """

    leak_every: int | None = None
    leak_pages: int = 1
    slow_replica: int | None = None
    slow_factor: float = 1.0

    def __post_init__(self):
        if self.leak_every is not None and self.leak_every < 1:
            raise ConfigError(f"Faults.leak_every = {self.leak_every}: must be at least 1, or None for no leak")
        if self.leak_pages < 1:
            raise ConfigError(f"Faults.leak_pages = {self.leak_pages}: must be at least 1")
        if not 1 <= self.slow_factor < math.inf or (self.slow_factor > 1) != (self.slow_replica is not None):
            raise ConfigError(
                f"Faults.slow_factor = {self.slow_factor} with Faults.slow_replica = {self.slow_replica}: the factor "
                "must be finite, more than 1 where a replica is slow, and 1 where none is"
            )

    @property
    def leak(self) -> Leak | None:
        """How pages leak."""
        return None if self.leak_every is None else Leak(every=self.leak_every, pages=self.leak_pages)

    @property
    def line(self) -> str:
        """What is planted, for every output; empty where nothing is."""
        parts = []
        if self.leak_every is not None:
            parts.append(f"one of every {self.leak_every} requests that leave loses {self.leak_pages} of its pages")
        if self.slow_replica is not None:
            parts.append(f"steps of replica {self.slow_replica} take {self.slow_factor:g} times as long")
        return f"planted: {'; '.join(parts)}" if parts else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disaggregation:
    """Decoding in a pool of its own; `Cluster` and `Engine` are then the prefill pool's.

    Attributes:
      decode_mesh: of the decode pool, as in `Cluster.mesh`; None means that one pool does both.
      decode_chip: registry name; None means that of `Cluster.chip`.
      decode_engine: fields of `Engine` that are different in the decode pool, by name.
      decode_router: who decodes a request, by its name in `engine.routing`.
      overlap: `layers`: the KV of a layer leaves while the next is computed; `none`: when the prompt is done.
    """

    decode_mesh: dict[str, int] | None = None
    decode_chip: str | None = None
    decode_engine: dict[str, int | float | str | bool | None] = dataclasses.field(default_factory=dict)
    decode_router: str = "least_loaded"
    overlap: Literal["none", "layers"] = "none"

    def __post_init__(self):
        if self.decode_mesh is None and (self.decode_chip is not None or self.decode_engine):
            raise ConfigError(
                "Disaggregation.decode_chip and decode_engine mean nothing without Disaggregation.decode_mesh: chips "
                "for the decode pool"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment.

    Attributes:
      name: title of its reports.
      model: registry name, or path of a Hugging Face folder or `config.json`. weights: a path, `package:NAME`, or None
      for random weights.
      seed: of random weights, sampling keys and prompts that a trace does not state.
      draft_model, draft_weights: the model that guesses where `Engine.draft` is `model`, and its weights, named like
        the others; it has the target's vocabulary, precision and chips.
      executor: `auto` executes where the chips are present and the model fits, and simulates elsewhere.
      attention: implementation of paged attention when executed: `auto` is the chip's kernel where it serves the model,
        else `xla`; a name is never replaced.
      cluster, precision, engine, trace, sampling, pricing, slo, fleet, disaggregation, snapshots, service_logs,
        faults: see their classes.
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
    fleet: FleetConfig = FleetConfig()
    disaggregation: Disaggregation = Disaggregation()
    snapshots: Snapshots = Snapshots()
    service_logs: ServiceLogs = ServiceLogs()
    faults: Faults = Faults()
    draft_model: str | None = None
    draft_weights: str | None = None


CONFIG_CLASSES: Mapping[str, type] = {
    "Experiment": Experiment,
    "Cluster": Cluster,
    "Precision": Precision,
    "Engine": EngineConfig,
    "TraceSource": TraceSource,
    "Sampling": Sampling,
    "Pricing": Pricing,
    "Slo": SloConfig,
    "Fleet": FleetConfig,
    "Disaggregation": Disaggregation,
    "Snapshots": Snapshots,
    "ServiceLogs": ServiceLogs,
    "Faults": Faults,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What an experiment's names stand for."""

    model: ModelSpec
    cluster: ClusterSpec
    slo: Slo | None
    draft: ModelSpec | None = None
    decode: "DecodeFacts | None" = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeFacts:
    """The decode pool of a disaggregated experiment."""

    cluster: ClusterSpec
    engine: EngineConfig


def model_of(name_or_path: str) -> ModelSpec:
    """A model of the registry, or the one that a Hugging Face `config.json`, or the folder that holds it, describes.

    Raises:
      ConfigError: no such name. WeightsError: a config that cannot be read.
    """
    if "/" in name_or_path or name_or_path.endswith(".json"):
        return read_config(name_or_path)
    return model(name_or_path)


def resolve(experiment: Experiment) -> Facts:
    """Looks up the model, the chip and the objective, and checks that policies and routers exist.

    Raises:
      ConfigError: a name that does not exist, with the nearest that does; a mesh or dtype that cannot be.
    """
    _check_mesh(experiment.cluster.mesh)
    policy.check(experiment.engine)
    routing.route(experiment.fleet.router)
    for field in dataclasses.fields(Precision):
        dtype = getattr(experiment.precision, field.name)
        if dtype not in BYTES_PER_ELEMENT:
            raise ConfigError(f"Precision.{field.name} = '{dtype}': no such dtype.{nearest(dtype, BYTES_PER_ELEMENT)}")
    _check_faults(experiment)
    slo, target = experiment.slo, model_of(experiment.model)
    return Facts(
        model=target,
        draft=_draft_of(experiment, target),
        cluster=ClusterSpec(
            chip=chip(experiment.cluster.chip),
            mesh=experiment.cluster.mesh,
            expert_divides=experiment.cluster.expert_divides,
        ),
        slo=resolve_slo(slo.name, slo.ttft_s, slo.tpot_s),
        decode=_decode_of(experiment),
    )


def _decode_of(experiment: Experiment) -> DecodeFacts | None:
    """The decode pool, if there is one."""
    asked, cluster = experiment.disaggregation, experiment.cluster
    if asked.decode_mesh is None:
        return None
    _check_mesh(asked.decode_mesh, "Disaggregation.decode_mesh")
    routing.route(asked.decode_router, "Disaggregation.decode_router")
    engine = _decode_engine(experiment)
    policy.check(engine)
    if experiment.engine.keep_session_s or engine.keep_session_s:
        raise ConfigError(
            "Engine.keep_session_s does not go with Disaggregation: what a session wrote is in the decode pool, and "
            "its next turn begins in the prefill pool. Use Engine.prefix_cache"
        )
    if engine.page_tokens != experiment.engine.page_tokens:
        raise ConfigError(
            f"Disaggregation.decode_engine['page_tokens'] = {engine.page_tokens} and Engine.page_tokens = "
            f"{experiment.engine.page_tokens}: pages go from one pool to the other as they are. Make them equal"
        )
    if "model" in (experiment.engine.draft, engine.draft):
        raise ConfigError(
            "Engine.draft = 'model' does not go with Disaggregation: the draft model's KV is not handed over. Use "
            "'ngram' in Disaggregation.decode_engine"
        )
    spec = ClusterSpec(
        chip=chip(asked.decode_chip or cluster.chip), mesh=asked.decode_mesh, expert_divides=cluster.expert_divides
    )
    return DecodeFacts(cluster=spec, engine=engine)


def _decode_engine(experiment: Experiment) -> EngineConfig:
    """`Experiment.engine` with the fields that differ, checked as the config loader checks its own."""
    hints, values = typing.get_type_hints(EngineConfig), {}
    for name, value in experiment.disaggregation.decode_engine.items():
        if name not in hints:
            raise ConfigError(f"Disaggregation.decode_engine: Engine has no field '{name}'.{nearest(name, hints)}")
        if not literals.fits(value, hints[name]):
            wanted = literals.describe(hints[name])
            raise ConfigError(f"Disaggregation.decode_engine['{name}'] = {value!r}: wanted {wanted}")
        values[name] = literals.fit(value, hints[name])
    return dataclasses.replace(experiment.engine, **values)


def _draft_of(experiment: Experiment, target: ModelSpec) -> ModelSpec | None:
    """The draft model, which is named if and only if it is used."""
    name, wanted = experiment.draft_model, experiment.engine.draft == "model"
    if wanted and name is None:
        raise ConfigError("Engine.draft = 'model' needs Experiment.draft_model: who guesses")
    if not wanted and (name is not None or experiment.draft_weights is not None):
        raise ConfigError(
            f"Experiment.draft_model = {name!r} guesses nothing with Engine.draft = '{experiment.engine.draft}'; "
            "set that to 'model', or leave the draft model out"
        )
    if name is None:
        return None
    draft = model_of(name)
    check_draft(target, draft)
    return draft


def _check_faults(experiment: Experiment) -> None:
    faults, replicas = experiment.faults, experiment.cluster.mesh.get("data", 1)
    if faults.line and experiment.disaggregation.decode_mesh is not None:
        raise ConfigError(
            "Faults are planted in a single engine or in replicas that are alike: leave Disaggregation off"
        )
    if faults.slow_replica is not None and not 0 <= faults.slow_replica < replicas:
        raise ConfigError(
            f"Faults.slow_replica = {faults.slow_replica}: Cluster.mesh has {replicas} replicas, numbered from 0"
        )


def _check_mesh(mesh: Mapping[str, int], field: str = "Cluster.mesh") -> None:
    for axis, size in mesh.items():
        if axis not in AXES:
            raise ConfigError(f"{field}: no axis '{axis}' is priced or executed.{nearest(axis, AXES)}")
        if size < 1:
            raise ConfigError(f"{field}: axis '{axis}' has size {size}; must be at least 1")
