"""Believable records of a run, made by a scheduler and a price list far simpler than the real ones.

A 70B model on eight H100s: chunked prefill mixed with decode, pages that can run out, time-outs, refusals. Everything
in the tables follows from one event loop, so properties that relate the two tables (tokens, gaps, stalls) hold exactly.
"""

import dataclasses
from collections import deque

import numpy as np
import polars as pl

from nanoserve.report.content import ReportData, Roof
from nanoserve.report.metrics import summarize
from nanoserve.report.slo import NAMED_SLOS

PAGE_TOKENS = 16
CHIPS = 8
PEAK_FLOPS_PER_S = 989e12
HBM_BYTES_PER_S = 3.35e12
WEIGHT_BYTES = 141e9
PARAMETERS = 70.6e9
KV_BYTES_PER_TOKEN = 327_680
LAYERS, HEADS, HEAD_SIZE, HIDDEN = 80, 64, 128, 8192


@dataclasses.dataclass
class Item:
    """One request on its way."""

    index: int
    arrival_s: float
    prompt: int
    wanted: int
    target: int = 0
    kv: int = 0
    generated: int = 0
    admitted_s: float | None = None
    first_s: float | None = None
    finish_s: float | None = None
    last_s: float = 0.0
    reason: str = ""
    preemptions: int = 0
    stall_s: float = 0.0


def synthetic_run(
    seed: int,
    *,
    requests: int = 300,
    rate_rps: float = 6.0,
    pages: int = 30_000,
    timeout_s: float = 30.0,
    max_seqs: int = 128,
    pause_s: float = 0.0,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Steps and requests of one run, with every column of `engine.records`.

    Args:
      seed: of lengths and arrivals. requests, rate_rps: how many, and how fast they come.
      pages: in the pool; few pages cause preemptions. timeout_s: from arrival to admission.
      max_seqs: slots. pause_s: between two plans, as a real host would take.
    """
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate_rps, requests))
    prompts = np.clip(rng.lognormal(6.6, 1.0, requests).astype(int), 8, 8000)
    outputs = np.clip(rng.lognormal(5.0, 0.8, requests).astype(int), 1, 1500)
    items = [
        Item(i, float(a), int(p), int(o)) for i, (a, p, o) in enumerate(zip(arrivals, prompts, outputs, strict=True))
    ]
    loop = _Loop(items, pages, timeout_s, max_seqs, pause_s)
    while loop.step():
        pass
    return pl.DataFrame(loop.rows), pl.DataFrame([_request_row(item) for item in items], infer_schema_length=None)


class _Loop:
    def __init__(self, items: list[Item], pages: int, timeout_s: float, max_seqs: int, pause_s: float):
        self.due, self.pages, self.timeout_s = deque(items), pages, timeout_s
        self.max_seqs, self.pause_s = max_seqs, pause_s
        self.waiting: deque[Item] = deque()
        self.prefilling: list[Item] = []
        self.decoding: list[Item] = []
        self.rows: list[dict] = []
        self.now_s, self.steps = 0.0, 0

    def step(self) -> bool:
        self._take()
        if not (self.waiting or self.prefilling or self.decoding):
            if not self.due:
                return False
            self.now_s = self.due[0].arrival_s
            return True
        preempted = self._make_room()
        chunks = self._chunks()
        counts = self._counts(chunks)
        row, end_s = self._priced(counts, chunks)
        held = self.prefilling + self.decoding
        row |= {
            "running": len(held),
            "stalled_seqs": 0,
            "waiting": len(self.waiting),
            "kv_tokens_held": sum(s.kv for s in held) + counts["prefill_tokens"] + counts["steps"] * len(self.decoding),
            "pages_total": self.pages,
            "preemptions": preempted,
        }
        self._apply(chunks, counts["steps"], end_s)
        row["pages_used"] = min(self.pages, row["kv_tokens_held"] // PAGE_TOKENS + len(held))
        row["largest_free_run"] = self.pages - row["pages_used"]
        self.rows.append(row)
        self.now_s, self.steps = end_s + self.pause_s, self.steps + counts["steps"]
        return True

    def _take(self) -> None:
        while self.due and self.due[0].arrival_s <= self.now_s:
            item = self.due.popleft()
            item.target, item.last_s = item.prompt, self.now_s
            if item.prompt > 7500:
                item.reason, item.finish_s = "refused", self.now_s
            else:
                self.waiting.append(item)
        for item in [w for w in self.waiting if w.admitted_s is None and self.now_s > w.arrival_s + self.timeout_s]:
            self.waiting.remove(item)
            item.reason, item.finish_s = "timed_out", self.now_s

    def _used(self) -> int:
        return sum(-(-(s.kv + 1) // PAGE_TOKENS) for s in self.prefilling + self.decoding)

    def _make_room(self) -> int:
        preempted = 0
        while len(self.decoding) > 1 and self._used() + 2 > self.pages:
            victim = self.decoding.pop()
            victim.target, victim.kv = victim.prompt + victim.generated, 0
            victim.preemptions += 1
            self.waiting.appendleft(victim)
            preempted += 1
        return preempted

    def _chunks(self) -> list[tuple[Item, int]]:
        budget, chunks = 2048 - len(self.decoding), []
        while self.waiting and len(self.prefilling) + len(self.decoding) < self.max_seqs:
            reserved = sum(-(-(s.target - s.kv) // PAGE_TOKENS) + 1 for s in self.prefilling)
            if (self.prefilling or self.decoding) and self._used() + reserved + self.waiting[
                0
            ].target // 16 + 8 > self.pages:
                break
            item = self.waiting.popleft()
            item.admitted_s = self.now_s if item.admitted_s is None else item.admitted_s
            self.prefilling.append(item)
        for item in self.prefilling:
            tokens = min(budget, item.target - item.kv)
            if tokens > 0:
                chunks.append((item, tokens))
                budget -= tokens
        return chunks

    def _counts(self, chunks: list[tuple[Item, int]]) -> dict[str, int]:
        batch, kv = len(self.decoding), sum(s.kv for s in self.decoding)
        steps = 1 if chunks else min(s.wanted - s.generated for s in self.decoding)
        steps = min(steps, 8) if self.waiting or self.due else steps
        decode_kv = steps * (kv + batch) + batch * steps * (steps - 1) // 2
        pairs = sum(t * s.kv + t * (t + 1) // 2 for s, t in chunks)
        read = sum(s.kv + t for s, t in chunks)
        done = sum(s.kv + t == s.target for s, t in chunks)
        return {
            "steps": steps,
            "decode_seqs": batch,
            "decode_kv_tokens": decode_kv,
            "decode_window_tokens": decode_kv,
            "prefill_seqs": len(chunks),
            "prefill_tokens": sum(t for _, t in chunks),
            "prefill_pairs": pairs,
            "prefill_window_pairs": pairs,
            "prefill_kv_tokens": read,
            "prefill_window_kv_tokens": read,
            "sampled": steps * batch + done,
        }

    def _priced(self, counts: dict[str, int], chunks: list[tuple[Item, int]]) -> tuple[dict, float]:
        steps, tokens = counts["steps"], counts["steps"] * counts["decode_seqs"] + counts["prefill_tokens"]
        flops = 2 * PARAMETERS * tokens
        attention = 4 * LAYERS * HEADS * HEAD_SIZE * (counts["decode_kv_tokens"] + counts["prefill_pairs"])
        kv_read = KV_BYTES_PER_TOKEN * (counts["decode_kv_tokens"] + counts["prefill_kv_tokens"])
        kv_write = KV_BYTES_PER_TOKEN * tokens
        link = 2 * 2 * LAYERS * tokens * HIDDEN * 2 * (CHIPS - 1)
        weights = WEIGHT_BYTES * steps
        peak, bandwidth = PEAK_FLOPS_PER_S * CHIPS, HBM_BYTES_PER_S * CHIPS
        compute_bound = flops / peak > weights / bandwidth
        time_s = {
            "compute_s": attention / (0.5 * peak) + (flops / (0.72 * peak) if compute_bound else 0.0),
            "weights_s": 0.0 if compute_bound else weights / (0.87 * bandwidth),
            "kv_s": (kv_read + kv_write) / (0.9 * bandwidth),
            "activations_s": 40 * LAYERS * tokens * HIDDEN / (0.8 * bandwidth),
            "link_s": steps * 2 * LAYERS * 6e-6 + link / CHIPS / 300e9,
            "overhead_s": steps * 1.9e-3,
        }
        sol_s = max(flops / peak, weights / bandwidth) + (kv_read + kv_write) / bandwidth + attention / peak
        duration_s = sum(time_s.values())
        growth_s = counts["decode_seqs"] * KV_BYTES_PER_TOKEN / (0.9 * bandwidth) if steps > 1 else 0.0
        bucket = 8 if tokens < 256 * steps else 128
        row = {
            "step": self.steps,
            "kind": ("mixed" if self.decoding else "prefill") if chunks else "decode",
            "start_s": self.now_s,
            "duration_s": duration_s,
            "first_step_s": (duration_s - growth_s * steps * (steps - 1) / 2) / steps,
            "host_gap_s": steps * 0.5e-3,
            **counts,
            **dict.fromkeys(("prefix_lookup_tokens", "prefix_hit_tokens", "received_tokens"), 0),
            **dict.fromkeys(("swapped_out_tokens", "swapped_in_tokens"), 0),
            **dict.fromkeys(("drafted_tokens", "drafted_pairs", "drafted_window_pairs", "accepted_tokens"), 0),
            "executed_tokens": steps * (-(-(tokens // steps) // bucket) * bucket),
            "executed_kv_tokens": int(1.12 * (counts["decode_kv_tokens"] + counts["prefill_kv_tokens"])),
            "matmul_flops": flops,
            "attention_flops": float(attention),
            "weight_bytes": weights,
            "kv_read_bytes": float(kv_read),
            "kv_write_bytes": float(kv_write),
            "activation_bytes": 40.0 * LAYERS * tokens * HIDDEN,
            "link_bytes": float(link),
            "mfu": (flops + attention) / (peak * duration_s),
            "mbu": (weights + kv_read + kv_write) / (bandwidth * duration_s),
            "sol_s": sol_s,
            "roofline_fraction": sol_s / duration_s,
            "bound": max(time_s, key=time_s.__getitem__).removesuffix("_s").replace("overhead", "host"),
            **time_s,
        }
        return row, self.now_s + duration_s

    def _apply(self, chunks: list[tuple[Item, int]], steps: int, end_s: float) -> None:
        for item in self.decoding:
            item.kv, item.generated, item.last_s = item.kv + steps, item.generated + steps, end_s
        for item, tokens in chunks:
            item.kv += tokens
            if item.kv < item.target:
                continue
            if item.first_s is None:
                item.first_s = end_s
            else:
                item.stall_s = max(item.stall_s, end_s - item.last_s)
            item.generated, item.last_s = item.generated + 1, end_s
            self.prefilling.remove(item)
            self.decoding.append(item)
        for item in [s for s in self.decoding if s.generated >= s.wanted]:
            self.decoding.remove(item)
            item.reason = "stop" if item.index % 3 else "length"
            item.finish_s = end_s


def _request_row(item: Item) -> dict:
    return {
        "request": item.index,
        "session": None,
        "client": None,
        "arrival_s": item.arrival_s,
        "sent_s": item.arrival_s + 0.002,
        "admitted_s": item.admitted_s,
        "first_token_s": item.first_s,
        "finish_s": item.finish_s,
        "prompt_tokens": item.prompt,
        "output_tokens": item.generated,
        "max_output_tokens": item.wanted,
        "finish_reason": item.reason,
        "detail": "",
        "preemptions": item.preemptions,
        "max_stall_s": item.stall_s,
        "cached_tokens": 0,
    }


def synthetic_report(seed: int = 3, *, requests: int = 300, rate_rps: float = 6.0, pages: int = 30_000) -> ReportData:
    """A whole report's data, for a run made by `synthetic_run`."""
    steps, requests_frame = synthetic_run(seed, requests=requests, rate_rps=rate_rps, pages=pages)
    return ReportData(
        title="llama70b_h100",
        how="Simulated (calibrated) because this machine has no H100: TPOT error 5.1% against published vLLM runs.",
        summary=summarize(steps, requests_frame, NAMED_SLOS["llama2-70b-interactive"], page_tokens=PAGE_TOKENS),
        steps=steps,
        requests=requests_frame,
        roof=Roof(
            chip="h100_sxm",
            chips=CHIPS,
            dtype="bf16",
            peak_flops_per_s=PEAK_FLOPS_PER_S,
            hbm_bytes_per_s=HBM_BYTES_PER_S,
        ),
        constants=(
            (
                "h100_sxm.peak_flops_per_s[bf16]",
                PEAK_FLOPS_PER_S,
                "FLOP/s",
                "H100 datasheet, dense (half of the sparse 1,979)",
            ),
            ("h100_sxm.hbm_bytes_per_s", HBM_BYTES_PER_S, "B/s", "H100 datasheet, SXM5"),
            ("matmul.eta", 0.87, "share of bandwidth", "fitted to measured vLLM matrix products, bf16"),
            ("host_gap_s", 0.0005, "s per step", "a 2025 vLLM"),
        ),
        operative="Engine.max_seqs = 128\nEngine.page_tokens = 16\nTraceSource.rate_rps = 6.0 # <not markup>\n",
        environment={
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "dirty": False,
            "packages": {"jax": "0.11.2", "polars": "2.1.0"},
            "weights_hash": None,
        },
    )
