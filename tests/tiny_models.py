"""Language models of a few thousand random weights, in the file layout of the real ones."""

import json
import shutil
from pathlib import Path

WORDS = "[PAD] [UNK] [CLS] [SEP] red green blue cup mug shoe laptop usb hub cable black small large for the a".split()


def save_tiny_encoder(folder: Path, width: int = 16, segments: bool = True) -> Path:
    """A BERT with 2 layers; vllm's CPU attention wants `width` 64, which makes heads of 32.

    Without `segments` it knows one token type only, as RoBERTa does.
    """
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, type_vocab_size=2 if segments else 1,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    _save_tokenizer(folder, cls_token="[CLS]", sep_token="[SEP]")
    return folder


def save_tiny_decoder(folder: Path, head_dim: int | None = None) -> Path:
    """A Llama with 2 layers of width 16; vllm's CPU attention wants `head_dim` 32."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=head_dim,
        intermediate_size=32, max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    LlamaModel(config).save_pretrained(folder)
    _save_tokenizer(folder, bos_token="[CLS]", eos_token="[SEP]")
    return folder


def save_tiny_causal(folder: Path, family: str, spread: float = 0.3, **values: object) -> Path:
    """A decoder of another family (its config's class, such as `Gemma3TextConfig`) with weights large enough to matter."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 32, "max_position_embeddings": 64,
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    model = transformers.AutoModel.from_config(getattr(transformers, family)(**(sizes | values)))
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=spread)
        elif name.endswith("sinks"):
            torch.nn.init.constant_(weight, 2.0)
    model.save_pretrained(folder)
    _save_tokenizer(folder, bos_token="[CLS]", eos_token="[SEP]")
    return folder


def published(
    folder: Path, base: str, pooling: object = "mean", modules: tuple[str, ...] = (), **config: object
) -> str:
    """A copy of a tiny model as sentence-transformers publishes it; `config` of config_sentence_transformers.json."""
    shutil.copytree(base, folder, dirs_exist_ok=True)
    kinds = [
        ("Transformer", ""),
        ("Pooling", "1_Pooling"),
        *((kind, f"2_{kind}") for kind in modules),
        ("Normalize", "9"),
    ]
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    files = {
        "modules.json": rows,
        "1_Pooling/config.json": {"word_embedding_dimension": 16}
        | (pooling if isinstance(pooling, dict) else {"pooling_mode": pooling}),
        "9/config.json": {},
        "sentence_bert_config.json": {"max_seq_length": 10, "do_lower_case": False},
        "config_sentence_transformers.json": config,
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    return str(folder)


def _save_tokenizer(folder: Path, **special: str) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inputs = ["input_ids", "attention_mask"]
    if "cls_token" in special:
        inputs.insert(1, "token_type_ids")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        model_max_length=64,
        model_input_names=inputs,
        **special,
    ).save_pretrained(folder)


def save_tiny_vlm(folder: Path) -> Path:
    """An Idefics3 with 2 layers of width 64, whose random weights say something else of each picture.

    The one architecture that runs in transformers, vllm and ray.data.llm without torchvision.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3Processor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    grid = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>",
               "<end_of_utterance>", *grid]  # fmt: skip
    words = [*special, "<unk>", *(f"\u2581{word}" for word in WORDS[4:] + "user assistant Describe picture.".split())]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<|im_start|>",
        eos_token="<|im_end|>", additional_special_tokens=special[3:], model_max_length=256,
    )  # fmt: skip
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }} {% for part in message.content %}"
        "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|> {% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 64}, do_image_splitting=False
    )
    Idefics3Processor(pictures, fast, image_seq_len=4, chat_template=template).save_pretrained(folder)
    torch.manual_seed(0)
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 64, "patch_size": 16}  # fmt: skip
    text = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": len(words),
            "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2}  # fmt: skip
    config = Idefics3Config(
        vision_config=vision, text_config=text, scale_factor=2, image_token_id=words.index("<image>"), pad_token_id=0,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = Idefics3ForConditionalGeneration(config)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    with torch.no_grad():
        model.lm_head.weight[: len(special) + 1] = 0.0  # says words only, and always something
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    model.save_pretrained(folder)
    return folder
