"""Measures what a prefix cache of a given size finds again in a trace with prefix hashes, by order of eviction.

    python experiments/bench/prefix.py
    python experiments/bench/prefix.py --trace=../shared/traces/agent_miniswe_smollm2_blk16.jsonl --pages=3500,7000

One request is served after the other, pages are the trace's blocks, and there is nothing but the cache: no time, no
requests that hold pages at once. A prompt's blocks are looked up from its first on, and all of them are in the cache
when it has been served. Shares are of all requests together:

  blocks  of the ids that the trace lists, the last one of a prompt included, which need not be full
  tokens  of prompt tokens; `tokens_beyond_first` leaves out the first block of every prompt, on both sides, which says
          more where all prompts begin alike (Mooncake's do)
  flops   of the FLOPs that a model of --model needs for the prompts' full blocks, attention included

Deterministic. Exit code 0: measured. 2: something the user can mend.
"""

import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that a bare checkout runs without installing

from experiments import command
from nanoserve.engine.prefix import CachedPagePool, PageCost, eviction
from nanoserve.executors.kv_facts import page_cost_of
from nanoserve.report.progress import Progress
from nanoserve.specs.errors import ConfigError, TraceError
from nanoserve.specs.model_registry import model
from nanoserve.trace.readers import read_trace
from nanoserve.trace.types import Trace

TRACE = Path(__file__).resolve().parents[3] / "shared" / "traces" / "mooncake_conversation_trace.jsonl"
RESULTS = Path(__file__).parent / "results" / "prefix_mooncake.json"
POLICIES: tuple[Literal["lru", "cost"], ...] = ("lru", "cost")
_HEADER = f"{'pages':>10}{'evicted':>9}{'blocks':>9}{'tokens':>9}{'beyond first':>14}{'flops':>9}"


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("trace", str(TRACE), "a trace with prefix hashes", flag_values=own)
    flags.DEFINE_list("pages", ["1000", "3000", "10000", "30000", "100000"], "sizes of the cache", flag_values=own)
    flags.DEFINE_string("model", "llama-2-70b", "whose FLOPs pages cost", flag_values=own)
    flags.DEFINE_string("out", str(RESULTS), "file to write", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    trace = read_trace(asked.trace)
    if trace.prefix_block_tokens is None:
        raise ConfigError(f"--trace={asked.trace}: has no prefix hashes")
    prompts, cost = listed_blocks(asked.trace), page_cost_of(model(asked.model), trace.prefix_block_tokens)
    longest = max(map(len, prompts))
    limits = [*(_size(text, longest) for text in asked.pages), None]
    settings = list(itertools.product(limits, POLICIES))
    rows = []
    print(f"{trace.name}: {len(prompts):,} prompts, {sum(map(len, prompts)):,} blocks of {trace.prefix_block_tokens}")
    print(_HEADER)
    with Progress(len(settings), "caches") as progress:
        for done, (pages, policy) in enumerate(settings, start=1):
            rows.append(measure(trace, prompts, pages, policy, cost))
            progress.update(done, pages=pages or "unlimited")
            print(line(rows[-1]), flush=True)
    figures = {
        "command": shlex.join(["python", *sys.argv]),
        "trace": Path(asked.trace).name,
        "model": asked.model,
        "block_tokens": trace.prefix_block_tokens,
        "rows": rows,
    }
    command.write_json("--out", Path(asked.out), figures)
    return 0


def listed_blocks(path: str) -> list[list[int]]:
    """Block ids of every prompt as the file lists them; a trace keeps whole blocks only.

    Raises:
      TraceError: a line is no JSON.
    """
    try:
        return [json.loads(line)["hash_ids"] for line in Path(path).read_text().splitlines() if line.strip()]
    except (ValueError, KeyError) as error:
        raise TraceError(f"{path}: {error}") from None


def measure(
    trace: Trace, prompts: list[list[int]], pages: int | None, policy: Literal["lru", "cost"], cost: PageCost
) -> dict[str, Any]:
    """Serves all prompts through one cache.

    Args:
      trace: for lengths. prompts: block ids of each. pages: of the cache; None for no limit.
      policy: which pages go first. cost: what they cost to compute again.
    """
    block_tokens = trace.prefix_block_tokens or 1
    enough = sum(map(len, prompts))
    hits = block_hits(CachedPagePool(pages or enough, eviction(policy, cost)), prompts)
    costs = [0.0, *itertools.accumulate(cost(depth) for depth in range(max(map(len, prompts))))]
    lengths = trace.prompt_tokens.tolist()
    found = [min(hit * block_tokens, length) for hit, length in zip(hits, lengths, strict=True)]
    beyond = sum(max(tokens - block_tokens, 0) for tokens in found)
    return {
        "pages": pages,
        "evicted_first": policy,
        "blocks": sum(hits) / enough,
        "tokens": sum(found) / sum(lengths),
        "tokens_beyond_first": beyond / sum(max(length - block_tokens, 0) for length in lengths),
        "flops": sum(costs[hit] for hit in hits) / sum(costs[len(ids)] for ids in prompts),
    }


def block_hits(pool: CachedPagePool, prompts: Sequence[Sequence[int]]) -> list[int]:
    """Serves whole prompts one after the other; returns how many blocks of each were found.

    Args:
      pool: whose pages are blocks; the longest prompt must fit. prompts: block ids.
    """
    hits = []
    for ids in prompts:
        pages = pool.find(ids)
        pool.share(pages)
        hits.append(len(pages))
        pages += pool.alloc(len(ids) - len(pages))
        for page, key in zip(pages, ids, strict=True):
            pool.know(page, key)
        pool.free(pages)
    return hits


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    pages = "unlimited" if row["pages"] is None else f"{row['pages']:,}"
    shares = (f"{row[name]:.1%}" for name in ("blocks", "tokens", "tokens_beyond_first", "flops"))
    return "{:>10}{:>9}{:>9}{:>9}{:>14}{:>9}".format(pages, row["evicted_first"], *shares)


def _size(text: str, longest: int) -> int:
    if not text.isdecimal() or int(text) < longest:
        raise ConfigError(
            f"--pages={text}: must be numbers with commas, at least {longest}, what the longest prompt needs"
        )
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
