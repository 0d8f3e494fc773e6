"""The columns of a run's records: the contract between the engine, the executors and the report.

`STEP_COLUMNS` are logged by the engine, one row a plan (`steps` device steps). `COST_COLUMNS` are added afterwards by
`nanoserve.roofline` in one vectorised call over the counts. `REQUEST_COLUMNS` are one row a request. Times are seconds
from the start of the run; a missing time is NaN (null in Parquet).
"""

STEP_COLUMNS: dict[str, str] = {
    "step": "index of the plan's first step",
    "kind": "prefill, decode or mixed",
    "start_s": "when it started",
    "duration_s": "all its steps: measured or priced",
    "first_step_s": "its first step; the others grow linearly from it",
    "host_gap_s": "part of the duration in which the device waited for the host",
    # the fourteen fields of roofline.counts.StepCounts
    "steps": "device steps in the plan",
    "decode_seqs": "decode rows in each step",
    "decode_kv_tokens": "KV positions attended by decode rows, all steps",
    "decode_window_tokens": "the same within the sliding window",
    "prefill_seqs": "rows with a prompt chunk",
    "prefill_tokens": "prompt tokens processed",
    "prefill_pairs": "causal query-key pairs of the chunks",
    "prefill_window_pairs": "the same within the sliding window",
    "prefill_kv_tokens": "KV positions read by the chunks",
    "prefill_window_kv_tokens": "the same within the sliding window",
    "sampled": "tokens sampled, all steps",
    "drafted_tokens": "drafted tokens that decode rows verified besides their own",
    "drafted_pairs": "query-key pairs of decode rows beyond decode_kv_tokens",
    "drafted_window_pairs": "the same within the sliding window",
    "accepted_tokens": "drafted tokens that were kept",
    "executed_tokens": "tokens through the layers, padding included, all steps",
    "executed_kv_tokens": "KV positions gathered by attention, padding included",
    "running": "sequences admitted and unfinished",
    "stalled_seqs": "sequences that decode and are left out, because the step only prefills",
    "waiting": "requests in the queue",
    "pages_used": "pages held when the plan's last step ends, before finished sequences leave; kept sessions included",
    "pages_total": "pages in the pool",
    "largest_free_run": "pages that one request could still be given then: all free ones when paged, the longest free "
    "run when contiguous; the other free ones are lost to external fragmentation",
    "kv_tokens_held": "KV positions written in those pages at that moment; the rest of the pages is internal "
    "fragmentation",
    "preemptions": "sequences preempted while planning it",
    "prefix_lookup_tokens": "tokens to prefill of the sequences admitted by it, where there is a prefix cache or "
    "sessions are kept",
    "prefix_hit_tokens": "those of them whose KV was there",
    "swapped_out_tokens": "KV positions moved to the host before its first step",
    "swapped_in_tokens": "KV positions moved back from the host",
    "received_tokens": "KV positions taken over from another engine",
    "copied_tokens": "KV positions copied to another run of pages, whose session had outgrown its own",
}

COST_COLUMNS: dict[str, str] = {
    "matmul_flops": "FLOPs of matrix products over useful tokens, all chips",
    "attention_flops": "FLOPs of attention over causal pairs, all chips",
    "weight_bytes": "weights read from HBM, all chips",
    "kv_read_bytes": "KV read from HBM, all chips",
    "kv_write_bytes": "KV written to HBM, all chips",
    "activation_bytes": "activations read and written, all chips",
    "link_bytes": "bytes sent over links, all chips",
    "mfu": "model FLOPs / (peak x duration), all chips",
    "mbu": "(weights + KV read + KV written) / (bandwidth x duration), all chips",
    "sol_s": "time at datasheet limits",
    "roofline_fraction": "sol_s / duration_s",
    "bound": "what the largest share of sol time waited for: compute, weights, kv, activations, link, host",
    "compute_s": "calibrated (or sol) time of the run's own mode by bound: compute-bound operations",
    "weights_s": "... operations bound by reading weights",
    "kv_s": "... operations bound by reading or writing KV",
    "activations_s": "... operations bound by activations",
    "link_s": "... collectives",
    "overhead_s": "... launches and host gap; for a measured step, everything the model does not explain",
}

REQUEST_COLUMNS: dict[str, str] = {
    "request": "row in the trace",
    "session": "session number or null",
    "client": "client number or null",
    "arrival_s": "scheduled arrival",
    "sent_s": "when the engine took it (arrival_s + schedule delay)",
    "admitted_s": "first admission to a slot",
    "first_token_s": "first output token",
    "finish_s": "last output token, refusal, abort or time-out",
    "prompt_tokens": "prompt length",
    "output_tokens": "tokens generated",
    "max_output_tokens": "tokens asked for",
    "finish_reason": "length, stop, aborted, refused, timed_out, out_of_memory",
    "detail": "why it was refused, timed out, aborted or without memory; empty otherwise",
    "preemptions": "times it was preempted",
    "cached_tokens": "prompt tokens whose KV the prefix cache, or its session, had when it was first admitted",
    "allocated_pages": "most pages that it held at once in the engine that it left, without those that were reserved "
    "for steps after its stop token",
    "kv_tokens": "KV positions written in them when it let go of them",
    "max_stall_s": "longest gap between two of its output tokens across a preemption; 0 if never preempted",
}

FLEET_COLUMNS: dict[str, str] = {
    "replica": "the engine that ran the plan, from 0; prefill replicas come first",
    "pool": "prefill or decode; empty where one pool does both",
    "chips": "of that engine",
}
"""What the table of steps has besides where several engines ran; `step` then counts within each of them."""

FLEET_REQUEST_COLUMNS: dict[str, str] = {
    "replica": "the engine that it was routed to",
    "decode_replica": "the engine that its KV was sent to, null if none: only where prefill and decode are apart",
    "handed_over_s": "first token, when its KV was ready to leave: only there",
    "arrived_s": "when its KV was there: only there",
}
