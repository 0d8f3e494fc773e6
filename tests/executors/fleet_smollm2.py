"""Runs SmolLM2 on eight virtual devices, four replicas of two stages each, over a trace of token ids; prints tokens.

In a process of its own, which must see eight devices: `python -m tests.executors.fleet_smollm2 TRACE`.
"""

import json
import sys
from pathlib import Path

from nanoserve.experiment import CONFIG_CLASSES
from nanoserve.replay import prepare
from nanoserve.specs.config import load

CONFIG = Path(__file__).parents[2] / "configs" / "smollm2_cpu.gin"
BINDINGS = (  # few programs: one row that decodes, one size of chunk
    "Cluster.mesh={'data': 4, 'pipeline': 2}",
    "Fleet.router='round_robin'",
    *(f"Precision.{name}='f32'" for name in ("weights", "kv", "activations", "compute")),
    "Sampling.ignore_eos=True",
    "Engine.max_step_tokens=32",
    "Engine.max_seqs=2",
    "Engine.max_context_tokens=64",
    "Engine.max_horizon_steps=1",
)


def main(trace: str) -> None:
    """Prints one JSON object: who ran on which devices, and every request's tokens and replica."""
    replay = prepare(load(CONFIG, CONFIG_CLASSES, "Experiment", [*BINDINGS, f"TraceSource.path={trace!r}"]).value)
    for _ in replay.warm_up():
        pass
    replay.run()
    devices = [sorted(d.id for d in executor.params.embed.devices()) for executor in replay.jax_executors]
    requests = replay.records().requests
    tokens = [entry["output_ids"] for entry in replay.outputs()]
    print(json.dumps({"devices": devices, "tokens": tokens, "replica": requests["replica"].to_list()}))


if __name__ == "__main__":
    main(sys.argv[1])
