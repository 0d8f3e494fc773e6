"""What our paged attention is compared with: attention that somebody else wrote, where it is installed.

A peer attends over the very numbers that ours attends over, in the layout that it wants, and is checked against the
same truth. Peers on contiguous KV are given it without cost, and know nothing of pages, so they are measured once,
beside pages of 64. `why_not` says why a peer has nothing to say about a shape on a device: that is recorded, never a
failure.

Next: `attention_torch` (the peers in PyTorch), `attention` (the command).
"""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import attention_torch
from experiments.bench.attention_calls import Inputs, looped, paged
from experiments.bench.attention_shapes import BenchShape
from experiments.bench.attention_timing import Contender, Timeable
from kernels.pallas import compat

CONTIGUOUS_BESIDE = 64  # tokens of a page
# Calls in a program of a peer that cannot be looped over: slicing a layer's KV out of an array would copy it.
UNROLLED = 8
TRITON_SPLITS, TRITON_PAGES = 16, 8  # defaults of the upstream kernel, at most
TPU_BLOCK_TOKENS = 512


@dataclasses.dataclass(frozen=True)
class Setting:
    """What measures: a device, and the implementation that the peers stand beside."""

    device: Any
    implementation: str

    @property
    def platform(self) -> str:
        """`gpu`, `tpu` or `cpu`."""
        return self.device.platform


WhyNot = Callable[[BenchShape, Setting], str | None]


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another attention.

    Attributes:
      what: it is, for the record. why_not: the reason to leave a shape out, or None.
      make: makes it ready for some inputs and so many calls a program.
    """

    what: str
    why_not: WhyNot
    make: Callable[[Inputs, int], Contender]


def _xla(inputs: Inputs, calls: int) -> Contender:
    return paged(inputs, "xla", calls)


def _not_xla(shape: BenchShape, setting: Setting) -> str | None:
    return "it is what is measured" if setting.implementation == "xla" else None


def _cudnn(inputs: Inputs, calls: int) -> Contender:
    """Each call takes its layer's keys and values as arguments of their own."""
    shape, rows = inputs.shape, len(inputs.shape.kv_lens)
    options: dict[str, Any] = {"scale": inputs.scale, "is_causal": shape.kind == "prefill", "implementation": "cudnn"}
    if not shape.even:
        options["key_value_seq_lengths"] = inputs.kv_lens

    @jax.jit
    def program(q, layers):
        results = [q]
        for keys, values in layers:
            results.append(jax.nn.dot_product_attention(results[-1], keys, values, **options))
        return results[1], results[-1]

    q = inputs.q.reshape(rows, -1, *inputs.q.shape[1:])
    layers = inputs.contiguous
    groups = -(-calls // UNROLLED)
    walk = [[layers[(group * UNROLLED + i) % len(layers)] for i in range(UNROLLED)] for group in range(groups)]
    latest: list = [None]

    def start() -> None:
        for group in walk:
            latest[0] = program(q, group)

    def first() -> np.ndarray:
        return np.asarray(program(q, walk[0])[0], np.float32).reshape(inputs.q.shape)

    timeable = Timeable(start, lambda: jax.block_until_ready(latest[0]), groups * UNROLLED)
    return Contender(timeable, first, f"programs of {UNROLLED} calls, started one after the other")


def _not_cudnn(shape: BenchShape, setting: Setting) -> str | None:
    if setting.platform != "gpu":
        return "cuDNN needs an NVIDIA GPU"
    if shape.kind == "prefill" and shape.kv_lens != shape.q_lens:
        return "its causal mask starts at the first position, not after a past"
    return not_contiguous(shape)


def _triton(inputs: Inputs, calls: int) -> Contender:
    """The deprecated paged attention of jax.experimental.pallas.ops.gpu; splits and blocks must divide the table."""
    from jax.experimental.pallas.ops.gpu.paged_attention import paged_attention

    table_pages = inputs.page_table.shape[1]
    splits = math.gcd(table_pages, TRITON_SPLITS)
    options = {"k_splits": splits, "pages_per_compute_block": math.gcd(table_pages // splits, TRITON_PAGES)}

    def make_attend(keys, values, page_table, kv_lens):
        def attend(q, index):
            table = page_table + index * inputs.layer_pages
            return paged_attention(_scaled(q, inputs), keys, values, table, kv_lens, **options)

        return attend

    return looped(make_attend, (*_by_head(inputs), inputs.page_table, inputs.kv_lens), inputs.q, inputs, calls)


def _not_triton(shape: BenchShape, setting: Setting) -> str | None:
    if setting.platform != "gpu":
        return "Triton needs a GPU"
    return _not_paged_decode(shape)


def _tpu_paged(inputs: Inputs, calls: int) -> Contender:
    """Paged attention of jax.experimental.pallas.ops.tpu: decode only, keys and values apart."""
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    pages = math.gcd(inputs.page_table.shape[1], max(1, TPU_BLOCK_TOKENS // inputs.shape.page_tokens))
    both = {"kv_head": inputs.shape.kv_heads, "batch": len(inputs.shape.kv_lens)}
    modes = [mode for mode, count in both.items() if compat.tpu_cores() == 2 and count % 2 == 0]

    def make_attend(keys, values, page_table, kv_lens):
        def attend(q, index):
            table = page_table + index * inputs.layer_pages
            options = {"pages_per_compute_block": pages, "megacore_mode": modes[0] if modes else None}
            return paged_attention(_scaled(q, inputs), keys, values, kv_lens, table, **options)

        return attend

    return looped(make_attend, (*_by_head(inputs), inputs.page_table, inputs.kv_lens), inputs.q, inputs, calls)


def _not_tpu_paged(shape: BenchShape, setting: Setting) -> str | None:
    return "it is for TPUs" if setting.platform != "tpu" else _not_paged_decode(shape)


def _tpu_ragged(inputs: Inputs, calls: int) -> Contender:
    """Ragged paged attention (arXiv 2604.15464) of jax.experimental.pallas.ops.tpu: its page is ours, reshaped."""
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    pages = inputs.kv_pages.reshape(*inputs.kv_pages.shape[:2], -1, inputs.shape.head_size)
    rows = jnp.asarray([len(inputs.shape.kv_lens)], jnp.int32)

    def make_attend(pages, page_table, kv_lens, cu_q_lens, rows):
        def attend(q, index):
            table = page_table + index * inputs.layer_pages
            return ragged_paged_attention(q, pages, kv_lens, table, cu_q_lens, rows, sm_scale=inputs.scale)

        return attend

    arrays = (pages, inputs.page_table, inputs.kv_lens, inputs.cu_q_lens, rows)
    return looped(make_attend, arrays, inputs.q, inputs, calls)


def _not_tpu_ragged(shape: BenchShape, setting: Setting) -> str | None:
    if setting.platform != "tpu":
        return "it is for TPUs"
    return "it is given bf16 KV here" if shape.kv != "bf16" else None


def _scaled(q: jax.Array, inputs: Inputs) -> jax.Array:
    """Queries for a kernel that does not scale scores."""
    return (q.astype(jnp.float32) * inputs.scale).astype(q.dtype)


def _by_head(inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """Keys and values of all layers as [K, P, p, h]."""
    split = jax.jit(lambda pages, which: pages[:, :, :, which].transpose(2, 0, 1, 3), static_argnums=1)
    return split(inputs.kv_pages, 0), split(inputs.kv_pages, 1)


def _not_paged_decode(shape: BenchShape) -> str | None:
    if shape.kind != "decode":
        return "it decodes only"
    return "it is given bf16 KV here" if shape.kv != "bf16" else None


def not_contiguous(shape: BenchShape) -> str | None:
    """Why a peer on contiguous KV has nothing to say about a shape, or None."""
    if shape.kv != "bf16":
        return "it is given bf16 KV here"
    if len(set(shape.q_lens)) > 1:
        return "it would have to pad chunks of different lengths"
    if shape.page_tokens != CONTIGUOUS_BESIDE:
        return f"contiguous KV has no pages: measured beside pages of {CONTIGUOUS_BESIDE}"
    return None


def _in_torch(make_attend: attention_torch.MakeAttend) -> Callable[[Inputs, int], Contender]:
    def make(inputs: Inputs, calls: int) -> Contender:
        return attention_torch.contender(make_attend, inputs, calls)

    return make


def _not_torch(shape: BenchShape, setting: Setting) -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    return attention_torch.why_not(setting.platform) or not_contiguous(shape)


def _not_sdpa(shape: BenchShape, setting: Setting) -> str | None:
    reason = _not_torch(shape, setting)
    return reason or (None if shape.even else "rows of different lengths need a mask, which its fast kernels refuse")


def _not_flex(shape: BenchShape, setting: Setting) -> str | None:
    reason = _not_torch(shape, setting)
    return reason or ("it is compiled for GPUs only" if setting.platform != "gpu" else None)


PEERS: Mapping[str, Peer] = {
    "xla": Peer("our plain XLA path", _not_xla, _xla),
    "torch_sdpa": Peer(
        "PyTorch scaled_dot_product_attention, contiguous KV",
        _not_sdpa,
        _in_torch(attention_torch.sdpa),
    ),
    "torch_flex": Peer("PyTorch FlexAttention, compiled, contiguous KV", _not_flex, _in_torch(attention_torch.flex)),
    "cudnn": Peer("cuDNN through jax.nn.dot_product_attention, contiguous KV", _not_cudnn, _cudnn),
    "tpu_paged": Peer("jax.experimental.pallas.ops.tpu.paged_attention", _not_tpu_paged, _tpu_paged),
    "tpu_ragged": Peer("jax.experimental.pallas.ops.tpu.ragged_paged_attention", _not_tpu_ragged, _tpu_ragged),
    # The last: where its addresses go wrong, so does everything after it in the process.
    "triton_paged": Peer("jax.experimental.pallas.ops.gpu.paged_attention, deprecated", _not_triton, _triton),
}


def ready(
    inputs: Inputs, setting: Setting, calls: int, peers: Mapping[str, Peer]
) -> tuple[dict[str, Contender], dict[str, dict[str, Any]]]:
    """The peers that can be timed on some inputs, and what there is to record of the others."""
    contenders, records = {}, {}
    for name, peer in peers.items():
        if reason := peer.why_not(inputs.shape, setting):
            records[name] = {"status": "skipped", "reason": reason}
            continue
        try:
            contenders[name] = peer.make(inputs, calls)
        except Exception as error:  # a peer's failure is a result
            records[name] = {"status": "failed", "reason": described(error)}
    return contenders, records


def described(error: Exception, most: int = 400) -> str:
    """An exception in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= most else text[:most] + " ..."


def versions(names: Sequence[str] = ("torch", "triton", "nvidia-cudnn-cu13", "libtpu")) -> dict[str, str]:
    """Versions of what the peers are made of, where installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
