"""Language models of a few thousand random weights, in the file layout of the real ones."""

from pathlib import Path

WORDS = "[PAD] [UNK] [CLS] [SEP] red green blue cup mug shoe laptop usb hub cable black small large for the a".split()


def save_tiny_encoder(folder: Path) -> Path:
    """A BERT with 2 layers of width 16."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    _save_tokenizer(folder, cls_token="[CLS]", sep_token="[SEP]")
    return folder


def save_tiny_decoder(folder: Path) -> Path:
    """A Llama with 2 layers of width 16."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    LlamaModel(config).save_pretrained(folder)
    _save_tokenizer(folder, bos_token="[CLS]", eos_token="[SEP]")
    return folder


def _save_tokenizer(folder: Path, **special: str) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if "cls_token" in special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64, **special
    ).save_pretrained(folder)
