"""What the profiler wrote is read back: plans, streams, instructions; and some plans of a real run are recorded."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from nanoserve.engine.clock import WallClock
from nanoserve.engine.config import EngineConfig
from nanoserve.executors import profiling
from nanoserve.executors.profile_reading import naming, programs_on, read, recorded
from nanoserve.executors.profiling import ANNOTATION, ProfiledRun
from nanoserve.roofline.profiled import busy
from tests.executors.factories import jax_executor, mixed_trace, wall_engine

CONFIG = EngineConfig(  # one sequence: no mixed steps, so that little has to be compiled
    max_seqs=1, max_step_tokens=16, page_tokens=4, free_page_watermark=0.0, max_horizon_steps=4, max_context_tokens=128
)
TRACE = mixed_trace(3, seed=4, rate_rps=1e6)


# ---- a GPU's record, as its profiler writes it ----


class Plane:
    """A plane of a profile as protobuf text: names and numbers of events and stats are interned, as profilers do."""

    def __init__(self, name: str):
        self.name, self.lines = name, ""
        self._events, self._stats = {}, {}

    def line(self, name: str, *events: tuple[str, float, float, Mapping[str, str | int]]) -> "Plane":
        """Adds a line: name, start and end in microseconds, and stats of every event."""
        body = "".join(self._event(*event) for event in events)
        self.lines += f'lines {{ id: {len(self.lines)} name: "{name}" timestamp_ns: 1000 {body} }}\n'
        return self

    def text(self) -> str:
        known = "".join(
            f'{kind}_metadata {{ key: {number} value {{ id: {number} name: "{name}" }} }}\n'
            for kind, table in (("event", self._events), ("stat", self._stats))
            for name, number in table.items()
        )
        return f'planes {{ name: "{self.name}"\n{self.lines}{known} }}\n'

    def _event(self, name: str, start_us: float, end_us: float, stats: Mapping[str, str | int]) -> str:
        told = "".join(self._stat(key, value) for key, value in stats.items())
        start_ps, length_ps = round(start_us * 1e6), round((end_us - start_us) * 1e6)
        number = self._number(self._events, name)
        return f"events {{ metadata_id: {number} offset_ps: {start_ps} duration_ps: {length_ps} {told} }}\n"

    def _stat(self, key: str, value: str | int) -> str:
        number = self._number(self._stats, key)
        if isinstance(value, int):
            return f"stats {{ metadata_id: {number} int64_value: {value} }} "
        return f"stats {{ metadata_id: {number} ref_value: {self._number(self._stats, value)} }} "

    @staticmethod
    def _number(table: dict[str, int], name: str) -> int:
        return table.setdefault(name, len(table) + 1)


def of_loop(op: str, program: int = 7) -> dict[str, str | int]:
    return {"hlo_op": op, "hlo_module": "jit_decode_loop", "program_id": program}


def text_of(scopes: Mapping[str, str]) -> str:
    """A program with these instructions."""
    lines = "".join(
        f'  %{name} = f32[4] {"copy" if "copy" in name else "negate"}(%p), metadata={{op_name="{scope}"}}\n'
        for name, scope in scopes.items()
    )
    return f"HloModule jit_decode_loop\n\nENTRY %main (p: f32[4]) -> f32[4] {{\n  %p = f32[4] parameter(0)\n{lines}}}\n"


@pytest.fixture
def gpu():
    host = Plane("/host:CPU").line(
        "python",
        (ANNOTATION, 0, 100, {"step_num": 20}),
        ("PjitFunction(decode_loop)", 1, 5, {}),
        (ANNOTATION, 110, 200, {"step_num": 21}),
    )
    device = (
        Plane("/device:GPU:0")
        .line(
            "Stream #13(Compute)",
            ("nvjet_tst_128", 10, 30, of_loop("custom-call.2")),
            ("paged_decode", 30, 50, of_loop("custom-call.4")),
            ("loop_add_fusion_3", 120, 130, of_loop("call.1")),
            ("strange_kernel", 140, 150, {}),
        )
        .line("Stream #15(MemcpyD2D)", ("MemcpyD2D", 40, 60, of_loop("copy.9")))
        .line("XLA Modules", ("jit_decode_loop", 10, 60, {}))
    )
    other = Plane("/device:GPU:1").line("Stream #1", ("nvjet_tst_128", 10, 90, of_loop("custom-call.2")))
    texts = "".join(plane.text() for plane in (host, other, device))
    return ProfileData.from_serialized_xspace(ProfileData.text_proto_to_serialized_xspace(texts))


SCOPES = {
    "custom-call.2": "jit(decode_loop)/while/body/attention/qkv/dot_general",
    "custom-call.4": "jit(decode_loop)/while/body/attention/decode_attention/custom",
    "loop_add_fusion.3": "jit(decode_loop)/while/body/residual/add",
    "copy.9": "",
}


def test_a_gpus_streams_are_read_and_nothing_else_of_its_planes(gpu):
    found = recorded(gpu)
    assert [window.plan for window in found.windows] == [20, 21]
    assert found.windows[0].end_ns - found.windows[0].start_ns == 100_000
    assert len(found.events) == 5
    first = found.events[0]
    assert (first.name, first.op, first.module, first.program) == (
        "nvjet_tst_128",
        "custom-call.2",
        "jit_decode_loop",
        7,
    )


def test_kernels_of_two_streams_are_divided_among_operations_plan_by_plan(gpu):
    found = recorded(gpu)
    asked = []

    def programs(names):
        asked.append(names)
        return [("jit_decode_loop", 7, text_of(SCOPES))]

    first, second = busy(found.windows, found.events, naming(found.events, programs))
    assert asked == [{"jit_decode_loop"}]
    in_us = {operation: time_s * 1e6 for (operation, _), time_s in first.kernels.items()}
    assert in_us == pytest.approx({"qkv": 20, "attention_decode": 15, "copies": 15})
    in_us = {operation: time_s * 1e6 for (operation, _), time_s in second.kernels.items()}
    assert in_us == pytest.approx({"elementwise": 10, "other": 10})  # one by its kernel's name, one by none
    assert first.busy_s == pytest.approx(50e-6) and second.span_s == pytest.approx(30e-6)


def test_of_programs_with_one_name_that_with_the_instructions_is_asked_and_then_the_number(gpu):
    events = recorded(gpu).events
    wrong = dict.fromkeys(SCOPES, "jit(decode_loop)/sample/add")
    less = {"custom-call.2": "jit(decode_loop)/head/dot_general"}
    named = naming(
        events,
        lambda names: [
            ("jit_decode_loop", 3, text_of(wrong)),
            ("jit_decode_loop", 7, text_of(SCOPES)),
            ("jit_decode_loop", 7, text_of(less)),  # out of a cache: the number is another process's
        ],
    )
    assert named(events[0]) == "qkv"


def test_without_a_program_the_profilers_own_path_is_believed():
    device = Plane("/device:GPU:0").line("Stream #1", ("k", 0, 1, {"tf_op": "jit(f)/mlp/down/dot_general"}))
    data = ProfileData.from_serialized_xspace(ProfileData.text_proto_to_serialized_xspace(device.text()))
    (event,) = recorded(data).events
    assert naming([event], lambda names: [])(event) == "down"


# ---- a CPU's record, and a real engine's ----


@jax.jit
def of_two_operations(x):
    with jax.named_scope("qkv"):
        x = jnp.sin(x @ x)
    with jax.named_scope("down"):
        return jnp.cos(x @ x)


def test_a_cpus_operations_are_named_by_the_program_that_ran_them(tmp_path):
    x = jnp.ones((200, 200))
    of_two_operations(x).block_until_ready()
    with profiling.recording(tmp_path):
        for plan in (5, 6):
            with profiling.annotated(plan):
                of_two_operations(x).block_until_ready()
    found = read(tmp_path)
    assert [window.plan for window in found.windows] == [5, 6]
    for plan in busy(found.windows, found.events, naming(found.events, programs_on(jax.devices()[0]))):
        assert {operation for operation, _ in plan.kernels} >= {"qkv", "down"}
        assert plan.busy_s <= plan.span_s + 1e-9


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """A real run with plans 3, 4 and 5 recorded: the engine, the wrapper, and the folder."""
    folder = tmp_path_factory.mktemp("profile")
    executor = jax_executor(TRACE, CONFIG, num_pages=60)
    engine = wall_engine(TRACE, CONFIG, 60, executor)
    back = []
    engine.executor = run = ProfiledRun(executor, range(3, 6), folder, lambda: engine.clock, back.append)
    engine.run()
    assert back == [executor]
    return engine, run, folder


def test_the_plans_of_the_range_are_recorded_and_no_others(profiled):
    _, run, folder = profiled
    found = read(folder)
    assert [window.plan for window in found.windows] == [3, 4, 5]
    ends = [window.end_ns for window in found.windows]
    assert all(end <= after.start_ns for end, after in zip(ends, found.windows[1:], strict=False))
    assert run.seen >= 3


def test_most_of_the_time_has_a_name_and_the_device_is_never_busy_for_longer_than_the_plan_took(profiled):
    engine, _, folder = profiled
    found = read(folder)
    columns = engine.log.step_columns(60)
    plans = busy(found.windows, found.events, naming(found.events, programs_on(jax.devices()[0])))
    total_s = sum(plan.busy_s for plan in plans)
    other_s = sum(time_s for plan in plans for (operation, _), time_s in plan.kernels.items() if operation == "other")
    assert other_s < 0.2 * total_s
    for plan in plans:
        assert 0 < plan.busy_s <= plan.span_s <= columns["duration_s"][plan.plan]
        assert {"qkv", "down"} <= {operation for operation, _ in plan.kernels}


class Instant:
    """An executor whose plans are over at once."""

    def __init__(self):
        self.submitted = 0

    def submit(self, plan):
        self.submitted += 1
        return self

    def result(self):
        return "done"

    def ready(self):
        return True

    def steps_before(self, counts, span_ticks):
        return 1

    def release(self, index):
        """Nothing is held."""


def test_a_run_that_ends_within_the_range_keeps_what_it_has(tmp_path):
    back = []
    run = ProfiledRun(Instant(), range(1, 9), tmp_path, WallClock, back.append)  # type: ignore[arg-type]
    assert [run.submit(None).result() for _ in range(3)] == ["done"] * 3  # type: ignore[arg-type]
    run.finish()
    run.finish()  # nothing is left to end
    assert run.seen == 2 and back == []
    assert [window.plan for window in read(tmp_path).windows] == [1, 2]


def test_a_run_that_never_reaches_the_range_records_nothing(tmp_path):
    run = ProfiledRun(Instant(), range(5, 6), tmp_path, WallClock, lambda executor: None)  # type: ignore[arg-type]
    assert run.submit(None).result() == "done"  # type: ignore[arg-type]
    run.finish()
    assert run.seen == 0 and profiling.files(tmp_path) == []
