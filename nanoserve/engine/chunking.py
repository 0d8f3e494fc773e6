"""How many prompt tokens one step may take: fixed, or by load.

A chunk delays every sequence that decodes beside it, and a short chunk delays every prompt that waits. Fixed chunking
(Agrawal et al., Sarathi-Serve, OSDI 2024) bounds the first delay by one number. Adaptive chunking weighs the two crowds
at every step:

    chunk = most * p / (p + d / decodes_per_prompt)

with p the prompts that wait or are being prefilled and d the sequences that decode. It is `most` when nobody decodes,
shrinks with those who do, grows back with the queue, and is never below a page. The form is ours; its one parameter is
how many decoding sequences weigh as much as one prompt. Next: `scheduler`, which spends it.
"""

from nanoserve.engine.config import EngineConfig


def most_chunk_tokens(config: EngineConfig) -> int:
    """Prompt tokens in one step, all sequences together, where nothing else wants its budget."""
    return min(config.prefill_chunk_tokens or config.max_step_tokens, config.max_step_tokens)


def adaptive_chunk_tokens(config: EngineConfig, decoding: int, prompts: int) -> int:
    """Prompt tokens for the next step, all sequences together, before the step's own budget.

    Args:
      config: for the most, the least, and `decodes_per_prompt`.
      decoding: sequences that decode. prompts: requests that wait or are being prefilled, at least 1.
    """
    share = prompts / (prompts + decoding / config.decodes_per_prompt)
    return max(config.page_tokens, int(most_chunk_tokens(config) * share))
