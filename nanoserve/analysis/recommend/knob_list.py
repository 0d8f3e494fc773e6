"""The knobs that a recommendation turns, in the order in which they are turned, and the values worth trying.

The order: what decides about memory first, then how steps are made, then who waits for whom. To add one, write a `Knob`
into `KNOBS`; what it sets are fields of a config, and nothing else has to know of it. Next: `search`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanoserve.analysis.recommend.knobs import Knob, Setting
from nanoserve.experiment import Experiment, model_of
from nanoserve.report.slo import resolve_slo
from nanoserve.roofline.memory import num_pages
from nanoserve.roofline.transfer import swap_seconds
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec
from nanoserve.specs.errors import CapacityError, ConfigError
from nanoserve.trace.types import Trace


def knobs_for(trace: Trace) -> list[Knob]:
    """The knobs that mean something for these requests."""
    return [knob for knob in KNOBS if knob.means(trace)]


def _each(key: str, values: list[str]) -> list[Setting]:
    return _values(key, values, str)


def _values(key: str, values: Sequence[Any], label: Callable[[Any], str]) -> list[Setting]:
    return [Setting(label=label(value), fields={key: value}) for value in values]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:g}"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _thousands(number: float) -> str:
    return f"{number:,.0f}"


def _or_none(number: int | None) -> str:
    return "none" if number is None else str(number)


def _divided(mesh: Mapping[str, int]) -> str:
    return f"{mesh.get('data', 1)} x {mesh.get('tensor', 1)}"


def _batch(now: Experiment, seqs: int) -> Setting:
    """Every running sequence needs a token of the step's budget."""
    budget = max(now.engine.max_step_tokens, seqs * now.engine.row_tokens)
    return Setting(label=str(seqs), fields={"Engine.max_seqs": seqs, "Engine.max_step_tokens": budget})


def _chunks(now: Experiment) -> list[Setting]:
    least = now.engine.max_seqs * now.engine.row_tokens
    return [
        Setting(
            label=_thousands(tokens), fields={"Engine.max_step_tokens": tokens, "Engine.prefill_chunk_tokens": None}
        )
        for tokens in (512, 1024, 2048, 4096, 8192, 16384)
        if tokens >= least
    ]


def _page(now: Experiment, tokens: int) -> Setting:
    """Pages of another size in the same memory."""
    fields: dict[str, Any] = {"Engine.page_tokens": tokens}
    if now.engine.num_pages is not None:
        fields["Engine.num_pages"] = max(1, now.engine.num_pages * now.engine.page_tokens // tokens)
    return Setting(label=str(tokens), fields=fields)


def _planned_memory(now: Experiment) -> list[Setting]:
    """Nothing to choose where the number of pages is set by hand."""
    if now.engine.num_pages is not None:
        return []
    return _values("Engine.hbm_utilization", (0.8, 0.85, 0.9, 0.95), _percent)


def _preemptions(now: Experiment) -> list[Setting]:
    """Swapping needs a published host link."""
    try:
        spec = ClusterSpec(chip=chip(now.cluster.chip), mesh=now.cluster.mesh)
        swap_seconds(model_of(now.model), spec, now.precision, 1)
    except ConfigError:
        return []
    return _each("Engine.preemption", ["recompute", "swap", "cheaper"])


def _orders(now: Experiment) -> list[Setting]:
    """A deadline is when the objective wants a first token."""
    plain = [
        Setting(label=name.replace("_", " "), fields={"Engine.policy": name, "Engine.deadline_s": None})
        for name in ("fcfs", "shortest_first")
    ]
    slo = resolve_slo(now.slo.name, now.slo.ttft_s, now.slo.tpot_s)
    if slo is None:
        return plain
    due = {"Engine.policy": "deadline", "Engine.deadline_s": slo.ttft_s}
    return [*plain, Setting(label="deadline", fields=due)]


def _meshes(now: Experiment) -> list[Setting]:
    """The same chips as more or fewer replicas, where the weights fit and the pool is not set by hand."""
    mesh = now.cluster.mesh
    chips = mesh.get("data", 1) * mesh.get("tensor", 1)
    if now.engine.num_pages is not None or set(mesh) - {"data", "tensor"} or now.disaggregation.decode_mesh is not None:
        return []
    divided = [{"data": chips // ways, "tensor": ways} for ways in (1, 2, 4, 8, 16) if chips % ways == 0]
    return [Setting(label=_divided(each), fields={"Cluster.mesh": each}) for each in divided if _fits(now, each)]


def _fits(now: Experiment, mesh: Mapping[str, int]) -> bool:
    engine = now.engine
    try:
        num_pages(
            model_of(now.model),
            ClusterSpec(chip=chip(now.cluster.chip), mesh=mesh),
            now.precision,
            page_tokens=engine.page_tokens,
            hbm_utilization=engine.hbm_utilization,
            max_step_tokens=engine.max_step_tokens,
            max_seqs=engine.max_seqs,
        )
    except (CapacityError, ConfigError):
        return False
    return True


KNOBS = (
    Knob(
        name="allocator",
        subject="How KV memory is handed out",
        settings=lambda now: _each("Engine.allocator", ["paged", "contiguous"]),
        evidence=("causes.contiguous_allocation", "usage.memory", "failures.memory"),
        axis="allocator",
    ),
    Knob(
        name="when_full",
        subject="What happens when the memory is full",
        settings=lambda now: _each("Engine.when_full", ["wait", "fail"]),
        evidence=("causes.no_admission_control", "failures.memory", "failures.kinds"),
        axis="when memory is full",
        safer="wait",
    ),
    Knob(
        name="mesh",
        subject="How the chips are divided",
        settings=_meshes,
        label=_divided,
        evidence=("usage.machine.hours", "failures.replicas"),
        axis="replicas x chips of each",
    ),
    Knob(
        name="memory",
        subject="Device memory that is planned with",
        settings=_planned_memory,
        label=_percent,
        evidence=("usage.memory", "usage.machine.hours"),
        axis="share of device memory",
    ),
    Knob(
        name="interval",
        subject="The scheduling interval",
        settings=lambda now: _values("Engine.interval_s", (0.0, 0.001, 0.005, 0.01, 0.02, 0.05), _milliseconds),
        label=_milliseconds,
        evidence=("causes.slow_interval", "anatomy.arrivals.gaps"),
        axis="scheduling interval (ms)",
    ),
    Knob(
        name="batch",
        subject="The batch size",
        settings=lambda now: [_batch(now, seqs) for seqs in (16, 32, 64, 128, 256, 512)],
        evidence=("causes.few_slots", "usage.machine.hours", "failures.queue"),
        axis="most sequences at once",
    ),
    Knob(
        name="chunk",
        subject="Prompt tokens in one step",
        settings=_chunks,
        label=_thousands,
        evidence=("anatomy.lengths.prompt", "usage.machine.load"),
        axis="token budget of a step",
    ),
    Knob(
        name="page",
        subject="The page size",
        settings=lambda now: [_page(now, tokens) for tokens in (8, 16, 32, 64, 128)],
        evidence=("usage.blocks",),
        axis="tokens in a page",
    ),
    Knob(
        name="headroom",
        subject="Memory kept free when a request starts",
        settings=lambda now: _values("Engine.free_page_watermark", (0.0, 0.01, 0.05, 0.1), _percent),
        label=_percent,
        evidence=("usage.memory", "failures.memory"),
        axis="share of the pages kept free",
    ),
    Knob(
        name="preemption",
        subject="What becomes of a victim's KV",
        settings=_preemptions,
        evidence=("usage.memory", "failures.memory"),
        axis="preemption",
    ),
    Knob(
        name="order",
        subject="Who is next in the queue",
        settings=_orders,
        evidence=("failures.queue", "anatomy.lengths.prompt"),
        axis="order of the queue",
    ),
    Knob(
        name="admission",
        subject="The limit of the queue",
        settings=lambda now: _values("Engine.queue_limit", (None, 512, 128, 32, 8), _or_none),
        label=_or_none,
        evidence=("causes.no_admission_control", "failures.queue", "anatomy.arrivals.dispersion"),
        axis="most requests waiting",
    ),
    Knob(
        name="kept_sessions",
        subject="How long a conversation's KV is kept for its next turn",
        settings=lambda now: _values("Engine.keep_session_s", (0.0, 30.0, 120.0, 600.0, 1800.0), _thousands),
        label=_thousands,
        evidence=("anatomy.sessions.gaps", "anatomy.sessions.growth"),
        means=lambda trace: trace.session is not None,
        axis="KV of a turn kept (s)",
    ),
    Knob(
        name="prefix_cache",
        subject="Whether known prefixes are found again",
        settings=lambda now: _each("Engine.prefix_cache", ["off", "lru", "cost"]),
        evidence=("anatomy.prefix",),
        means=lambda trace: trace.prefix_hashes is not None,
        axis="prefix cache, and what it evicts first",
    ),
)
"""All there are."""
