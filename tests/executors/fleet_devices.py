"""Runs the tiny model on virtual devices: one engine, two replicas, prefill apart from decoding; prints what came out.

A process of its own, because the number of devices is fixed when JAX starts. One JSON line a run.
"""

import json
import sys
from pathlib import Path

from nanoserve.experiment import CONFIG_CLASSES
from nanoserve.replay import Replay, prepare
from nanoserve.specs.config import load

CONFIG = Path(__file__).parents[2] / "configs" / "tiny_replicas_cpu.gin"
SMALL = [  # few programs: one size of chunk, one row that decodes, two pages a request
    "TraceSource.requests=8",
    "TraceSource.prompt_median_tokens=20",
    "TraceSource.max_output_tokens=12",
    "Engine.max_step_tokens=20",
    "Engine.max_seqs=1",
    "Engine.max_context_tokens=32",
    "Engine.max_horizon_steps=1",
    "Fleet.router='round_robin'",
]
RUNS = {
    "one": ["Cluster.mesh={'data': 1}"],
    "replicas": ["Cluster.mesh={'data': 2}"],
    "pools": [
        "Cluster.mesh={'data': 2}",
        "Disaggregation.decode_mesh={'tensor': 2}",
        "Disaggregation.decode_engine={'max_seqs': 2}",
    ],
}


def outcome(name: str, replay: Replay) -> dict:
    """What a run made, as JSON values."""
    records = replay.records()
    return {
        "run": name,
        "how": replay.choice.executor,
        "devices": [sorted(d.id for d in executor.params.embed.devices()) for executor in replay.jax_executors],
        "tokens": [entry["output_ids"] for entry in replay.outputs()],
        "pages_left": [member.engine.scheduler.pool.used_count for member in replay.members],
        "requests": records.requests.to_dict(as_series=False),
        "prefill_tokens": [int(m.engine.log.step_columns(1)["prefill_tokens"].sum()) for m in replay.members],
    }


def main(names: list[str]) -> None:
    """Runs the named cases."""
    for name in names:
        replay = prepare(load(CONFIG, CONFIG_CLASSES, "Experiment", [*SMALL, *RUNS[name]]).value)
        for _ in replay.warm_up():
            pass
        replay.run()
        print(json.dumps(outcome(name, replay)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(RUNS))
