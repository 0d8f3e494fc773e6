"""A real engine's state on a disk and back: device arrays where they were, tokens as if it had never been away."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.engine import Engine
from nanoserve.engine.snapshot import Frozen, Header, Outline, freeze, thaw
from nanoserve.executors import snapshots
from nanoserve.executors.jax_executor import JaxExecutor
from nanoserve.specs.errors import CapacityError, SnapshotError
from tests.engine.graphs import differences
from tests.executors.factories import jax_executor, mixed_trace, tiny_model, virtual_engine

HEADER = Header(commit=None, config="", trace="a1", weights=None)
TRACE = mixed_trace(12, seed=1, rate_rps=2_000.0)
CONFIG = EngineConfig(max_seqs=4, max_step_tokens=32, page_tokens=8, free_page_watermark=0.0)
PAGES = 20  # so few that sequences are preempted
SAMPLING = {"temperature": 0.8, "seed": 3}


def engine_of(config: EngineConfig = CONFIG) -> tuple[Engine, JaxExecutor]:
    executor = jax_executor(TRACE, config, PAGES, draft=tiny_model(1) if config.draft == "model" else None, **SAMPLING)
    return virtual_engine(TRACE, config, PAGES, executor), executor


def tokens_of(executor: JaxExecutor) -> dict:
    return {index: list(ids) for index, ids, _ in executor.book.records()}


def saved_after(plans: int, folder: Path, config: EngineConfig = CONFIG) -> dict:
    """Runs a whole engine, which is saved after so many plans; returns its tokens."""
    engine, executor = engine_of(config)
    outline, left = Outline(engine), itertools.count(plans - 1, -1)

    def observe(done: int, now: int) -> None:
        if next(left) == 0:
            snapshots.save(folder, plans, HEADER, freeze(engine, outline, snapshots.is_device_array), keep=1)

    engine.run(observe=observe)
    assert engine.log.request_columns()["preemptions"] != [0] * len(TRACE)
    return tokens_of(executor)


@pytest.mark.parametrize(
    ("plans", "knobs"),
    [(3, {}), (11, {}), (14, {"preemption": "swap", "prefix_cache": "lru", "draft": "model", "draft_tokens": 2})],
)
def test_a_restored_engine_generates_the_tokens_of_one_that_was_never_away(tmp_path, plans: int, knobs: dict):
    config = dataclasses.replace(CONFIG, **knobs)
    whole = saved_after(plans, tmp_path, config)
    engine, executor = engine_of(config)
    outline = Outline(engine)
    fresh = executor.state.last_tokens
    path, _ = snapshots.newest(tmp_path)
    thaw(snapshots.read_state(path, outline), outline)
    assert fresh.is_deleted()  # room for the pool that came back
    assert engine.log.plan_count() == plans
    engine.run()
    assert tokens_of(executor) == whole


def test_nothing_of_a_real_engine_is_left_out(tmp_path):
    engine, _ = engine_of()
    outline, plans = Outline(engine), itertools.count(1)
    again, _ = engine_of()

    def compare(done: int, now: int) -> None:
        if next(plans) == 8:
            snapshots.save(tmp_path, 8, HEADER, freeze(engine, outline, snapshots.is_device_array), keep=1)
            fresh = Outline(again)
            thaw(snapshots.read_state(snapshots.newest(tmp_path)[0], fresh), fresh)
            assert differences(engine, again) == []

    engine.run(observe=compare)
    assert next(plans) > 8


def test_nothing_compiles_after_a_restored_engine_was_warmed_up(tmp_path):
    saved_after(5, tmp_path)
    engine, executor = engine_of()
    outline = Outline(engine)
    thaw(snapshots.read_state(snapshots.newest(tmp_path)[0], outline), outline)
    list(executor.warm_up())
    compiled = []

    def heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
        compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)
    engine.run()
    jax.monitoring.unregister_event_duration_listener(heard)
    assert [event for event in compiled if "backend_compile" in event] == []


def test_arrays_come_back_with_their_values_types_and_shardings(tmp_path):
    mesh = jax.make_mesh((1,), ("tensor",))
    split = NamedSharding(mesh, PartitionSpec("tensor"))
    arrays = [
        jnp.arange(6, dtype=jnp.int8),
        jax.device_put(np.ones((4, 2), np.float32), split),
        jnp.ones(3, jnp.bfloat16),
        jnp.ones(3, jnp.float8_e4m3fn),
    ]
    snapshots.save(tmp_path, 1, HEADER, Frozen(b"graph", arrays, frozenset({"engine.a"})), keep=1)
    back = snapshots.read_state(tmp_path / f"{1:012d}", Outline(object()))
    assert back.graph == b"graph" and back.parts == {"engine.a"}
    for before, after in zip(arrays, back.arrays, strict=True):
        assert after.dtype == before.dtype and after.sharding == before.sharding and after.committed == before.committed
        assert np.array_equal(np.asarray(before, np.float32), np.asarray(after, np.float32))


def test_the_newest_are_kept(tmp_path):
    (tmp_path / "000000000009.orbax-checkpoint-tmp").mkdir(parents=True)
    for plans in (1, 2, 3, 12):
        size = snapshots.save(tmp_path, plans, HEADER, Frozen(b"x" * 1000, [], frozenset()), keep=2)
        assert size > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{plans:012d}" for plans in (3, 12)]
    assert snapshots.newest(tmp_path) == (tmp_path / f"{12:012d}", [])
    assert snapshots.read_header(tmp_path / f"{12:012d}") == HEADER


def test_a_folder_without_a_whole_snapshot_says_what_is_there(tmp_path):
    (tmp_path / "000000000001.orbax-checkpoint-tmp").mkdir()
    with pytest.raises(SnapshotError, match=r"no snapshot to go on from \(skipped 000000000001\.orbax"):
        snapshots.newest(tmp_path)


def test_a_damaged_state_is_refused(tmp_path):
    snapshots.save(tmp_path, 1, HEADER, Frozen(b"x" * 1000, [jnp.ones(3)], frozenset()), keep=1)
    path = tmp_path / f"{1:012d}"
    for file in path.rglob("*"):
        if file.is_file() and "about" not in file.parts:
            file.write_bytes(b"")
    with pytest.raises(SnapshotError, match="is a damaged snapshot"):
        snapshots.read_state(path, Outline(object()))


def test_a_place_that_cannot_be_written_is_an_error_of_capacity(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CapacityError, match="cannot write the snapshot"):
        snapshots.save(tmp_path / "file", 1, HEADER, Frozen(b"", [], frozenset()), keep=1)
