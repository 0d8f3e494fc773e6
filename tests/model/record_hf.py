"""Records what Hugging Face computes for tiny random models, for `test_huggingface.py` to compare with.

Run it once, in an environment of its own, and commit what it writes under `tests/model/hf/`:

    python3 -m venv hf && hf/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors
    hf/bin/python tests/model/record_hf.py

Weights are drawn from a fixed seed, wide enough that every part of the network matters (a 0.02 initialisation would
give logits near zero whatever the attention did), and rounded to bf16 so that the files are small and exact.
"""

import json
import pathlib

import torch
import transformers

OUT = pathlib.Path(__file__).parent / "hf"
PROMPT_TOKENS, GENERATED_TOKENS = 24, 12

COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "attn_implementation": "eager",
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,  # so that kept, blended and divided frequencies all occur
}
GEMMA = COMMON | {"head_dim": 24, "sliding_window": 8, "query_pre_attn_scalar": 40, "tie_word_embeddings": True}


def plain_rope() -> dict:
    """Unscaled rotary positions; configs write into what they are given, so each has its own."""
    return {"rope_type": "default", "rope_theta": 10000.0}


CONFIGS = {
    "llama": transformers.LlamaConfig(**COMMON, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=False),
    "qwen2": transformers.Qwen2Config(**COMMON, rope_parameters=plain_rope(), tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(
        **COMMON, rope_parameters=plain_rope(), head_dim=24, rms_norm_eps=1e-6, tie_word_embeddings=True
    ),
    "mistral": transformers.MistralConfig(
        **COMMON, rope_parameters=plain_rope(), sliding_window=8, tie_word_embeddings=False
    ),
    "phi3": transformers.Phi3Config(
        **COMMON, rope_parameters=plain_rope(), sliding_window=8, tie_word_embeddings=False
    ),
    "mixtral": transformers.MixtralConfig(
        **COMMON, rope_parameters=plain_rope(), num_local_experts=5, num_experts_per_tok=2, tie_word_embeddings=False
    ),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **COMMON,
        rope_parameters=plain_rope(),
        head_dim=24,
        moe_intermediate_size=40,
        num_experts=6,
        num_experts_per_tok=3,
        norm_topk_prob=False,
        tie_word_embeddings=True,
    ),
    "gemma2": transformers.Gemma2Config(
        **GEMMA | {"num_hidden_layers": 3}, attn_logit_softcapping=4.0, final_logit_softcapping=3.0
    ),
    "gemma3": transformers.Gemma3TextConfig(**GEMMA | {"num_hidden_layers": 5}, sliding_window_pattern=3),
}


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Draws every weight: norms near what they are made with, biases near 0, matrices with a gain of 1.5."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            values = weight.data.mean() + 0.2 * noise  # 1, or the 0 of Gemma, which adds 1 to it
        elif name.endswith("bias"):
            values = 0.5 * noise
        else:
            values = 1.5 * noise / weight.shape[-1] ** 0.5
        weight.data = values.to(torch.bfloat16).to(torch.float32)
    model.tie_weights()


@torch.inference_mode()
def record(name: str, config, seed: int) -> None:
    """Writes one folder, and beside it the logits of a prompt and of its greedy continuation."""
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    randomise(model, seed)
    tokens = torch.randint(128, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(seed))
    for _ in range(GENERATED_TOKENS):
        logits = model(tokens, use_cache=False).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    logits = model(tokens, use_cache=False).logits[0]
    model.to(torch.bfloat16).save_pretrained(OUT / name)
    (OUT / name / "generation_config.json").unlink(missing_ok=True)
    top = logits.topk(2).values
    recorded = {
        "recorded_with": f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager",
        "prompt_tokens": PROMPT_TOKENS,
        "tokens": tokens[0].tolist(),
        "smallest_margin": round(float((top[:, 0] - top[:, 1])[PROMPT_TOKENS - 1 : -1].min()), 6),
        "logits": [[round(float(value), 6) for value in row] for row in logits],
    }
    (OUT / f"{name}.json").write_text(json.dumps(recorded) + "\n")
    print(f"{name}: logits {float(logits.std()):.2f} wide, smallest margin {recorded['smallest_margin']}")


if __name__ == "__main__":
    for seed, (name, config) in enumerate(CONFIGS.items(), start=1):
        record(name, config, seed)
