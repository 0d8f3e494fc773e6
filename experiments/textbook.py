"""Writes docs/textbook.md: figures that courses and books teach about serving, recomputed by the cost model.

    python experiments/textbook.py
    python experiments/textbook.py --out=/tmp/textbook.md

Every recomputed figure on the page comes from a function of nanoserve.roofline or nanoserve.specs, named beside it.
Exit code 0: written. 2: something the user can mend.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command
from nanoserve.engine.pages import PagePool
from nanoserve.roofline.memory import MemoryPlan, max_batch, weight_bytes_per_chip
from nanoserve.roofline.op import totals
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.shapes import StepShapes, step_counts
from nanoserve.roofline.timing import critical_batch_tokens
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.model_registry import model
from nanoserve.specs.sizes import kv_bytes_per_token, parameter_counts, stored_bytes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "textbook.md"
GB, GIB = 1e9, 2**30
INT8 = Precision(weights="int8", kv="int8")
ROWS, CONTEXT = 32, 8192  # of the scaling book's decode step

INTRODUCTION = """# Textbook numbers, recomputed

Figures that courses and books teach about serving language models, and what the cost model says of each. Some are
confirmed; where one slips, the reason is given. A GB is 1e9 bytes and a GiB 2**30. Made by

```
python experiments/textbook.py
```

and held to the code by `tests/experiments/test_textbook.py`.
"""
HEADER = ("|  | as taught | recomputed | why |", "|---|---|---|---|")


@dataclasses.dataclass(frozen=True)
class Example:
    """One figure: its subject, what is taught, what we compute, and why they agree or differ."""

    subject: str
    taught: str
    recomputed: str
    why: str


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("out", str(PAGE), "file to write", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    command.write_text("--out", Path(asked.out), page())
    print(f"written to {asked.out}")
    return 0


def page() -> str:
    """The page, whole."""
    sections: Mapping[str, Iterator[Example]] = {
        "Course notes: KV and capacity": capacity_examples(),
        "Parameters": parameter_examples(),
        "The scaling book: Llama-3-70B on TPU v5e": scaling_book_examples(),
    }
    lines = [INTRODUCTION]
    for title, examples in sections.items():
        lines += [f"## {title}", "", *HEADER]
        lines += [f"| {each.subject} | {each.taught} | {each.recomputed} | {each.why} |" for each in examples]
        lines.append("")
    return "\n".join([*lines, SOURCES])


SOURCES = """## Sources

The scaling book: Austin et al., "How to Scale Your Model", chapters on inference and on serving LLaMA 3-70B
(`jax-ml/scaling-book@04d8de5`). KV of DeepSeek-V3: Zhao et al., "Insights into DeepSeek-V3", 2025, table 1. Parameters
of Mixtral: Jiang et al., "Mixtral of Experts", 2024, section 1. The rest: lecture notes on this subject.
"""


def capacity_examples() -> Iterator[Example]:
    """KV bytes, and how many sequences a memory holds."""
    llama_13b, llama_70b = (4096 * kv_bytes_per_token(model(name)) for name in ("llama-2-13b", "llama-2-70b"))
    every_head = dataclasses.replace(model("llama-2-70b"), kv_heads=model("llama-2-70b").heads)
    unshared = 4096 * kv_bytes_per_token(every_head)
    yield Example(
        "KV of Llama-2-13B at 4,096 tokens, fp16",
        "4,194,304,000 bytes",
        f"{llama_13b:,} bytes, {llama_13b / GIB:g} GiB",
        "2 x 40 layers x 40 heads x 128 x 2 bytes a token (`sizes.kv_bytes_per_token`); taught is "
        f"{4_194_304_000 / llama_13b:g} times that, as of 50 layers",
    )
    yield Example(
        "KV of a 70B at 4,096 tokens, 64 KV heads",
        "5.0 GB",
        f"{unshared / GB:.1f} GB",
        f"keys *and* values: the factor 2 was left out, and {unshared / 2 / GIB:.1f} GiB called GB",
    )
    yield Example(
        "the same, as Llama-2-70B is",
        "-",
        f"{llama_70b / GB:.2f} GB",
        "8 KV heads, which 64 query heads share",
    )
    yield Example(
        "KV a token of Llama-3-70B, bf16",
        "2.5 MiB",
        f"{kv_bytes_per_token(model('llama-3.1-70b')) / 2**10:g} KiB",
        f"2.5 MiB is right for 64 KV heads ({kv_bytes_per_token(every_head) / 2**20:g} MiB); it has 8",
    )
    users = [max_batch(room(500e9, tokens_bytes // 4096), 4096) for tokens_bytes in (unshared, llama_70b)]
    yield Example(
        "users of 4,096 tokens in 500 GB of KV",
        "23",
        f"{users[0]} with 64 KV heads, {users[1]} with 8",
        "`memory.max_batch`, in whole pages of 16 tokens",
    )
    h100 = chip("h100_sxm").peak("bf16") / 1e12
    yield Example(
        "peak of an H100, fp16",
        "1,979 TFLOP/s",
        f"{h100:g} TFLOP/s",
        "the headline counts 2:4 sparse matrices; a dense model reaches half (`chips.ChipSpec.peak`)",
    )
    yield fragmentation()


def fragmentation() -> Example:
    """An allocator of pages cannot fragment externally: any free page will do."""
    scattered, asked = PagePool(8), 4
    pages = scattered.alloc(8)
    scattered.free([pages[1], pages[6]])
    enough = PagePool(8)
    pages = enough.alloc(8)
    enough.free(pages[::2])
    return Example(
        f"{asked} blocks asked for, {scattered.free_count} free, not adjacent",
        "external fragmentation",
        "exhaustion" if scattered.free_count < asked else "served",
        f"with {enough.free_count} free, none of them adjacent, it gets pages {sorted(enough.alloc(asked))} "
        "(`engine.pages.PagePool`); any page will do",
    )


def parameter_examples() -> Iterator[Example]:
    """Sizes of models with experts and of latent KV."""
    mixtral, deepseek = model("mixtral-8x7b"), model("deepseek-v3")
    counts = parameter_counts(mixtral)
    yield Example(
        "parameters of Mixtral 8x7B",
        "8 x 7 = 56 B",
        f"{counts.total / GB:.1f} B, {counts.active / GB:.1f} B active",
        "only the feed-forward is there eight times (`sizes.parameter_counts`); the paper says 47 B and 13 B",
    )
    counts = parameter_counts(deepseek)
    yield Example(
        "parameters of DeepSeek-V3",
        "671 B, 37 B active",
        f"{counts.total / GB:.1f} B, {counts.active / GB:.1f} B active",
        "the layer that predicts a second token is not counted; the active ones are with embedding and head",
    )
    latent = kv_bytes_per_token(deepseek)
    expanded = 2 * 2 * deepseek.layers * deepseek.heads * 128
    yield Example(
        "KV a token of DeepSeek-V3, bf16",
        "70.272 kB",
        f"{latent / 1e3:g} kB",
        f"one latent of 512 and a rotary key of 64 a layer; keys and values of 128 heads would be "
        f"{expanded / latent:.0f} times as much",
    )


def scaling_book_examples() -> Iterator[Example]:
    """Chapters on inference and on serving Llama-3-70B."""
    llama, v5e = model("llama-3.1-70b"), chip("tpu_v5e")
    critical = [critical_batch_tokens(v5e, Precision(weights=dtype)) for dtype in ("bf16", "int8")]
    yield Example(
        "critical batch of a v5e",
        "240; 120 with int8 weights",
        f"{critical[0]:.1f}; {critical[1]:.1f}",
        "`timing.critical_batch_tokens`: peak x bytes per weight / (2 x bandwidth)",
    )
    token = kv_bytes_per_token(llama, "int8")
    yield Example("KV a token, int8", "160 kB", f"{token:,} bytes, {token / 2**10:g} KiB", "confirmed, in KiB")
    yield from decode_examples(token)
    yield from smallest_slices()


def decode_examples(token_bytes: int) -> Iterator[Example]:
    """32 sequences of 8,192 positions, int8 weights and KV, over slices of v5e."""
    v5e, moved = chip("tpu_v5e"), step_bytes()
    as_rounded = 70e9 + ROWS * CONTEXT * 160e3
    yield Example(
        "bytes of a decode step, 32 x 8,192 positions, int8",
        "112 GB",
        f"{moved / GB:.1f} GB",
        f"`ops.step_ops`: the book takes 70 B parameters and 160e3 bytes ({as_rounded / GB:.1f} GB); there are "
        f"{parameter_counts(model('llama-3.1-70b')).total / GB:.1f} B and {token_bytes:,}",
    )
    seconds = {chips: moved / (chips * v5e.hbm_bytes_per_s) for chips in (8, 16)}
    rounded_s = as_rounded / (8 * v5e.hbm_bytes_per_s)
    yield Example(
        "its time on a 4x2",
        "17 ms",
        f"{seconds[8] * 1e3:.1f} ms",
        f"over the bandwidth of eight chips; with the book's bytes {rounded_s * 1e3:.1f} ms",
    )
    yield Example(
        "its throughput there",
        "235 tokens/s a chip",
        f"{ROWS / seconds[8] / 8:.0f} tokens/s a chip",
        f"32 / 17 ms / 8 is {ROWS / 17e-3 / 8:.0f}; with the book's bytes unrounded {ROWS / rounded_s / 8:.0f}",
    )
    yield Example(
        "its time on a 4x4",
        "8.5 ms",
        f"{seconds[16] * 1e3:.1f} ms",
        f"with the book's bytes {rounded_s / 2 * 1e3:.1f} ms, if sequences share the chips evenly; 16-way tensor "
        f"parallelism holds each of the 8 KV heads twice and takes {sixteen_ways_s() * 1e3:.1f} ms",
    )


def smallest_slices() -> Iterator[Example]:
    """The book's table of the smallest slice for each dtype, and what is left there for KV."""
    llama = model("llama-3.1-70b")
    total = parameter_counts(llama).total
    left = 8 * 16e9 - stored_bytes(total, "int8")
    held = max_batch(room(left, kv_bytes_per_token(llama, "int8")), CONTEXT)
    yield Example(
        "KV room and sequences of 8k beside int8 weights on a 4x2",
        "68 GB, 52",
        f"{left / GB:.1f} GB, {held}",
        "8 x 16 GB less the weights; the table's 68 is 10 too many",
    )
    plain, stored = total / 2, weight_bytes_per_chip(llama, Precision(weights="int4"))
    yield Example(
        "weights in int4",
        "45 GB",
        f"{plain / GB:.1f} GB",
        f"half a byte each; as checkpoints store them, embedding and head in bf16 and a scale for each group of 128, "
        f"{stored / GB:.1f} GB (`memory.weight_bytes_per_chip`)",
    )


def step_bytes() -> int:
    """Weights and KV that one decode step of the book reads, of all chips together."""
    alone = totals(_decode_ops({"tensor": 1}))
    return alone.weight_bytes + alone.kv_read_bytes


def sixteen_ways_s() -> float:
    """The same step over 16 tensor-parallel chips: what one of them reads, over its bandwidth."""
    one = totals(_decode_ops({"tensor": 16}))
    return (one.weight_bytes + one.kv_read_bytes) / chip("tpu_v5e").hbm_bytes_per_s


def _decode_ops(mesh: Mapping[str, int]):
    cluster = ClusterSpec(chip=chip("tpu_v5e"), mesh=mesh)
    counts = step_counts(StepShapes(decode_seqs=ROWS, context_tokens=CONTEXT))
    return step_ops(model("llama-3.1-70b"), cluster, INT8, counts)


def room(kv_bytes: float, token_bytes: int) -> MemoryPlan:
    """A memory with nothing in it but KV."""
    return MemoryPlan(
        hbm_bytes=int(kv_bytes),
        planned_bytes=int(kv_bytes),
        weight_bytes=0,
        activation_bytes=0,
        runtime_bytes=0,
        page_bytes=16 * token_bytes,
        kv_bytes_per_token=token_bytes,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
