"""How much of the prompts has been seen before: what a prefix cache without limits would find again."""

import numpy as np

from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.logs.log_set import Joined
from nanoserve.trace.types import Ragged

_CURVE_POINTS = 200


def prefix(joined: Joined) -> Finding:
    """`anatomy.prefix`: the share of prompt tokens whose blocks an earlier request has had at its beginning.

    Blocks count while all before them were seen; the last one of a prompt counts only if it is full. Beyond the first
    block, which some services share among all prompts, both sides of the share leave it out. Series: `request`, `share`
    so far.
    """
    key, subject = "anatomy.prefix", "Prefixes seen before"
    hashes, block_tokens = joined.logs.prefixes, joined.logs.prefix_block_tokens
    if hashes is None or block_tokens is None:
        return not_computed(key, subject, "the log has no hashes of prompt blocks")
    prompts = joined.take("prompt_tokens")["prompt_tokens"].to_numpy()
    found = blocks_found(hashes) * block_tokens
    beyond, beyond_prompts = np.maximum(found - block_tokens, 0), np.maximum(prompts - block_tokens, 0)
    share = float(found.sum() / prompts.sum())
    beyond_share = float(beyond.sum() / beyond_prompts.sum()) if beyond_prompts.any() else None
    rows = np.unique(np.linspace(0, len(prompts) - 1, _CURVE_POINTS).astype(np.int64))
    title = f"{share:.1%} of the prompt tokens were seen before"
    title += f", {beyond_share:.1%} beyond the first block of {block_tokens}" if beyond_share is not None else ""
    return Finding(
        key=key,
        title=title,
        rows=joined.rows,
        values={
            "block_tokens": block_tokens,
            "blocks": len(hashes.values),
            "distinct_blocks": len(np.unique(hashes.values)),
            "share_of_tokens": share,
            "share_of_tokens_beyond_first_block": beyond_share,
            "share_of_requests": float((found > 0).mean()),
        },
        series={"request": rows + 1.0, "share": np.cumsum(found)[rows] / np.cumsum(prompts)[rows]},
    )


def blocks_found(hashes: Ragged) -> np.ndarray:
    """How many blocks at the beginning of each prompt an earlier one has had; int64 [N].

    Args:
      hashes: ids of the blocks of each prompt; equal ids mean equal tokens up to there.
    """
    blocks, offsets = hashes.values, hashes.offsets
    rows = np.repeat(np.arange(len(hashes)), np.diff(offsets))
    # The row in which an id is first seen; a block is found if that row is an earlier one.
    _, first, place = np.unique(blocks, return_index=True, return_inverse=True)
    missed = rows[first][place] >= rows
    first_missed = np.full(len(hashes), len(blocks))
    np.minimum.at(first_missed, rows[missed], np.flatnonzero(missed))
    return np.minimum(first_missed, offsets[1:]) - offsets[:-1]
