"""KV pages that go from the devices of one replica to those of another.

Pages are gathered on the source, as copies, so its pool may be used again at once; they are put where the target's pool
lives when the target's plan wants them. Next: `host_pages`, which gathers and scatters.
"""

from collections.abc import Sequence

from nanoserve.executors.jax_executor import JaxExecutor


def send_pages(executors: Sequence[JaxExecutor], source: int, target: int, index: int, pages: Sequence[int]) -> None:
    """Starts the move of a request's pages; waits for nothing.

    Args:
      executors: of all replicas. source, target: from which to which, by number.
      index: the request. pages: in the source's pool, in position order.
    """
    for ours, theirs in zip(executors[source].movers, executors[target].movers, strict=True):
        theirs.expect(index, ours.fetch(pages))
