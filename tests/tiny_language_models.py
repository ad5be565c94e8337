"""Tiny real causal language models of four layouts, built from configs and saved as their makers would."""

from pathlib import Path

import torch

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Like Gemma's: no system role, turns of its own.
TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
#: Like Mistral's: role markers that are plain text to the tokenizer.
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}</s>"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
_MARKERS = {
    "llama": ["<|im_start|>", "<|im_end|>"],
    "qwen": ["<|im_start|>", "<|im_end|>", "<tool_call>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "mistral": [],
}
_TEMPLATES = {"llama": None, "qwen": CHATML, "gemma": TURNS, "mistral": INST}
LAYOUTS = tuple(_TEMPLATES)
_CORPUS = [
    "The item is a film of action, comedy, drama, horror and romance from 1995, what you choose most.",
    "Kind: Action, Comedy. Year: 1995. Item: The film. Reader: your choices, something other than usual.",
]


def save_tokenizer(folder: Path, layout: str):
    """A byte-level BPE with the layout's special tokens and chat template (Llama's has none)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", *_MARKERS[layout]]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_CORPUS * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=2048
    )
    fast.add_tokens(_MARKERS[layout])
    fast.chat_template = _TEMPLATES[layout]
    fast.save_pretrained(folder)
    return fast


def save_language_model(folder: Path, layout: str = "llama", tied: bool = True, spare_rows: int = 0) -> Path:
    """Two layers, 32 wide. `spare_rows`: embeddings beyond the tokenizer's vocabulary, as Qwen has."""
    import transformers

    size = len(save_tokenizer(folder, layout)) + spare_rows
    name = {"llama": "Llama", "qwen": "Qwen2", "gemma": "Gemma2", "mistral": "Mistral"}[layout]
    sizes = {
        "vocab_size": size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 2048, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": tied, "initializer_range": 0.3,
    }  # fmt: skip
    # one window shorter than a prompt, one longer
    sizes |= {"gemma": {"head_dim": 8, "sliding_window": 24}, "mistral": {"sliding_window": 4096}}.get(layout, {})
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    model.save_pretrained(folder)
    return folder
