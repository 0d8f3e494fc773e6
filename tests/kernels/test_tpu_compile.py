"""Every variant of the TPU kernel is accepted by the compiler of every chip, on a machine that has none of them."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.kernels import tpu_compile

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: install the extra tpu-aot"
)

FLOPS_TOLERANCE = 1e-4  # the work list is counted too
BYTES_TOLERANCE = 0.02


@pytest.fixture(scope="module")
def outcomes():
    command = [sys.executable, "-m", "tests.kernels.tpu_compile"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    return {outcome["case"]: outcome for outcome in map(json.loads, process.stdout.splitlines())}


@pytest.mark.parametrize("case", ["-".join(case) for case in tpu_compile.cases()])
def test_the_compiler_takes_it_without_copying_the_pool(outcomes, case):
    outcome = outcomes[case]
    assert "error" not in outcome, outcome["error"]
    assert outcome["pool_copies"] == 0


@pytest.mark.parametrize(
    ("variant", "rows", "heads", "h", "positions", "lanes"),
    [
        ("eight_heads", 8, 8, 128, 2048, 128),
        ("page_128_head_96_group_7", 8, 2, 96, 2048, 128),  # 7 queries are padded to 8 rows, 96 elements to 128 lanes
        ("page_32_head_64_group_1", 8, 2, 64, 2048, 128),
    ],
)
def test_the_declared_cost_of_decode_is_that_of_full_rows_padding_included(
    outcomes, variant, rows, heads, h, positions, lanes
):
    sequences = 16
    outcome = outcomes[f"v6e-decode-{variant}"]
    assert outcome["flops"] == pytest.approx(4 * sequences * rows * heads * h * positions, rel=FLOPS_TOLERANCE)
    kv_bytes = sequences * positions * heads * 2 * lanes * 2
    assert outcome["bytes"] == pytest.approx(kv_bytes, rel=BYTES_TOLERANCE)


def test_a_window_bounds_the_declared_cost(outcomes):
    outcome = outcomes["v6e-decode-head_256_group_3_window_cap"]
    assert outcome["bytes"] == pytest.approx(16 * 3 * 64 * 2 * 2 * 256 * 2, rel=0.2)  # 100 positions touch 3 pages


def test_a_short_head_costs_a_copy_of_the_pool_unless_its_layout_is_row_major(outcomes):
    """Left alone, XLA lays pages of 64-wide heads along the lanes, and converts all of them at every call."""
    assert outcomes[f"v5e-decode-{tpu_compile.LAYOUT_UNSET}"]["pool_copies"] == 1
    told, unset = outcomes["v5e-decode-page_32_head_64_group_1"], outcomes[f"v5e-decode-{tpu_compile.LAYOUT_UNSET}"]
    assert told["argument_bytes"] == pytest.approx(2 * unset["argument_bytes"], rel=0.01)


@pytest.mark.parametrize("chip", tpu_compile.CHIPS)
def test_a_write_is_in_place_and_its_declared_cost_is_that_of_a_window_there_and_back_for_each_token(outcomes, chip):
    pages, page_tokens, heads, h, tokens = 1024, 128, 8, 128, 32
    outcome = outcomes[f"{chip}-write-int8_page_128"]
    assert outcome["donated_bytes"] == pages * heads * 2 * page_tokens * (h + 4)
    window = 32 * h + 4 * page_tokens  # of a head's keys, and their scales
    token_bytes = heads * 2 * (2 * window + 4 * h)  # there and back, and the new elements as words
    assert 1 < outcome["bytes"] / (tokens * token_bytes) < 1.3  # XLA counts what prepares the tokens as well
