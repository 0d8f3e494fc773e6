"""What pages hold, as numbers: keys for the prefix cache, made from a trace's hashes or from token ids.

A key stands for the tokens of a page and for all tokens before it. From hashes: the block of the trace that holds a
page's last token stands for everything up to there, so its id and the page's place are the key, whatever the sizes of
blocks and pages. From ids: a chain of 128-bit digests, each over the one before it and the page's own ids; two
different beginnings meet in one key with a probability of 2^-64 after 2^32 pages.

Next: `prefix`, which looks keys up.
"""

import functools
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b

from nanoserve.engine.prefix import PageKeys
from nanoserve.trace.types import MAX_TOKENS, Trace

_PLACE_BITS = MAX_TOKENS.bit_length()  # enough for every page of the longest prompt
_DIGEST_BYTES = 16
_KEPT = 256  # requests whose keys are not made again: those that run, and the head of the queue


def hashed_keys(trace: Trace, page_tokens: int) -> PageKeys:
    """Keys from a trace's `prefix_hashes`.

    A page that whole blocks do not cover has no key. What a request generated is known only from the next turn of its
    session: a turn that begins with the same blocks and is at least as long as the prompt and the answer before it is
    taken to begin with them.

    Args:
      trace: with `prefix_hashes`, equal id at equal depth meaning equal tokens until there. page_tokens: of a page.
    """
    hashes, block_tokens = trace.prefix_hashes, trace.prefix_block_tokens
    if hashes is None or block_tokens is None:
        raise ValueError(f"trace '{trace.name}' has no prefix hashes")
    turn_after = _turns_after(trace)

    @functools.lru_cache(_KEPT)
    def keys_of(request: int) -> list[int]:
        ids = hashes.row(request).tolist()
        tokens = len(ids) * block_tokens
        after = turn_after.get(request)
        if after is not None:
            known = int(trace.prompt_tokens[request] + trace.output_tokens[request])
            longer = hashes.row(after).tolist()
            if trace.prompt_tokens[after] >= known and longer[: len(ids)] == ids:
                ids, tokens = longer, min(len(longer) * block_tokens, known)
        return [
            ids[(end - 1) // block_tokens] << _PLACE_BITS | end // page_tokens
            for end in range(page_tokens, tokens + 1, page_tokens)
        ]

    return lambda request, tokens: keys_of(request)[: tokens // page_tokens]


def id_keys(ids_of: Callable[[int], Sequence[int]], page_tokens: int) -> PageKeys:
    """Keys from token ids that are all known beforehand.

    Args:
      ids_of: request -> its prompt and, if they are known, the tokens it will generate. page_tokens: of a page.
    """

    @functools.lru_cache(_KEPT)
    def keys_of(request: int) -> list[int]:
        keys: list[int] = []
        extend_chain(keys, ids_of(request), page_tokens)
        return keys

    return lambda request, tokens: keys_of(request)[: tokens // page_tokens]


def extend_chain(keys: list[int], ids: Sequence[int], page_tokens: int) -> None:
    """Adds the keys of the full pages of `ids` to those of its first pages, which are in `keys`."""
    for begin in range(len(keys) * page_tokens, len(ids) - page_tokens + 1, page_tokens):
        before = keys[-1] if keys else 0
        page = array("q", ids[begin : begin + page_tokens]).tobytes()
        digest = blake2b(before.to_bytes(_DIGEST_BYTES, "little") + page, digest_size=_DIGEST_BYTES).digest()
        keys.append(int.from_bytes(digest, "little"))


def _turns_after(trace: Trace) -> dict[int, int]:
    """Request -> the next turn of its session."""
    if trace.session is None or trace.turn is None:
        return {}
    place = {key: row for row, key in enumerate(zip(trace.session.tolist(), trace.turn.tolist(), strict=True))}
    after = ((row, place.get((session, turn + 1))) for (session, turn), row in place.items())
    return {row: following for row, following in after if following is not None}
