"""Chunk sizes: bounded by the budget, adaptive ones by load."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.engine.chunking import adaptive_chunk_tokens
from nanoserve.engine.config import EngineConfig
from nanoserve.specs.errors import ConfigError
from tests.engine.factories import FIXED_TICKS, Job, make_engine


def config(**fields) -> EngineConfig:
    return EngineConfig(max_seqs=256, max_step_tokens=1024, page_tokens=16, **fields)


@given(st.integers(0, 250), st.integers(1, 500))
def test_adaptive_chunks_shrink_with_those_who_decode_and_grow_with_the_queue(decoding, prompts):
    how = config(chunking="adaptive", prefill_chunk_tokens=512)
    chunk = adaptive_chunk_tokens(how, decoding, prompts)
    assert adaptive_chunk_tokens(how, decoding + 1, prompts) <= chunk <= 512
    assert adaptive_chunk_tokens(how, decoding, prompts + 1) >= chunk >= 16
    assert adaptive_chunk_tokens(how, 0, prompts) == 512


def test_the_parameter_says_how_many_decodes_weigh_as_much_as_a_prompt():
    how = config(chunking="adaptive", prefill_chunk_tokens=512, decodes_per_prompt=8.0)
    assert adaptive_chunk_tokens(how, 8, 1) == adaptive_chunk_tokens(how, 24, 3) == 256
    with pytest.raises(ConfigError, match=r"Engine\.decodes_per_prompt"):
        config(decodes_per_prompt=0.0)


@given(
    st.lists(st.builds(Job, st.integers(0, 10**8), st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=20),
    st.sampled_from([None, 3, 30, 2000]),
    st.sampled_from(["fixed", "adaptive"]),
    st.sampled_from(["mixed", "prefill_first"]),
)
def test_a_step_never_exceeds_its_budget(jobs, most, chunking, batching):
    engine = make_engine(jobs, prefill_chunk_tokens=most, chunking=chunking, batching=batching)
    engine.run()
    steps = engine.log.step_columns(64)
    assert (steps["prefill_tokens"] + steps["decode_seqs"]).max() <= 64
    assert steps["prefill_tokens"].max() <= (most or 64)


@pytest.mark.parametrize("chunk", [4, 16])
def test_chunking_bounds_the_gap_between_tokens_under_long_prompts(chunk):
    """A step beside a chunk takes no longer than its tokens, however long the prompt."""
    jobs = [Job(0, 4, 100), *(Job(i * 20 * FIXED_TICKS, 60, 2) for i in range(1, 4))]

    def longest_mixed_step(**how) -> float:
        engine = make_engine(jobs, num_pages=200, **how)
        engine.run()
        steps = engine.log.step_columns(200)
        assert steps["prefill_tokens"][steps["kind"] == "mixed"].max() <= how.get("prefill_chunk_tokens", 64)
        return steps["duration_s"][steps["kind"] == "mixed"].max()

    assert longest_mixed_step(prefill_chunk_tokens=chunk) < longest_mixed_step()
