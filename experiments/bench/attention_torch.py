"""PyTorch's attention as a peer: the same device memory, handed over without a copy, and calls in a CUDA graph.

Torch is imported where it is used: it is no dependency of the project. Tensors are [B, heads, positions, h], as views
of keys and values [B, S, K, h].
"""

# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.bench.attention_shapes import BenchShape
from experiments.bench.attention_timing import Contender, Timeable

if TYPE_CHECKING:
    from experiments.bench.attention_calls import Inputs

WARM_UPS = 3  # what PyTorch's manual runs before it captures a graph

Attend = Callable[[Any, Any, Any], Any]  # (queries, keys, values) -> result
MakeAttend = Callable[[BenchShape, str], Attend]  # for a shape, on a device


def why_not(platform: str) -> str | None:
    """Why PyTorch, which is installed, cannot use the device, or None."""
    import torch

    if platform == "tpu":
        return "PyTorch does not run on this device"
    return "this PyTorch has no CUDA" if platform == "gpu" and not torch.cuda.is_available() else None


def contender(make_attend: MakeAttend, inputs: "Inputs", calls: int) -> Contender:
    """A chain of `calls` calls that walk the layers' keys and values."""
    import torch

    handed = [tuple(torch.from_dlpack(array).transpose(1, 2) for array in layer) for layer in inputs.contiguous]
    q = torch.from_dlpack(inputs.q)
    q = q.reshape(len(inputs.shape.q_lens), -1, *q.shape[1:]).transpose(1, 2)
    attend = make_attend(inputs.shape, q.device.type)

    def program() -> Any:
        first = result = attend(q, *handed[0])
        for call in range(1, calls):
            result = attend(result, *handed[call % len(handed)])
        return first

    start, wait, latest, how = _captured(program) if q.is_cuda else _eager(program)

    def first() -> np.ndarray:
        start()
        wait()
        result = latest[0].transpose(1, 2).reshape(inputs.q.shape)
        return result.float().cpu().numpy()

    return Contender(Timeable(start, wait, calls), first, how)


def sdpa(shape: BenchShape, device: str) -> Attend:
    """`scaled_dot_product_attention`, with the kernel that PyTorch picks."""
    from torch.nn.attention.bias import causal_lower_right
    from torch.nn.functional import scaled_dot_product_attention

    options: dict[str, Any] = {"scale": shape.head_size**-0.5, "enable_gqa": True}
    if shape.kind == "prefill":
        options["attn_mask"] = causal_lower_right(shape.q_lens[0], shape.kv_lens[0])
    return lambda q, keys, values: scaled_dot_product_attention(q, keys, values, **options)


def flex(shape: BenchShape, device: str) -> Attend:
    """`flex_attention`, compiled for the shape, with a block mask where not everything is seen."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    lens, past = torch.tensor(shape.kv_lens, device=device), max(shape.kv_lens) - max(shape.q_lens)

    def seen(row, head, query, position):
        return (position < lens[row]) & (position <= past + query if shape.kind == "prefill" else True)

    options: dict[str, Any] = {"scale": shape.head_size**-0.5, "enable_gqa": True}
    if shape.kind == "prefill" or not shape.even:
        sizes = (len(shape.kv_lens), None, shape.q_lens[0], max(shape.kv_lens))
        options["block_mask"] = create_block_mask(seen, *sizes, device=device)
    torch.compiler.reset()  # or, after eight shapes, it would run uncompiled and say so in a log only
    compiled = torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention
    return lambda q, keys, values: compiled(q, keys, values, **options)


def _captured(program: Callable[[], Any]) -> tuple[Callable[[], None], Callable[[], None], list, str]:
    """Start, wait, where the first call's result is, and how: one CUDA graph, warmed up on a stream of its own."""
    import torch

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            program()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        latest = [program()]
    return graph.replay, torch.cuda.synchronize, latest, "one CUDA graph"


def _eager(program: Callable[[], Any]) -> tuple[Callable[[], None], Callable[[], None], list, str]:
    latest: list = [None]

    def start() -> None:
        latest[0] = program()

    return start, lambda: None, latest, "call by call"
