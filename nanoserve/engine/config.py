"""What the scheduler may do in one step, with how much memory, and by which policies: every knob of an engine.

Values are checked here, names of policies in `policy`. Next: `types`, what engine and executors exchange.
"""

import dataclasses
import math
from typing import Literal

from nanoserve.specs.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the scheduler may do in one step and with how much memory.

    Attributes:
      max_seqs: sequences that run at once (slots; vLLM: max_num_seqs).
      max_step_tokens: token budget of a step, decode and prefill together (vLLM: max_num_batched_tokens).
      prefill_chunk_tokens: prefill tokens in one step, all sequences together; None means the whole budget.
      page_tokens: tokens per page (vLLM: block size).
      num_pages: pages in the pool; None asks the memory model.
      hbm_utilization: share of device memory the memory model may plan with.
      free_page_watermark: share of the pool kept free when admitting, unless nothing runs.
      max_horizon_steps: most decode steps in one plan.
      max_context_tokens: prompt plus output limit; None means the model's.
      timeout_s: a request older than this is ended; None means never.
      batching: `mixed`: a step holds chunks and decoding sequences; `prefill_first`: one or the other, chunks first;
        `static`: requests are gathered into a batch, prefilled, and decoded until the last of them finishes.
      static_timeout_s: a static batch starts with fewer than `max_seqs` requests when the oldest has waited this long.
      interval_s: while something runs, the engine knows only of requests that had arrived by the last multiple of this;
        0 means that it looks before every step.
      chunking: `fixed`, or `adaptive`, which shrinks chunks where many decode and few wait (`engine.chunking`).
      decodes_per_prompt: for adaptive chunking: decoding sequences that weigh as much as one prompt that waits.
      policy, victim, admission: names in `engine.policy`: order of the queue, who is preempted, who may start.
      queue_limit: a request that finds so many waiting is refused; None means no limit.
      deadline_s: a first token is due this long after arrival; for policies that know of deadlines.
      allocator: `paged`, or `contiguous`: one run of pages for all that a request may need (`engine.runs`).
      prefix_cache: whether pages whose content is known are found again, and which of them are evicted first: `lru`,
        those not used for longest; `cost`, those that cost least to compute again (`engine.prefix`).
      preemption: what becomes of a victim's KV: `recompute`: it is lost; `swap`: it waits in host memory; `cheaper`:
        whichever the cost model says takes less time.
      host_pages: pages of host memory for `swap`; None means no limit. A victim that finds it full is recomputed.
      when_full: what becomes of a request whose pages cannot be had: `wait`: it waits, or somebody is preempted;
        `fail`: it ends, as in a service without admission control (`engine.failing`). `admission`,
        `free_page_watermark`, `victim` and `preemption` then mean nothing.
      keep_session_s: how long the KV of a finished turn stays for the next turn of its session (`engine.keeping`).
      draft: who guesses the next tokens of decoding sequences, to be verified in one step: `none`, `ngram` (what
        followed the last tokens where they stood before), or `model` (`Experiment.draft_model`).
      draft_tokens: most tokens guessed for one sequence in one step.
      draft_acceptance: for simulated runs, the chance that a guess is right when those before it were.
      ngram_tokens, ngram_least_tokens: longest and shortest end of a sequence that is looked for.
      batch_invariant: every step has one shape, so that no bit of a request depends on its neighbours; costs padding
        (`executors.one_shape`).
    """

    max_seqs: int = 256
    max_step_tokens: int = 2048
    prefill_chunk_tokens: int | None = None
    page_tokens: int = 16
    num_pages: int | None = None
    hbm_utilization: float = 0.9
    free_page_watermark: float = 0.01
    max_horizon_steps: int = 1024
    max_context_tokens: int | None = None
    timeout_s: float | None = None
    batching: Literal["mixed", "prefill_first", "static"] = "mixed"
    static_timeout_s: float = 1.0
    interval_s: float = 0.0
    chunking: Literal["fixed", "adaptive"] = "fixed"
    decodes_per_prompt: float = 16.0
    policy: str = "fcfs"
    victim: str = "youngest"
    admission: str = "watermark"
    queue_limit: int | None = None
    deadline_s: float | None = None
    allocator: Literal["paged", "contiguous"] = "paged"
    prefix_cache: Literal["off", "lru", "cost"] = "off"
    preemption: Literal["recompute", "swap", "cheaper"] = "recompute"
    host_pages: int | None = None
    when_full: Literal["wait", "fail"] = "wait"
    keep_session_s: float = 0.0
    draft: Literal["none", "ngram", "model"] = "none"
    draft_tokens: int = 4
    draft_acceptance: float | None = None
    ngram_tokens: int = 3
    ngram_least_tokens: int = 1
    batch_invariant: bool = False

    @property
    def horizon_limit(self) -> int:
        """Most decode steps in one plan; a loop of steps would be another shape."""
        return 1 if self.batch_invariant else self.max_horizon_steps

    def __post_init__(self):
        for field in (
            "max_seqs",
            "max_step_tokens",
            "prefill_chunk_tokens",
            "page_tokens",
            "num_pages",
            "max_horizon_steps",
            "queue_limit",
            "draft_tokens",
            "ngram_least_tokens",
            "host_pages",
        ):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ConfigError(f"Engine.{field} = {value}: must be at least 1")
        if self.max_step_tokens < self.max_seqs:
            raise ConfigError(
                f"Engine.max_step_tokens = {self.max_step_tokens} is below Engine.max_seqs = {self.max_seqs}: every "
                "running sequence decodes one token a step. Raise the budget or lower max_seqs"
            )
        self._check_drafts()
        if self.batch_invariant and self.draft != "none":
            raise ConfigError(f"Engine.batch_invariant: its one shape has no room for Engine.draft = '{self.draft}'")
        if not 0 <= self.free_page_watermark < 1:
            raise ConfigError(f"Engine.free_page_watermark = {self.free_page_watermark}: must be in [0, 1)")
        if not 0 < self.hbm_utilization <= 1:
            raise ConfigError(f"Engine.hbm_utilization = {self.hbm_utilization}: must be in (0, 1]")
        for field in ("timeout_s", "deadline_s"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"Engine.{field} = {value}: must be positive and finite, or None for none")
        for field in ("static_timeout_s", "interval_s", "keep_session_s"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ConfigError(f"Engine.{field} = {getattr(self, field)}: must be at least 0 and finite")
        if not 0 < self.decodes_per_prompt < math.inf:
            raise ConfigError(f"Engine.decodes_per_prompt = {self.decodes_per_prompt}: must be positive and finite")
        if self.prefix_cache != "off" and self.allocator == "contiguous":
            raise ConfigError(
                f"Engine.prefix_cache = '{self.prefix_cache}' needs Engine.allocator = 'paged': a contiguous run "
                "cannot hold pages that others hold too"
            )
        if self.prefix_cache != "off" and self.keep_session_s:
            raise ConfigError(
                f"Engine.keep_session_s = {self.keep_session_s} does not go with Engine.prefix_cache = "
                f"'{self.prefix_cache}', which keeps what sessions wrote already. Leave one of them off"
            )
        if self.policy == "deadline" and self.deadline_s is None:
            raise ConfigError("Engine.policy = 'deadline' needs Engine.deadline_s: when first tokens are due")

    @property
    def row_tokens(self) -> int:
        """Most tokens that one decoding sequence brings into a step."""
        return 1 if self.draft == "none" else 1 + self.draft_tokens

    def _check_drafts(self) -> None:
        if self.draft != "none" and self.max_step_tokens < self.max_seqs * self.row_tokens:
            raise ConfigError(
                f"Engine.max_step_tokens = {self.max_step_tokens} is below Engine.max_seqs = {self.max_seqs} x "
                f"{self.row_tokens}, the tokens that running sequences verify in a step. Raise the budget, or lower "
                "max_seqs or draft_tokens"
            )
        if self.draft_acceptance is not None and not 0 <= self.draft_acceptance <= 1:
            raise ConfigError(f"Engine.draft_acceptance = {self.draft_acceptance}: a chance is between 0 and 1")
        if self.ngram_tokens < self.ngram_least_tokens:
            raise ConfigError(
                f"Engine.ngram_tokens = {self.ngram_tokens} is below Engine.ngram_least_tokens = "
                f"{self.ngram_least_tokens}"
            )


CHANGEABLE = (
    "policy",
    "victim",
    "admission",
    "prefill_chunk_tokens",
    "chunking",
    "decodes_per_prompt",
    "free_page_watermark",
    "queue_limit",
    "deadline_s",
)
"""Fields of `EngineConfig` that may change while requests are in the engine (`Scheduler.change`)."""
