"""SmolLM2 on as many of eight virtual devices as it can be cut over: the reference's tokens.

Its 9 query heads and 3 KV heads are shared by 3 chips, not by 8, and its 30 layers make 2 or 6 stages (`test_choose`).
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
if os.environ.get("NANOSERVE_ALL_LAYOUTS"):
    LAYOUTS += [{"tensor": 3}, {"pipeline": 6}]


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
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.executors.parallel_smollm2", json.dumps(LAYOUTS), json.dumps(prompts)]
    done = subprocess.run(command, env=os.environ | flags, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [[prompt["output_ids"] for prompt in prompts]] * len(LAYOUTS)
