"""What every number in a report means, in words, as it is printed at the end of each report."""

from collections.abc import Sequence

DEFINITIONS: Sequence[tuple[str, str]] = (
    ("t0", "The scheduled arrival of a request. A request that the engine took late has waited all the same."),
    ("TTFT", "Time to first token: first output token − t0."),
    ("TPOT", "Time per output token: (last token − first token) / (n − 1), for requests of n ≥ 2 output tokens."),
    (
        "ITL",
        (
            "Inter-token latency: every gap between two output tokens of a sequence, pooled over all sequences. The "
            "gap across a preemption is not in it; it is the stall."
        ),
    ),
    ("E2E", "End to end: last token − t0. E2E per token divides it by n."),
    ("Queue", "First admission to a slot − t0."),
    ("Stall", "Longest gap across a preemption, for requests that were preempted."),
    ("Schedule delay", "Time from t0 until the engine took the request, for all issued requests."),
    ("Completed", "Finished by length or by a stop token. Latencies and throughput are over completed requests."),
    (
        "SLO attainment",
        (
            "Requests with TTFT and TPOT within the limits, over all issued requests: refusals, aborts and time-outs "
            "are misses. Goodput is the same count per second. A request of one token is judged by its TTFT."
        ),
    ),
    ("Duration", "First scheduled arrival to last finish. Busy time is the part spent in plans."),
    ("MFU", "Model FLOPs of useful tokens, over peak × chips × busy time. Padding does not count as work."),
    (
        "MBU",
        (
            "Bytes that must move (weights once per step, KV attended, KV written; no activations, no padding), over "
            "HBM bandwidth × chips × busy time."
        ),
    ),
    ("Roofline fraction", "Time the plans would take at datasheet limits, over the time they took."),
    (
        "Bound",
        (
            "What an operation's time went to. Each operation counts for the resource that limits it; launches and "
            "host gaps are overhead. In an executed run, overhead is all time that the cost model does not explain."
        ),
    ),
    (
        "Drafted, accepted",
        (
            "Tokens guessed ahead and verified by the model in one step, and those of them that it would have chosen "
            "itself. A sequence gains one token in a step and each accepted one; they appear together, so the gaps "
            "between them are zero."
        ),
    ),
    (
        "Page",
        "A block of KV positions (vLLM: block). KV utilization is positions written / positions in the pages held.",
    ),
)
