"""Which requests are refused when they come, and the reason that is written into their records."""

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.memory import KvMemory
from nanoserve.engine.types import Request


def refusal(request: Request, config: EngineConfig, memory: KvMemory, *, max_context_tokens: int, waiting: int) -> str:
    """Why a request is refused: it could never run, even alone, or the queue is full. Empty if it is not.

    Args:
      request: what is asked for. config: for the page size and the queue's limit.
      memory: whose pages would have to hold it. max_context_tokens: most prompt plus output of one request.
      waiting: requests in the queue.
    """
    total = request.prompt_tokens + request.output_tokens
    if total > max_context_tokens:
        return (
            f"prompt {request.prompt_tokens} + output {request.output_tokens} = {total} tokens exceed the context "
            f"of {max_context_tokens}"
        )
    pages, most = memory.worst_case_pages(request), memory.pool.num_pages
    if pages > most:
        return f"{total} tokens need {pages} pages of {config.page_tokens}; the whole pool has {most}"
    if config.queue_limit is not None and waiting >= config.queue_limit:
        return f"the queue is full: {waiting} requests wait, and Engine.queue_limit is {config.queue_limit}"
    return ""
