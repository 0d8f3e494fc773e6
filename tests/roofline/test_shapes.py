"""Shapes: one array call against one call a shape, against counts written out, and under JAX's transformations."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoserve.roofline.calibration import Mode, constants_for
from nanoserve.roofline.shapes import StepShapes, shape_prices, step_counts
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.model_registry import model
from tests.roofline import factories as make

SETTINGS = {
    "dense": ("llama-3.1-70b", "h100_sxm", {"tensor": 8}),
    "window": ("mistral-7b-v0.1", "tpu_v5e", {"tensor": 4, "pipeline": 2}),
    "experts": ("mixtral-8x7b", "h100_sxm", {"tensor": 2, "expert": 4}),
    "latent": ("deepseek-v3", "h200_sxm", {"expert": 16}),
}


def prices_of(name: str, mode: Mode = "calibrated"):
    spec, chip_name, mesh = SETTINGS[name]
    cluster = ClusterSpec(chip=chip(chip_name), mesh=mesh)
    return shape_prices(model(spec), cluster, Precision(), constants_for(cluster.chip, Precision(), mode))


def test_counts_are_those_of_the_rows_and_the_chunk():
    shape = StepShapes(decode_seqs=5, context_tokens=900, chunk_tokens=200, past_tokens=64)
    window = 512
    expected = make.joined(
        make.decode_counts(5, 900, window=window), make.prefill_counts([(64, 200)], window, sampled=1)
    )
    assert step_counts(shape, window) == expected


def test_a_prefix_from_the_cache_is_past_and_costs_no_products():
    """The chunk attends it, and nothing else is computed for it."""
    fresh, cached = (step_counts(StepShapes(chunk_tokens=n, past_tokens=1024 - n)) for n in (1024, 24))
    assert fresh.prefill_kv_tokens == cached.prefill_kv_tokens == 1024
    assert cached.new_tokens == 24
    assert cached.prefill_pairs == sum(range(1001, 1025))
    prices = prices_of("dense")
    whole, rest = (prices(StepShapes(chunk_tokens=n, past_tokens=1024 - n)) for n in (1024, 24))
    assert rest.total < whole.total


@settings(max_examples=20)
@given(name=st.sampled_from(list(SETTINGS)), mode=st.sampled_from(["sol", "calibrated"]), seed=st.integers(0, 2**16))
def test_an_array_of_shapes_costs_what_each_costs_alone(name, mode, seed):
    generator = np.random.default_rng(seed)
    limits = {"decode_seqs": 300, "context_tokens": 30_000, "chunk_tokens": 3000, "past_tokens": 9000}
    columns = {field: generator.integers(0, limit, 6) for field, limit in limits.items()}
    prices = prices_of(name, mode)
    together = prices(StepShapes(**columns))
    for row in range(6):
        alone = prices(StepShapes(**{field: int(column[row]) for field, column in columns.items()}))
        for field in dataclasses.fields(alone):
            value = np.broadcast_to(getattr(together, field.name), 6)[row]
            assert value == pytest.approx(getattr(alone, field.name), rel=1e-9, abs=1e-15), field.name


def test_fields_broadcast_to_a_surface():
    rows, contexts = np.array([[1], [8], [64]]), np.array([[128, 8192]])
    surface = prices_of("dense")(StepShapes(decode_seqs=rows, context_tokens=contexts)).total
    assert surface.shape == (3, 2)
    assert (np.diff(surface, axis=0) > 0).all() and (np.diff(surface, axis=1) > 0).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_jax_maps_compiles_and_differentiates_the_same_prices(name):
    import jax
    import jax.numpy as jnp

    prices = prices_of(name)

    def seconds(rows, context, chunk):
        return prices(StepShapes(decode_seqs=rows, context_tokens=context, chunk_tokens=chunk)).total

    rows, contexts, chunks = (np.array(values, float) for values in ([1, 40, 256], [300, 9000, 500], [0, 512, 100]))
    plain = seconds(rows, contexts, chunks)
    with jax.enable_x64(True):
        mapped = jax.jit(jax.vmap(seconds))(jnp.asarray(rows), jnp.asarray(contexts), jnp.asarray(chunks))
        slope = jax.vmap(jax.grad(seconds, argnums=(0, 1, 2)))(rows, contexts, chunks)
        np.testing.assert_allclose(mapped, plain, rtol=1e-12)
        for argument, slopes in enumerate(slope):
            assert np.isfinite(slopes).all()
            step = np.eye(3)[argument] * 1e-3
            ahead, behind = (seconds(rows + s * step[0], contexts + s * step[1], chunks + s * step[2]) for s in (1, -1))
            smooth = chunks > 0 if argument == 2 else np.full(3, True)  # a chunk begins at 0, at once
            np.testing.assert_allclose(slopes[smooth], ((ahead - behind) / 2e-3)[smooth], rtol=1e-3, atol=1e-12)


def test_single_precision_is_enough_and_does_not_overflow():
    import jax

    prices = prices_of("dense")
    seconds = jax.jit(lambda rows, context: prices(StepShapes(decode_seqs=rows, context_tokens=context)).total)
    exact = prices(StepShapes(decode_seqs=256, context_tokens=32768)).total
    assert float(seconds(256, 32768)) == pytest.approx(exact, rel=1e-5)
