"""A small service that loses requests for a reason that a config can mend, and its load."""

import dataclasses

import numpy as np

from nanoserve.engine.config import EngineConfig
from nanoserve.experiment import Cluster, Experiment, SloConfig
from nanoserve.trace.slices import with_stated_limit
from nanoserve.trace.source import TraceSource, open_trace
from nanoserve.trace.types import Trace

NAIVE = Experiment(
    model="llama-3.1-8b",
    executor="roofline",
    cluster=Cluster(chip="h100_sxm", mesh={"tensor": 1}),
    engine=EngineConfig(allocator="contiguous", when_full="fail", num_pages=600, timeout_s=30.0, max_seqs=64),
    slo=SloConfig(name="llama3.1-8b"),
)
"""Memory for 9,600 tokens, set aside for the longest answers; who finds none fails."""


def load(requests: int = 400, seed: int = 0) -> Trace:
    """Short prompts whose clients state a limit that few answers reach."""
    trace = open_trace(
        TraceSource(
            requests=requests,
            rate_rps=12.0,
            arrivals="gamma",
            cv=2.0,
            prompt_median_tokens=150.0,
            max_prompt_tokens=1000,
            output_median_tokens=60.0,
            max_output_tokens=400,
            seed=seed,
        )
    )
    return with_stated_limit(trace, 1024)


def with_other_lengths(trace: Trace, rows: np.ndarray) -> Trace:
    """The same arrivals, with other prompts in these rows (bool [N])."""
    return dataclasses.replace(trace, prompt_tokens=np.where(rows, 3 * trace.prompt_tokens + 7, trace.prompt_tokens))
