"""How the servers of published runs were configured, where the row does not say: their stacks' own defaults.

A `Stack` is what a scheduler of that name and version does; nothing in it was chosen to agree with a measured time.
Next: `rows`, which puts a stack under a published row.
"""

import dataclasses
import re

from nanoserve.engine.config import EngineConfig
from nanoserve.specs.chips import ChipSpec

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """A serving stack.

    Attributes:
      name: whose constants price its steps.
      page_tokens, max_seqs, hbm_utilization: its defaults.
      max_step_tokens: token budget of a step; small_chip_step_tokens: on a chip of less than 70 GiB, or an A100.
      reserve_outputs, free_share: as in `scenario.Scenario`.
    """

    name: str
    page_tokens: int
    max_seqs: int
    max_step_tokens: int
    small_chip_step_tokens: int
    hbm_utilization: float = 0.9
    reserve_outputs: bool = False
    free_share: float | None = None

    def step_tokens(self, chip: ChipSpec) -> int:
        """The token budget of a step on a chip."""
        small = chip.hbm_bytes < 70 * _GIB or chip.name.startswith("a100")
        return self.small_chip_step_tokens if small else self.max_step_tokens

    def engine(
        self, chip: ChipSpec, *, max_seqs: int | None = None, max_step_tokens: int | None = None
    ) -> EngineConfig:
        """The engine's config on a chip, with what a run set itself."""
        budget = max_step_tokens or self.step_tokens(chip)
        seqs = max_seqs or self.max_seqs
        return EngineConfig(
            max_seqs=seqs,
            max_step_tokens=max(budget, seqs),
            page_tokens=self.page_tokens,
            hbm_utilization=self.hbm_utilization,
        )


# vllm/engine/arg_utils.py, get_batch_defaults: of the server on chips of 70 GiB and more, A100 apart
_VLLM = Stack(
    name="vllm",
    page_tokens=16,
    max_seqs=1024,
    max_step_tokens=8192,
    small_chip_step_tokens=2048,
)
# tensorrt_llm/llmapi/llm_args.py: max_batch_size, max_num_tokens, GUARANTEED_NO_EVICT, free_gpu_memory_fraction
_TENSORRT_LLM = Stack(
    name="tensorrt_llm",
    page_tokens=32,
    max_seqs=2048,
    max_step_tokens=8192,
    small_chip_step_tokens=8192,
    reserve_outputs=True,
    free_share=0.9,
)
_TRTLLM_SERVE = dataclasses.replace(_TENSORRT_LLM, name="trtllm_serve")  # a host in Python, as NIM has too
# sglang/srt/server_args.py: chunked_prefill_size by memory; its pages are of one token, which costs time to simulate
_SGLANG = Stack(
    name="sglang",
    page_tokens=16,
    max_seqs=2048,
    max_step_tokens=8192,
    small_chip_step_tokens=2048,
)
_VLLM_SYNC = dataclasses.replace(_VLLM, name="vllm_sync")  # before asynchronous scheduling was the default, in 0.14
_VLLM_TPU = dataclasses.replace(_VLLM, name="generic", max_seqs=256)

_STACKS = (
    (r"vLLM-TPU", _VLLM_TPU),
    (r"vllm$", _VLLM),  # InferenceX, whose recipes turn asynchronous scheduling on
    (r"vLLM$|vLLM nightly|(?i:vllm) 0\.(\d|1[0-3])\b", _VLLM_SYNC),
    (r"(?i:vllm)", _VLLM),
    (r"trtllm|NIM", _TRTLLM_SERVE),
    (r"TensorRT-LLM", _TENSORRT_LLM),
    (r"(?i:sglang)", _SGLANG),
)


def stack_of(engine: str) -> Stack | None:
    """Returns the stack that a published row names; None if it is not known here."""
    return next((stack for pattern, stack in _STACKS if re.match(pattern, engine)), None)
