"""docs/quantisation.md from the figures of `experiments/quality.py`."""

from collections.abc import Mapping
from math import exp
from typing import Any

INTRODUCTION = """# Quantisation: what fewer bits cost

Weights in int8, int4 or fp8 are executed by the JAX engine, and so are KV pages in int8 or fp8:
`Precision.weights` and `Precision.kv` say so in a config, or `--set Precision.weights=int8` on the command line.

- Quantised are the matrices of attention and feed-forward, when they are loaded: a layer at a time, on the device.
  Embedding, head, norms and biases stay in `Precision.activations`, as the cost model says.
- int8 and fp8 have a scale for each output channel; int4 one for each 128 inputs, or for 64 or 32 where 128 do not
  divide them (SmolLM2 has 576; the memory plan always counts groups of 128).
- Products are computed in `Precision.compute`: the dtype of activations, or 8 bits (`int8` with int8 or int4 weights,
  `fp8` with fp8 weights), to which rows of activations are then rounded before each product.
- On TPU and Hopper a kernel reads the weights where they lie (`kernels/pallas/quant_matmul`); elsewhere XLA does.
- Not executed, only priced: experts in fewer bits, 4-bit floats, int4 KV.

## Measured

{model}, teacher-forced: every precision is given the same tokens, and its distribution over the next one is compared
with that of float32. *Answers* are the {answers} tokens that float32 itself chose after the reference prompts; *text*
is {text} tokens of `experiments/quality_text.txt`. Rounding is to nearest, without calibration data. KL is in nats; the
last column is the perplexity of the text over float32's, which is {perplexity:.2f}. Made by

```
python experiments/quality.py
```
"""
HEADER = (
    "| weights | activations | products | KV | same top token: answers | text | KL: answers | text | text, p99 "
    "| perplexity |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def page(figures: Mapping[str, Any]) -> str:
    """The page, whole, from what `quality.py` wrote."""
    cases = figures["cases"]
    some = next(iter(cases.values()))
    introduction = INTRODUCTION.format(
        model=figures["model"], perplexity=exp(some["text"]["nll_f32"]), **figures["tokens"]
    )
    return introduction + "\n" + "\n".join([*HEADER, *map(_row, cases.values())]) + "\n"


def _row(case: Mapping[str, Any]) -> str:

    how, answers, text = case["precision"], case["answers"], case["text"]
    return (
        f"| {how['weights']} | {how['activations']} | {how['compute']} | {how['kv']} "
        f"| {answers['top1_agreement']:.1%} | {text['top1_agreement']:.1%} "
        f"| {answers['kl_mean']:.5f} | {text['kl_mean']:.5f} | {text['kl_p99']:.4f} "
        f"| {exp(text['nll'] - text['nll_f32']):.4f} |"
    )
