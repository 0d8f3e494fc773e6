"""Records what Hugging Face transformers makes of published `config.json` files: the oracle of `test_huggingface.py`.

For every case it keeps the file as published (transformers 4 form), as transformers 5 saves it, the settings that
transformers resolves, and the number of parameters of the model it builds (on the meta device: no memory, no weights).
Needs torch and transformers, which nanoserve does not; the result is committed. From the repository root:

    python tests/specs/record_hf.py
"""

import json
import pathlib
import tempfile
from typing import Any

import torch
import transformers

GOLDEN = pathlib.Path(__file__).parent / "golden" / "huggingface.json"

LLAMA_3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def shape(layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int, context: int) -> dict[str, Any]:
    """The keys that every family has."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "hidden_act": "silu",
    }


def llama_2(layers: int, hidden: int, heads: int, kv_heads: int, ffn: int) -> dict[str, Any]:
    """Llama 2 as published: no rope_theta, no head_dim."""
    return {
        **shape(layers, hidden, heads, kv_heads, ffn, 32000, 4096),
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    }


def llama_3(
    layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, *, factor: float, tied: bool = False
) -> dict[str, Any]:
    """Llama 3.1 and later as published."""
    return {
        **shape(layers, hidden, heads, kv_heads, ffn, 128256, 131072),
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": factor, **LLAMA_3_ROPE},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
    }


def qwen(model_type: str, *dimensions: int, tied: bool, **fields: Any) -> dict[str, Any]:
    """Qwen 2.5 and 3 as published: a window is stated, and switched off."""
    return {
        **shape(*dimensions),
        "model_type": model_type,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "max_window_layers": dimensions[0],
        "tie_word_embeddings": tied,
        **fields,
    }


def mistral(model_type: str, vocab: int, **fields: Any) -> dict[str, Any]:
    """Mistral and Mixtral as published: no head_dim."""
    return {
        **shape(32, 4096, 32, 8, 14336, vocab, 32768),
        "model_type": model_type,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **fields,
    }


def gemma(model_type: str, *dimensions: int, query_scalar: int, window: int, **fields: Any) -> dict[str, Any]:
    """Gemma 2 and 3 as published: the pattern of windows and the tied head are not stated."""
    return {
        **shape(*dimensions),
        "model_type": model_type,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": query_scalar,
        "sliding_window": window,
        "attention_bias": False,
        **fields,
    }


GEMMA_2 = {"rope_theta": 10000.0, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
GEMMA_3 = {
    "rope_theta": 1000000,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "head_dim": 256,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}


def published() -> dict[str, dict[str, Any]]:
    """Published config.json files under the names of nanoserve's registry, without what does not bear on the shape."""
    qwen_3 = {"head_dim": 128, "attention_bias": False, "rope_scaling": None}
    return {
        "llama-2-7b": llama_2(32, 4096, 32, 32, 11008),
        "llama-2-13b": llama_2(40, 5120, 40, 40, 13824),
        "llama-2-70b": llama_2(80, 8192, 64, 8, 28672),
        "llama-3.1-8b": llama_3(32, 4096, 32, 8, 14336, factor=8.0),
        "llama-3.1-70b": llama_3(80, 8192, 64, 8, 28672, factor=8.0),
        "llama-3.3-70b": llama_3(80, 8192, 64, 8, 28672, factor=8.0) | {"head_dim": 128},
        "llama-3.2-1b": llama_3(16, 2048, 32, 8, 8192, factor=32.0, tied=True) | {"head_dim": 64},
        "llama-3.2-3b": llama_3(28, 3072, 24, 8, 8192, factor=32.0, tied=True) | {"head_dim": 128},
        "qwen2.5-0.5b": qwen("qwen2", 24, 896, 14, 2, 4864, 151936, 32768, tied=True),
        "qwen2.5-1.5b": qwen("qwen2", 28, 1536, 12, 2, 8960, 151936, 131072, tied=True),
        "qwen2.5-7b": qwen("qwen2", 28, 3584, 28, 4, 18944, 152064, 131072, tied=False),
        "qwen3-0.6b": qwen("qwen3", 28, 1024, 16, 8, 3072, 151936, 40960, tied=True, **qwen_3),
        "qwen3-8b": qwen("qwen3", 36, 4096, 32, 8, 12288, 151936, 40960, tied=False, **qwen_3),
        "qwen3-32b": qwen("qwen3", 64, 5120, 64, 8, 25600, 151936, 40960, tied=False, **qwen_3),
        "mistral-7b-v0.1": mistral("mistral", 32000, rope_theta=10000.0, sliding_window=4096),
        "mistral-7b-v0.3": mistral("mistral", 32768, rope_theta=1000000.0, sliding_window=None),
        "mixtral-8x7b": mistral(
            "mixtral", 32000, rope_theta=1e6, sliding_window=None, num_local_experts=8, num_experts_per_tok=2
        ),
        "qwen3-30b-a3b": qwen(
            "qwen3_moe",
            *(48, 2048, 32, 4, 6144, 151936, 40960),
            tied=False,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=768,
            norm_topk_prob=True,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            **qwen_3,
        ),
        "gemma-2-2b": gemma(
            "gemma2", 26, 2304, 8, 4, 9216, 256000, 8192, query_scalar=256, window=4096, head_dim=256, **GEMMA_2
        ),
        "gemma-2-9b": gemma(
            "gemma2", 42, 3584, 16, 8, 14336, 256000, 8192, query_scalar=256, window=4096, head_dim=256, **GEMMA_2
        ),
        "gemma-2-27b": gemma(
            "gemma2", 46, 4608, 32, 16, 36864, 256000, 8192, query_scalar=144, window=4096, head_dim=128, **GEMMA_2
        ),
        "gemma-3-270m": gemma(
            "gemma3_text", 18, 640, 4, 1, 2048, 262144, 32768, query_scalar=256, window=512, **GEMMA_3
        ),
        "gemma-3-1b": gemma(
            "gemma3_text", 26, 1152, 4, 1, 6912, 262144, 32768, query_scalar=256, window=512, **GEMMA_3
        ),
        "phi-3-mini": {
            **shape(32, 3072, 32, 32, 8192, 32064, 4096),
            "model_type": "phi3",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "sliding_window": 2047,
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
        "smollm2-135m": {
            **shape(30, 576, 9, 3, 1536, 49152, 8192),
            "model_type": "llama",
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000,
            "rope_scaling": None,
            "tie_word_embeddings": True,
        },
    }


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The config less some keys."""
    return {key: value for key, value in config.items() if key not in keys}


def variants() -> dict[str, dict[str, Any]]:
    """Forms that checkpoints in the wild have and the published files above do not: absent keys, odd windows."""
    small = shape(3, 64, 4, 4, 96, 32064, 512) | {"rms_norm_eps": 1e-6}
    qwen_2 = small | {"model_type": "qwen2", "sliding_window": 128}
    return {
        "llama-bare": without(small, "num_key_value_heads", "hidden_act") | {"model_type": "llama"},
        "llama-null-kv-heads": small | {"model_type": "llama", "num_key_value_heads": None},
        "llama-wide-heads": small | {"model_type": "llama", "head_dim": 32},
        "mistral-window-absent": small | {"model_type": "mistral"},
        "mixtral-theta-absent": small | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 3},
        "qwen2-window-everywhere": qwen_2 | {"use_sliding_window": True, "max_window_layers": 0},
        "qwen2-window-beyond-last": qwen_2 | {"use_sliding_window": True, "max_window_layers": 3},
        "qwen2-window-default-start": qwen_2 | {"use_sliding_window": True},
        "qwen3-head-dim-absent": small | {"model_type": "qwen3"},
        "qwen3-moe-bare": small | {"model_type": "qwen3_moe"},
        "qwen3-moe-window": small | {"model_type": "qwen3_moe", "use_sliding_window": True, "sliding_window": 128},
        "gemma2-bare": without(small, "hidden_act") | {"model_type": "gemma2"},
        "gemma3-bare": without(small, "hidden_act") | {"model_type": "gemma3_text"},
        "gemma3-pattern": small | {"model_type": "gemma3_text", "sliding_window": 128, "sliding_window_pattern": 2},
        "phi3-bare": without(small, "num_key_value_heads") | {"model_type": "phi3"},
    }


def gpt_3() -> dict[str, Any]:
    """GPT-3 175B's parameters, built as the GPT-2 that it is in shape (Brown et al. 2020, section 2.1)."""
    config = transformers.GPT2Config(n_layer=96, n_embd=12288, n_head=96, vocab_size=50257, n_positions=2048)
    return {"parameters": parameters(config)}


def parameters(config: transformers.PretrainedConfig) -> int:
    """Parameters of the model that transformers builds; tied ones once."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return sum(tensor.numel() for tensor in model.parameters())


def record(raw: dict[str, Any]) -> dict[str, Any]:
    """One case."""
    config = transformers.AutoConfig.for_model(**json.loads(json.dumps(raw)))
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        saved = json.loads((pathlib.Path(folder) / "config.json").read_text())
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    window = getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    return {
        "published": raw,
        "saved": saved,
        "kv_heads": config.num_key_value_heads,
        "head_size": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "rope_theta": rope["rope_theta"],
        "rope_type": rope["rope_type"],
        "tied_embeddings": config.tie_word_embeddings,
        "sliding_window_tokens": window,
        "parameters": parameters(config),
    }


def main() -> None:
    """Writes the golden file."""
    cases = {name: record(raw) for name, raw in (published() | variants()).items()}
    golden = {
        "recorded_with": f"transformers {transformers.__version__}",
        "published": sorted(published()),
        "cases": cases,
        "gpt3-175b": gpt_3(),
    }
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
