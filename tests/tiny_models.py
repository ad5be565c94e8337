"""Tiny real encoders and a language model, built from configs and saved to folders as their makers would."""

from pathlib import Path

import torch

WORDS = ["film", "horror", "romance", "western", "musical", "user", "likes", "liked", "because", "for", "the", "and", "of", "with", "items", "words", "recommended", "like", "this", "a", ".", ",", "(", ")", ":", "you", "your", "who", "why", "it", "is", "in", "to"]


def _tokenizer(folder: Path, special: dict[str, str]) -> int:
    """A word-level tokenizer that falls back to letters; returns the size of its vocabulary."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special.values()), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **special)
    fast.save_pretrained(folder)
    return len(fast)


def save_text_encoder(folder: Path) -> Path:
    """A BERT of two layers, 32 wide."""
    from transformers import BertConfig, BertModel

    size = _tokenizer(folder, {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"})
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=256,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def save_image_encoder(folder: Path) -> Path:
    """A ViT of two layers, 32 wide, for 32 x 32 pixels."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(2)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_language_model(folder: Path) -> Path:
    """A Llama of two layers, 64 wide, with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = _tokenizer(folder, {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"})
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=size, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
