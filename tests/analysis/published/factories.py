"""Small scenarios and rows for the tests of this room."""

import numpy as np

from nanoserve.analysis.published.results import PublishedRow
from nanoserve.analysis.published.scenario import Scenario
from nanoserve.engine.config import EngineConfig
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.model_registry import model
from nanoserve.trace.types import Trace


def trace(prompts, outputs, arrivals=None) -> Trace:
    count = len(prompts)
    return Trace(
        name="test",
        source="test",
        arrival_s=np.zeros(count) if arrivals is None else np.array(arrivals, float),
        prompt_tokens=np.array(prompts, np.int64),
        output_tokens=np.array(outputs, np.int64),
    ).validated()


def scenario(requests: Trace, **changes) -> Scenario:
    defaults = {
        "model": model("llama-3.1-8b"),
        "cluster": ClusterSpec(chip=chip("h100_sxm"), mesh={"tensor": 1}),
        "precision": Precision(),
        "engine": EngineConfig(max_seqs=64, max_step_tokens=2048),
        "trace": requests,
        "served": False,
    }
    return Scenario(**{**defaults, **changes})


def row(**changes) -> PublishedRow:
    defaults = {
        "line": 7,
        "source": "aiconfigurator-core 0.12.0 systems/silicon_sample.csv",
        "hardware": "H100-SXM-80GB",
        "model": "Llama-3.1-70B",
        "precision": "fp8",
        "engine": "vllm",
        "mode": "closed loop, lengths U[0.8,1.0]x (InferenceX RANDOM_RANGE_RATIO=0.8)",
        "notes": "",
        "chips": 4,
        "tensor": 4,
        "prompt_tokens": 1000,
        "output_tokens": 500,
        "concurrency": 8,
        "ttft_s": 0.1,
        "tpot_s": 0.012,
        "output_tokens_per_s": None,
    }
    return PublishedRow(**{**defaults, **changes})
