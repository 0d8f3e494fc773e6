"""SmolLM2 on as many of eight virtual devices as it can be cut over: the reference's tokens.

Its 9 query heads and 3 KV heads are shared by 3 chips, not by 8, and its 30 layers make 2 or 6 stages (`test_choose`).
All eight are used by four replicas of two stages. `NANOSERVE_ALL_LAYOUTS=1` runs every layout, some ten minutes;
without it one is run.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from nanoserve.specs.errors import WeightsError
from nanoserve.weights.open import open_weights
from tests.executors.parallel_smollm2 import SPEC, WEIGHTS

REPOSITORY = pathlib.Path(__file__).parents[2]
TOKENS = 6
LAYOUTS = [{"pipeline": 2, "tensor": 3}]
ALL = bool(os.environ.get("NANOSERVE_ALL_LAYOUTS"))
if ALL:
    LAYOUTS += [{"tensor": 3}, {"pipeline": 6}]
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def prompts(shared) -> list[dict]:
    """The shortest prompts of the reference, and the first tokens after them."""
    try:
        open_weights(WEIGHTS, SPEC)
    except WeightsError as error:
        pytest.skip(str(error))
    reference = json.loads((shared / "references" / "smollm2_reference.json").read_text())["prompts"]
    shortest = sorted(reference, key=lambda prompt: len(prompt["prompt_ids"]))[:4]
    return [{"prompt_ids": p["prompt_ids"], "output_ids": p["output_ids"][:TOKENS]} for p in shortest]


def test_tokens_are_the_references_whatever_the_layout(prompts):
    found = _run("parallel_smollm2", json.dumps(LAYOUTS), json.dumps(prompts))
    assert found == [[prompt["output_ids"] for prompt in prompts]] * len(LAYOUTS)


@pytest.mark.skipif(not ALL, reason="seven minutes of compiling for four replicas: NANOSERVE_ALL_LAYOUTS=1 runs it")
def test_four_replicas_of_two_stages_use_all_eight_devices(prompts, tmp_path):
    trace = tmp_path / "prompts.jsonl"
    trace.write_text("".join(json.dumps(_as_sharegpt(prompt)) + "\n" for prompt in prompts))
    (found,) = _run("fleet_smollm2", str(trace))
    assert found["devices"] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert sorted(found["replica"]) == [0, 1, 2, 3]
    assert found["tokens"] == [prompt["output_ids"] for prompt in prompts]


def _as_sharegpt(prompt: dict) -> dict:
    ids, answer = prompt["prompt_ids"], prompt["output_ids"]
    return {
        "arrival_time_ns": 0,
        "input_toks": len(ids),
        "output_toks": len(answer),
        "input_tok_ids": ids,
        "output_tok_ids": answer,
    }


def _run(module: str, *arguments: str) -> list:
    """The JSON lines that a module of this folder prints, in a process that sees eight devices."""
    command = [sys.executable, "-m", f"tests.executors.{module}", *arguments]
    environment = os.environ | EIGHT | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
