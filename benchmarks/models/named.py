"""The models that most people train, by their type in transformers.

CI runs them (tests/model/test_models.py), and docs/models.md begins with them.
"""

NAMED: dict[str, str] = {
    "llama": "Llama-2 to 3.3",
    "llama4_text": "Llama-4",
    "qwen2": "Qwen2.5",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3-MoE",
    "qwen3_next": "Qwen3-Next",
    "qwen3_5_text": "Qwen3.5",
    "qwen3_5_moe_text": "Qwen3.5-MoE",
    "gemma2": "Gemma-2",
    "gemma3_text": "Gemma-3",
    "gemma3n_text": "Gemma-3n",
    "gemma4_text": "Gemma-4",
    "gpt_oss": "gpt-oss",
    "mistral": "Mistral",
    "ministral": "Ministral",
    "ministral3": "Ministral-3",
    "mixtral": "Mixtral",
    "phi3": "Phi-3, Phi-4",
    "olmo2": "OLMo-2",
    "olmo3": "OLMo-3",
    "smollm3": "SmolLM3",
    "deepseek_v3": "DeepSeek-V3",
    "glm4": "GLM-4",
    "glm4_moe": "GLM-4.5",
    "granitemoehybrid": "Granite-4",
    "cohere2": "Cohere-2 (Command A)",
    "exaone4": "EXAONE-4",
    "nemotron_h": "Nemotron-H",
    "falcon_h1": "Falcon-H1",
    "lfm2": "LFM2",
}
