"""A published row becomes a scenario, or the reason why it cannot.

What a row leaves out (precision of a row that states none, number of prompts, layout of an MLPerf system) is decided
here, in tables that say why. Invariant: nothing here reads the times that a row measured.
Next: `comparison`.
"""

import dataclasses
import functools
import re

import numpy as np

from nanoserve.analysis.published.capacity import Limits
from nanoserve.analysis.published.results import PublishedRow
from nanoserve.analysis.published.scenario import Scenario
from nanoserve.analysis.published.stacks import Stack, stack_of
from nanoserve.specs.chip_registry import chip, chip_names
from nanoserve.specs.chips import ChipSpec, ClusterSpec, Precision
from nanoserve.specs.model_registry import model
from nanoserve.specs.models import ModelSpec
from nanoserve.trace.lengths import LogNormal
from nanoserve.trace.types import Trace

SEED = 20240917
_BF16, _FP8 = Precision(), Precision(weights="fp8", compute="fp8")
_FP8_ALL = dataclasses.replace(_FP8, kv="fp8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A published row that can be replayed.

    Attributes:
      row: what was measured. source: its publisher, in a word or two. stack: whose constants price it.
      scenario: what to replay, on one replica. replicas: how many of those the measured system was.
      limits: the row is the highest rate within them, rather than one run; None for the latter.
      caveat: why its error says nothing about the stack's constants of today; empty where it does.
    """

    row: PublishedRow
    source: str
    stack: str
    scenario: Scenario
    replicas: int = 1
    limits: Limits | None = None
    caveat: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NotReplayed:
    """A published row that cannot be replayed, and why."""

    row: PublishedRow
    source: str
    reason: str


class _Cannot(Exception):
    """Carries the reason out of the depth; never leaves this module."""


def case_of(row: PublishedRow) -> Case | NotReplayed:
    """Returns how a row is replayed, or why it is not."""
    source = source_name(row)
    try:
        return _case(row, source)
    except _Cannot as reason:
        return NotReplayed(row=row, source=source, reason=str(reason))


_SOURCES = (
    (r"aiconfigurator", "aiconfigurator"),
    (r"TensorRT-LLM docs", "TensorRT-LLM 0.17"),
    (r"TensorRT-LLM release", "TensorRT-LLM 0.5"),
    (r"MLPerf", "MLPerf v4.1"),
    (r"tpu-recipes", "tpu-recipes"),
    (r"splitwise", "splitwise"),
    (r"nim", "NIM"),
    (r"(buildkite|performance-benchmark)", "vLLM CI"),
)


def source_name(row: PublishedRow) -> str:
    """Who published a row, in a word or two."""
    return next((name for pattern, name in _SOURCES if re.search(pattern, row.source)), row.source)


# ---- the parts of a case ----


def _case(row: PublishedRow, source: str) -> Case:
    stack = stack_of(row.engine) if source != "splitwise" else stack_of("vllm 0.2")
    if stack is None:
        raise _Cannot(f"the stack '{row.engine}' is not known")
    the_chip, precision = _chip(row), _precision(row)
    cluster, replicas = _layout(row, the_chip)
    asked = _asked(row, source)
    scenario = Scenario(
        model=_model(row),
        cluster=cluster,
        precision=precision,
        engine=_engine(row, stack, the_chip, asked),
        trace=asked.trace,
        clients=asked.clients,
        served=asked.clients is not None or row.mode == "MLPerf Server",
        reserve_outputs=stack.reserve_outputs,
        free_share=stack.free_share,
    )
    return Case(
        row=row,
        source=source,
        stack=stack.name,
        scenario=scenario,
        replicas=replicas,
        limits=_MLPERF_LIMITS if row.mode == "MLPerf Server" else None,
        caveat=_CAVEATS.get(source, ""),
    )


_MLPERF_LIMITS = Limits(ttft_s=2.0, tpot_s=0.2)  # MLPerf Inference v4.1, llama2-70b, Server: at the 99th percentile
_CAVEATS = {
    "splitwise": "a stack of 2023, without CUDA graphs",
    "TensorRT-LLM 0.5": "a stack of 2023",
}


_CHIPS = (
    (r"maxq", "its power is capped"),
    (r"gh200", "no chip of that name in the registry"),
    (r"h100[_ ]nvl", "no chip of that name in the registry"),
    (r"pcap", "its power is capped"),
    (r"^esc\d+a", "its name does not say which H100 it has"),
    (r"tpu v7", "tpu_v7x"),
    (r"tpu v6e", "tpu_v6e"),
    (r"h200", "h200_sxm"),
    (r"h100", "h100_sxm"),
    (r"a100", "a100_sxm_80gb"),
)


def _chip(row: PublishedRow) -> ChipSpec:
    name = next((name for pattern, name in _CHIPS if re.search(pattern, row.hardware.lower())), "it is not known here")
    if name not in chip_names():
        raise _Cannot(f"hardware '{row.hardware}': {name}")
    return chip(name)


_MODELS = {
    "Llama-2-70B": "llama-2-70b",
    "Llama-3-70B": "llama-3.1-70b",
    "Llama-3.1-70B": "llama-3.1-70b",
    "Llama-3.3-70B": "llama-3.3-70b",
    "Llama-70B": "llama-2-70b",
    "Llama-3.1-8B": "llama-3.1-8b",
    "Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "Qwen3-32B": "qwen3-32b",
}


def _model(row: PublishedRow) -> ModelSpec:
    if row.model not in _MODELS:
        raise _Cannot(f"model '{row.model}' has no entry in the registry")
    return model(_MODELS[row.model])


def _precision(row: PublishedRow) -> Precision:
    if "fp8 kv" in row.precision:
        return _FP8_ALL
    if row.precision == "fp8":
        return _FP8_ALL if _fp8_kv_by_default(row) else _FP8
    if row.precision in ("bf16", "fp16", "unstated"):
        return _BF16
    raise _Cannot(f"precision '{row.precision}'")


def _fp8_kv_by_default(row: PublishedRow) -> bool:
    """TensorRT-LLM follows the checkpoint, and NVIDIA's fp8 ones have fp8 KV; vLLM and SGLang keep bf16."""
    stack = stack_of(row.engine)
    return stack is not None and stack.name in ("tensorrt_llm", "trtllm_serve")


def _layout(row: PublishedRow, the_chip: ChipSpec) -> tuple[ClusterSpec, int]:
    """One replica, and how many there are; MLPerf systems use the fewest chips that hold the model."""
    if row.tensor is not None:
        return ClusterSpec(chip=the_chip, mesh={"tensor": row.tensor}), 1
    if row.mode.startswith("MLPerf"):
        chips = row.chips or 8
        tensor = 2 if the_chip.name == "h100_sxm" else 1
        return ClusterSpec(chip=the_chip, mesh={"tensor": tensor}), chips // tensor
    raise _Cannot("it does not say how many chips share the model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the clients sent: lengths, how many at once, and whether the server was told that number."""

    trace: Trace
    clients: int | None
    max_seqs: int | None = None


_RANDOM_RANGE_RATIO = 0.8  # InferenceX: lengths even from 0.8 of the nominal one to all of it
# Exactly equal outputs would keep users that once met in one step together for ever: the whole closed loop would run in
# lockstep, with a prefill of all prompts at once, which no measured time to first token looks like.
_ALMOST_EQUAL = (0.98, 1.02)
_PROMPTS_PER_CLIENT = 10  # InferenceX and genai-perf: ten prompts a client
_MAX_REQUESTS = 1500


def _asked(row: PublishedRow, source: str) -> _Asked:
    mode = row.mode
    if mode.startswith("MLPerf"):
        return _Asked(trace=_openorca(), clients=None)
    if row.prompt_tokens is None or row.output_tokens is None:
        raise _Cannot("it states no prompt and output length")
    if mode.startswith("max-throughput"):
        return _Asked(trace=_fixed(row, _max_throughput_requests(row)), clients=None)
    if row.concurrency is None:
        raise _Cannot("it states no concurrency")
    if mode.startswith("static batch"):
        return _Asked(trace=_fixed(row, row.concurrency), clients=None)
    stated = re.search(r"(\d+) prompts", mode)
    count = int(stated.group(1)) if stated else min(_PROMPTS_PER_CLIENT * row.concurrency, _MAX_REQUESTS)
    if row.engine == "trtllm" or re.search(r"U\[0\.8|range ratio 0\.8", mode):  # all of InferenceX
        trace = _even(row, count, (_RANDOM_RANGE_RATIO, 1.0), (_RANDOM_RANGE_RATIO, 1.0))
    else:
        trace = _even(row, count, (1.0, 1.0), _ALMOST_EQUAL)
    return _Asked(trace=trace, clients=row.concurrency, max_seqs=row.concurrency)


def _engine(row: PublishedRow, stack: Stack, the_chip: ChipSpec, asked: _Asked):
    budget = None
    if stated := re.search(r"max-num-batched-tokens (\d+)", row.mode):
        budget = int(stated.group(1))
    if row.mode.startswith("static batch"):
        budget = max(stack.max_step_tokens, int(asked.trace.prompt_tokens.sum()))
    return stack.engine(the_chip, max_seqs=asked.max_seqs, max_step_tokens=budget)


# ---- lengths ----


_Share = tuple[float, float]


def _fixed(row: PublishedRow, count: int) -> Trace:
    return _even(row, count, (1.0, 1.0), (1.0, 1.0))


def _even(row: PublishedRow, count: int, prompt: _Share, output: _Share) -> Trace:
    """Lengths drawn evenly between two multiples of the nominal ones."""
    random = np.random.default_rng([SEED, row.line])

    def lengths(nominal: int | None, share: _Share) -> np.ndarray:
        least, most = (round(multiple * (nominal or 0)) for multiple in share)
        return random.integers(max(1, least), most + 1, count)

    return _trace(f"line {row.line}", lengths(row.prompt_tokens, prompt), lengths(row.output_tokens, output))


def _max_throughput_requests(row: PublishedRow) -> int:
    total = (row.prompt_tokens or 0) + (row.output_tokens or 0)
    return 3000 if total <= 4096 else 1500 if total < 20000 else 400


_OPENORCA_MEDIAN_TOKENS, _OPENORCA_SIGMA = 211, 0.9  # after the cut at 1,024 the mean is MLPerf's 294
_OPENORCA_REQUESTS = 4000


@functools.cache
def _openorca() -> Trace:
    """Prompts and answers of MLPerf's Llama-2-70B task: 294 tokens each in the mean, 1,024 at most."""
    random = np.random.default_rng(SEED)
    distribution = LogNormal(median_tokens=_OPENORCA_MEDIAN_TOKENS, sigma=_OPENORCA_SIGMA, max_tokens=1024)

    def lengths() -> np.ndarray:
        return np.maximum(1, np.rint(distribution.tokens_at(random.uniform(size=_OPENORCA_REQUESTS)))).astype(np.int64)

    return _trace("openorca", lengths(), lengths())


def _trace(name: str, prompts: np.ndarray, outputs: np.ndarray) -> Trace:
    return Trace(
        name=name,
        source=f"drawn with seed {SEED}",
        arrival_s=np.zeros(len(prompts)),
        prompt_tokens=prompts,
        output_tokens=outputs,
    ).validated()
