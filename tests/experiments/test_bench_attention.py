"""`experiments/bench/attention.py`: its counts, that it loses nothing, that peers see the same numbers, end to end."""

import functools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.bench import attention_measure, attention_peers, attention_plot
from experiments.bench.attention import main
from experiments.bench.attention_calls import TOLERANCE, error_of, make_inputs, paged, truth
from experiments.bench.attention_results import FAILED, MEASURED, Results, achieved, resumed, summary, table
from experiments.bench.attention_shapes import (
    BenchShape,
    Useful,
    catalogue,
    select,
    toy_catalogue,
    useful,
)
from experiments.bench.attention_timing import ACCELERATOR, CPU, Contender, Timeable, Timed, take_turns
from nanoserve.specs.errors import ConfigError

RUN = {"device": "Chip", "implementation": "auto"}
FEW = "--shapes=toy_decode_b2_s64_p64,toy_prefill_t8*"


def shape(kind="decode", kv_lens=(70, 5, 33), q_lens=None, **changes) -> BenchShape:
    """A shape small enough for plain loops."""
    sizes = {"model": "smollm2-135m", "ways": 1, "page_tokens": 16} | changes
    return BenchShape(name="one", kind=kind, kv_lens=kv_lens, q_lens=q_lens or (1,) * len(kv_lens), **sizes)


def measured(seconds: float, kind="decode", **peers: float) -> dict:
    """A record of a shape of 100 bytes and 1,000 FLOPs, under ceilings of 1,000 bytes/s and 10,000 FLOP/s."""

    def part(seconds: float) -> dict:
        rates = achieved(Useful(100, 1000), seconds, {"copy_bytes_per_s": 1000, "matmul_flops_per_s": 10_000})
        return {"status": MEASURED, "time": Timed((seconds,) * 5).record(), "error": 1e-3, **rates}

    beside = {name: part(seconds) for name, seconds in peers.items()}
    return {"kind": kind, "implementation": "xla", "peers": beside, **part(seconds)}


FAILURE = {"kind": "decode", "status": FAILED, "reason": "RuntimeError: out of registers"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shapes=decode_8b_b33_s2048_p64"], "Did you mean 'decode_8b_b32_s2048_p64'?"),
        (["--toy", "--shapes=x"], "Valid names: toy_decode_b2"),
        (["--parts=decode", "--shapes=prefill_*"], "names no shape of decode"),
        (["--parts=decod"], "Did you mean 'decode'?"),
        (["--parts=peers"], "peers are measured beside shapes"),
        (["--implementation=pallas_gp"], "Did you mean 'pallas_gpu'?"),
        (["--resume"], "name it with --out"),
        (["--toy", "--out=/no/such/folder/x.json"], "Name a file in a folder that exists"),
        (["--plot=/no/such/folder/x.png"], "there is no such folder"),
        (["decode"], "unexpected argument 'decode'"),
        (["--shape=x"], "Unknown command line flag 'shape'"),
    ],
)
def test_a_mistake_is_one_message(arguments, says, capsys):
    assert main(["attention.py", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_names_are_told_apart_and_every_shape_has_work():
    shapes = catalogue() | toy_catalogue()
    assert all(name == each.name for name, each in shapes.items())
    assert all(min(useful(each).bytes, useful(each).flops) > 0 for each in shapes.values())
    asked = {(8, 32), (1, 8)}  # KV heads and query heads of Llama-3.1-8B, and of 70B over eight chips
    assert {(each.kv_heads, each.heads) for each in catalogue().values()} == asked
    assert {each.head_size for each in catalogue().values()} == {128}


def test_decode_bytes_are_the_positions_attended_queries_and_results():
    one = shape(kv_lens=(70, 5, 33))
    kv, queries = (70 + 5 + 33) * 2 * one.kv_heads * one.head_size, 3 * one.heads * one.head_size
    assert useful(one) == Useful(bytes=2 * kv + 2 * 2 * queries, flops=4 * one.heads * one.head_size * (70 + 5 + 33))
    scales = (70 + 5 + 33) * 2 * one.kv_heads
    assert useful(shape(kv="int8")).bytes == kv + 4 * scales + 2 * 2 * queries
    assert useful(shape(page_tokens=64)) == useful(one)


def test_prefill_flops_are_those_of_the_causal_mask():
    one = shape("prefill", kv_lens=(40, 7), q_lens=(9, 7))
    pairs = sum(
        1 for length, new in ((40, 9), (7, 7)) for query in range(length - new, length) for _ in range(query + 1)
    )
    assert useful(one).flops == 4 * one.heads * one.head_size * pairs


def test_patterns_select_in_the_order_of_the_catalogue():
    names = [each.name for each in select(["*_t512_p64", "decode_8b_b1_s1024_*"], catalogue(), ("decode", "prefill"))]
    assert names == [
        "decode_8b_b1_s1024_p64", "decode_8b_b1_s1024_p16", "prefill_8b_t512_p64", "prefill_70b_tp8_t512_p64",
    ]  # fmt: skip
    assert select([], toy_catalogue(), ("prefill",)) == [
        each for each in toy_catalogue().values() if each.q_lens[0] > 1
    ]


@pytest.mark.parametrize("effort", [ACCELERATOR, CPU])
def test_programs_are_bounded_and_the_pool_outgrows_a_cache(effort):
    for one in (*catalogue().values(), *toy_catalogue().values()):
        needs = useful(one)
        assert effort.least_calls <= effort.calls(needs.bytes, needs.flops) <= effort.most_calls
        assert 1 <= effort.sets(needs.bytes) <= effort.most_sets
    assert effort.batches >= 5
    bounded = [useful(one).bytes for one in catalogue().values() if one.kind == "decode"]
    largest_cache_bytes = 60e6  # L2 of an H200
    walked = [min(ACCELERATOR.sets(size), ACCELERATOR.calls(size, 1)) * size for size in bounded]
    assert min(walked) > 2 * largest_cache_bytes


def test_contenders_take_turns_and_one_that_raises_is_left_out():
    ticks, order = iter(range(1000)), []

    def contender(name: str, fails_at: int = 99) -> Timeable:
        def start() -> None:
            order.append(name)
            if order.count(name) == fails_at:
                raise RuntimeError("illegal address")

        return Timeable(start, lambda: None, calls=4)

    contenders = {"a": contender("a"), "b": contender("b", fails_at=2)}
    timed = take_turns(contenders, CPU, lambda: float(next(ticks)))
    assert order == ["a", "b", "a", "b", *"a" * (CPU.batches - 1)]
    assert timed["a"] == Timed((0.25,) * CPU.batches)
    assert isinstance(timed["b"], RuntimeError)


def test_a_shape_that_failed_is_kept_and_left_out_of_the_summary():
    shapes = {"good": measured(0.2, xla=0.4), "better": measured(0.125, xla=0.5), "bad": FAILURE}
    decode = summary(shapes)["decode"]
    assert (decode["measured"], decode["failed"], decode["skipped"]) == (2, ["bad"], [])
    assert decode["fraction"] == {"shapes": 2, "median": pytest.approx(0.65), "least": 0.5, "least_shape": "good"}
    assert decode["times_as_fast_as"]["xla"] == {"shapes": 2, "median": 3, "least": 2, "least_shape": "good"}
    (line,) = [line for line in table(shapes) if line.startswith("bad")]
    assert line.endswith("failed: RuntimeError: out of registers")


def test_without_ceilings_there_are_rates_and_no_fractions():
    record = measured(0.2) | achieved(Useful(100, 1000), 0.2, None)
    assert record["bytes_per_s"] == 500 and record["copy_fraction"] is None
    assert summary({"one": record})["decode"]["fraction"] is None
    assert any("500 " in line for line in table({"one": record}))


def test_a_file_is_whole_after_every_shape_and_can_be_gone_on_with(tmp_path: Path):
    path = tmp_path / "results.json"
    results = Results(path)
    results.begin(RUN)
    for count, (name, record) in enumerate(
        {"good": measured(0.2, xla=1.0), "bare": measured(0.2), "bad": FAILURE}.items()
    ):
        results.add(name, record)
        assert len(json.loads(path.read_text())["shapes"]) == count + 1
    again = resumed(path)
    again.begin(RUN)
    assert [again.has(name, with_peers=False) for name in ("good", "bare", "bad", "new")] == [True, True, False, False]
    assert [again.has(name, with_peers=True) for name in ("good", "bare")] == [True, False]
    again.add("bad", measured(0.1))
    content = json.loads(path.read_text())
    assert [content["shapes"][name]["run"] for name in ("good", "bad")] == [0, 1]
    assert content["summary"]["decode"]["failed"] == []


@pytest.mark.parametrize("other", [{"device": "Other"}, {"implementation": "xla"}])
def test_a_file_holds_one_device_and_one_implementation(other, tmp_path: Path):
    results = Results(tmp_path / "results.json")
    results.begin(RUN)
    with pytest.raises(ConfigError, match="Give another --out"):
        results.begin(RUN | other)


@pytest.mark.parametrize("text", ["", "[]", '{"runs": []}'])
def test_a_file_of_something_else_is_not_gone_on_with(text, tmp_path: Path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no result of this command"):
        resumed(path)


def test_a_plot_shows_what_was_measured_and_what_failed(tmp_path: Path):
    shapes = {"decode_a": measured(0.2, xla=0.4), "decode_b": FAILURE, "prefill_c": measured(0.2, kind="prefill")}
    attention_plot.save(tmp_path / "plot.svg", shapes, "a chip")
    drawn = (tmp_path / "plot.svg").read_text()
    assert drawn.startswith("<?xml") and all(f"{text}</text>" in drawn for text in ("failed", "a", "b", "c", "ours"))
    with pytest.raises(ConfigError, match="Name a"):
        attention_plot.save(tmp_path / "plot.doc", shapes, "a chip")


@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_the_first_call_of_a_program_is_right_and_the_calls_move_on(kind):
    one = shape(kind, q_lens=(1, 1, 1) if kind == "decode" else (9, 5, 1))
    inputs = make_inputs(one, 3, "xla")
    assert [inputs.set_of(call) for call in range(4)] == [2, 1, 0, 2]
    assert error_of(paged(inputs, "xla", 2).first(), truth(inputs, oracle=True)) < TOLERANCE


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (lambda: np.ones(4) * 1.02, "error 0.02"),
        (lambda: np.full(4, np.nan), "error inf"),
        (lambda: 1 / 0, "ZeroDivision"),
    ],
)
def test_a_wrong_result_is_never_timed(result, says):
    contender = Contender(Timeable(lambda: None, lambda: None), result, "at once")
    right = Contender(Timeable(lambda: None, lambda: None), lambda: np.ones(4), "at once")
    errors, wrong = attention_measure.checked({"wrong": contender, "right": right}, np.ones(4))
    assert errors == {"right": 0.0}
    assert wrong["wrong"]["status"] == FAILED and says in wrong["wrong"]["reason"]


def test_cudnn_is_given_the_same_numbers(monkeypatch):
    portable = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, implementation, **k: portable(*a, **k))
    inputs = make_inputs(shape(page_tokens=64), 2, "xla")
    assert error_of(attention_peers._cudnn(inputs, 2).first(), truth(inputs, oracle=True)) < TOLERANCE


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_the_upstream_gpu_kernel_is_given_the_same_numbers(monkeypatch):
    from jax.experimental.pallas.ops.gpu import paged_attention as upstream

    interpreted = functools.partial(upstream.paged_attention, interpret=True)
    monkeypatch.setattr(upstream, "paged_attention", interpreted)
    inputs = make_inputs(shape(kv_lens=(70, 5, 128)), 2, "xla")
    assert error_of(attention_peers._triton(inputs, 2).first(), truth(inputs, oracle=True)) < TOLERANCE


@pytest.mark.parametrize("name", ["sdpa", "flex"])
@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_pytorch_is_given_the_same_numbers(name, kind):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    peer = attention_peers.PEERS[f"torch_{name}"]
    inputs = make_inputs(
        shape(kind, kv_lens=(40,), q_lens=(1,) if kind == "decode" else (9,), page_tokens=64), 2, "xla"
    )
    assert error_of(peer.make(inputs, 3).first(), truth(inputs, oracle=True)) < TOLERANCE


def test_a_toy_goes_end_to_end_a_failure_loses_nothing_and_resume_takes_it_again(tmp_path, monkeypatch, capsys):
    out, plot = tmp_path / "toy.json", tmp_path / "toy.png"
    measure = attention_measure.measure

    def failing(one: BenchShape, *arguments, **options):
        if one.kind == "decode":
            raise RuntimeError("the device is lost")
        return measure(one, *arguments, **options)

    command = ["attention.py", "--toy", FEW, f"--out={out}"]
    monkeypatch.setattr(attention_measure, "measure", failing)
    assert main(command) == 1
    first = json.loads(out.read_text())
    assert {name: record["status"] for name, record in first["shapes"].items()} == {
        "toy_decode_b2_s64_p64": FAILED,
        "toy_prefill_t8_past_24_p16": MEASURED,
    }
    assert "RuntimeError: the device is lost" in capsys.readouterr().out

    monkeypatch.setattr(attention_measure, "measure", measure)
    assert main([*command, "--resume", "--parts=decode,prefill,peers", f"--plot={plot}"]) == 0
    content = json.loads(out.read_text())
    assert [record["run"] for record in content["shapes"].values()] == [1, 0]
    run, record = content["runs"][0], content["shapes"]["toy_prefill_t8_past_24_p16"]
    assert run["absolute_times_count"] is False and run["machine"]["jax"] == jax.__version__
    fraction = record["useful_bytes"] / record["time"]["median_s"] / run["ceilings"]["copy_bytes_per_s"]
    assert math.isclose(record["copy_fraction"], fraction) and record["error"] < TOLERANCE
    assert record["peers"]["cudnn"] == {"status": "skipped", "reason": "cuDNN needs an NVIDIA GPU"}
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_an_implementation_that_does_not_serve_a_shape_is_skipped_with_the_reason():
    one = shape(page_tokens=4)
    setting = attention_peers.Setting(jax.devices()[0], "pallas_gpu")
    record = attention_measure.measure(one, setting, CPU, None, peers={}, oracle=True)
    assert record["status"] == "skipped" and "pages of 8, 16" in record["reason"]
