"""docs/speculation.md from the figures of `experiments/distil.py`."""

from collections.abc import Mapping
from typing import Any

INTRODUCTION = """# Speculative decoding

A decode step reads all weights for one token a sequence. With `Engine.draft`, somebody guesses the next tokens of every
sequence, and the model checks all of them in one step: it samples after each, keeps the guesses that are what it
sampled, and the token that follows them.

- **Nothing changes but time.** Every token is sampled with the request's own key and position, as without guesses, so
  greedy and sampled answers are the same, token for token, whatever was guessed (`nanoserve/model/verify.py` says why,
  with sources; two steps of other shapes round differently, so a tie can fall otherwise, as between any two batches).
- `ngram` looks the last tokens up in the sequence's own past, and costs the device nothing.
- `model` asks a smaller model (`Experiment.draft_model`, `Experiment.draft_weights`), whose KV lies under the same page
  ids. It draws with the same noise as the target, so that guesses are accepted at a temperature, too.
- Simulated runs draw what is accepted from `Engine.draft_acceptance`, price verification with
  `nanoserve/roofline/speculative.py`, and a draft model's own steps with its own operations.

```
make run CONFIG=smollm2_ngram_cpu
make run CONFIG=llama70b_speculative_h100
```

## A draft for {model}, distilled from what it writes

The student has layers {layers} of the teacher and its embedding table. It read {written_tokens:,} tokens that
the teacher wrote in answer to {questions} questions, {epochs} times. The loss, divergence from the teacher over the
{head_tokens:,} tokens that occur and cosine distance of hidden states, went from {first:.2f} to {last:.2f}.

The {prompts} prompts below are others, `configs/prompts/short.jsonl`. {draft_tokens} tokens are guessed at a time, and
{sequences} sequences run at once. The last column is the processor time without guessing over that with it: below 1,
guessing cost time on this CPU, where a step of more tokens takes longer; a chip that waits for memory has them nearly
for nothing.

| temperature | who guesses | guessed | accepted | share | tokens a step | same answers | CPU time ratio |
|---:|---|---:|---:|---:|---:|---:|---:|
"""
END = """
`untrained` is the student before it learned. Made, the student's checkpoint included, by

```
python experiments/distil.py
```
"""


def page(figures: Mapping[str, Any]) -> str:
    """The page, whole, from what `distil.py` wrote."""
    losses = figures["losses"]
    layers = " and ".join(map(str, figures["layers"]))
    introduction = INTRODUCTION.format(**{**figures, "layers": layers}, first=losses[0], last=losses[-1])
    alone_s = {case["temperature"]: case["cpu_s"] for case in figures["cases"] if case["draft"] == "none"}
    rows = [_row(case, alone_s[case["temperature"]], figures["prompts"]) for case in figures["cases"]]
    return introduction + "\n".join(rows) + "\n" + END


def _row(case: Mapping[str, Any], alone_s: float, prompts: int) -> str:
    guessed, accepted = case["drafted_tokens"], case["accepted_tokens"]
    share = f"{accepted / guessed:.0%}" if guessed else ""
    return (
        f"| {case['temperature']:g} | {case['draft']} | {guessed:,} | {accepted:,} | {share} "
        f"| {case['tokens_per_row']:.2f} | {case['same_tokens']} of {prompts} | {alone_s / case['cpu_s']:.2f} |"
    )
