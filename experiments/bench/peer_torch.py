"""Hugging Face transformers as a peer of whole decode steps: its Llama with our weights, a static cache, torch.compile.

As its documentation has it: a `StaticCache`, and the step of one token (model and argmax) compiled as one graph with
`fullgraph`, called from a loop in Python that never asks for a result. Attention is what transformers picks for a
compiled step over a static cache: `scaled_dot_product_attention` with a mask, hence with KV heads repeated.

Weights and keys are copied from JAX's arrays on the device (DLPack), tensor by tensor, into memory that PyTorch owns.
Torch is imported where it is used: it is no dependency of the project.

Source: the guides "Static cache" and "torch.compile" of transformers 5, checked with 5.17.0 on torch 2.11.0.
Next: `peer`, which times both.
"""

# pyright: reportMissingImports=false

import dataclasses
import gc
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int32

from nanoserve.specs.errors import WeightsError
from nanoserve.specs.models import ModelSpec
from nanoserve.weights.write import huggingface_config

HOW = "a loop in Python over the compiled step"


def why_not(platform: str) -> str | None:
    """Why there is no such peer on a device, or None."""
    for module, name in {"torch": "PyTorch", "transformers": "transformers"}.items():
        if importlib.util.find_spec(module) is None:
            return f"{name} is not installed"
    import torch

    if platform == "tpu":
        return "PyTorch does not run on this device"
    return "this PyTorch has no CUDA" if platform == "gpu" and not torch.cuda.is_available() else None


def llama(spec: ModelSpec, tensors: Iterable[tuple[str, Array]], platform: str) -> Any:
    """`LlamaForCausalLM` with given weights, in their dtype.

    Args:
      spec: the model. tensors: under Hugging Face names (`nanoserve.model.export.tensors`), all of them.
      platform: as JAX says it: `gpu` or `cpu`.

    Raises:
      WeightsError: a parameter got no tensor.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**huggingface_config(spec))
    tensors = iter(tensors)
    name, first = next(tensors)
    with torch.device("cuda" if platform == "gpu" else "cpu"), torch.no_grad():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.from_dlpack(first).dtype).eval()
        parameters = dict(model.named_parameters())
        parameters.pop(name).copy_(torch.from_dlpack(first))
        for name, array in tensors:
            parameters.pop(name).copy_(torch.from_dlpack(array))
    if parameters:
        raise WeightsError(f"transformers' {spec.name} has parameters that got no tensor: {', '.join(parameters)}")
    return model


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Rows that decode together over a static cache. What is written from a step's start on is written anew each time.

    Attributes:
      model: of `llama`. cache: a `StaticCache`. tokens: the first step's input, [B, 1].
      step: (model, tokens, cache) -> the next tokens [B, 1]; compiled.
    """

    model: Any
    cache: Any
    tokens: Any
    step: Callable[[Any, Any, Any], Any]

    def logits(self, past: int) -> Float[np.ndarray, "B V"]:
        """Of a step after `past` positions; not compiled."""
        import torch

        self._rewind(past)
        with torch.no_grad():
            logits = _logits(self.model, self.tokens, self.cache).float().cpu().numpy()
        torch.cuda.empty_cache()  # what single operations took is too much beside what the compiled step takes
        return logits

    def start(self, past: int, steps: int) -> Any:
        """Starts so many steps after `past` positions; returns their tokens [B, steps], perhaps still under way."""
        import torch

        self._rewind(past)
        tokens, taken = self.tokens, []
        with torch.no_grad():
            for _ in range(steps):
                # A copy, as the documentation has it: the graph's next run overwrites its result.
                tokens = self.step(self.model, tokens, self.cache).clone()
                taken.append(tokens)
            return torch.cat(taken, dim=1)

    def _rewind(self, past: int) -> None:
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(past)


def decoding(
    model: Any,
    keys_and_values: Iterable[tuple[Float[Array, "B S K h"], Float[Array, "B S K h"]]],
    tokens: Int32[Array, " B"],
    mode: str,
) -> Decoding:
    """Makes rows ready to decode; the step is compiled when it is first taken.

    Args:
      model: of `llama`. keys_and_values: of each layer; the cache has room for S positions.
      tokens: the first step's input. mode: of `torch.compile`.
    """
    import torch
    from transformers import StaticCache

    release()
    cache: Any = None
    for index, (keys, values) in enumerate(keys_and_values):
        B, S, K, h = keys.shape
        if cache is None:
            cache = StaticCache(config=model.config, max_cache_len=S)
            cache.early_initialization(B, K, h, model.dtype, model.device)
        cache.layers[index].keys.copy_(torch.from_dlpack(keys).transpose(1, 2))
        cache.layers[index].values.copy_(torch.from_dlpack(values).transpose(1, 2))
    inputs = torch.from_dlpack(tokens).to(torch.int64)[:, None].clone()
    return Decoding(model, cache, inputs, torch.compile(_one_token, mode=mode, fullgraph=True))


def release() -> None:
    """Lets go of compiled steps and of what they hold; or a second batch size would be compiled for any batch size."""
    import torch
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    gc.collect()
    torch.cuda.empty_cache()


def wait(platform: str) -> None:
    """Until all that was started is done."""
    if platform == "gpu":
        import torch

        torch.cuda.synchronize()


def graphs_skipped() -> int:
    """How many compiled parts of a step run without a CUDA graph, though the mode asks for one; on a CPU all do."""
    from torch._dynamo.utils import counters

    return counters["inductor"]["cudagraph_skips"]


def _one_token(model: Any, tokens: Any, cache: Any) -> Any:
    return _logits(model, tokens, cache).argmax(dim=-1, keepdim=True)


def _logits(model: Any, tokens: Any, cache: Any) -> Any:
    return model(tokens, past_key_values=cache, use_cache=True, return_dict=False)[0][:, -1]
