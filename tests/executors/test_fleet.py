"""Replicas and pools on devices of their own: the tokens are those of one engine, and every device does its part."""

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def runs() -> dict[str, dict]:
    """The cases of `fleet_devices`, on four virtual devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    process = subprocess.run(
        [sys.executable, "-m", "tests.executors.fleet_devices"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return {outcome["run"]: outcome for outcome in map(json.loads, process.stdout.splitlines())}


@pytest.mark.parametrize("run", ["replicas", "pools"])
def test_tokens_are_those_of_one_engine(runs, run):
    assert runs[run]["how"] == "jax"
    assert len(runs[run]["tokens"]) == 8
    assert runs[run]["tokens"] == runs["one"]["tokens"]


def test_replicas_have_devices_of_their_own_and_share_the_load(runs):
    assert runs["replicas"]["devices"] == [[0], [1]]
    assert sorted(runs["replicas"]["requests"]["replica"]) == [0] * 4 + [1] * 4


def test_kv_goes_from_two_prefill_replicas_to_one_that_is_cut_over_two_devices(runs):
    pools = runs["pools"]
    assert pools["devices"] == [[0], [1], [2, 3]]
    assert sum(pools["prefill_tokens"][:2]) == sum(pools["requests"]["prompt_tokens"])
    assert all(pools["prefill_tokens"][:2]) and pools["prefill_tokens"][2] == 0
    several = [tokens > 1 for tokens in pools["requests"]["output_tokens"]]
    assert pools["requests"]["decode_replica"] == [2 if more else None for more in several] and any(several)


def test_no_pages_are_left(runs):
    assert not any(sum(outcome["pages_left"]) for outcome in runs.values())
