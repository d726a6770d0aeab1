"""Tokenizer of the demo's tiny models."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")
NUM_PIECES = 1000  # guessed; for misspelt words
WIDTH = 96


def build_tokenizer(lines: Sequence[str]) -> Any:
    """Unigram tokenizer of lower-cased NFKC text: every word of the demo is one token, others fall into pieces.

    Trained pieces and single letters cost more than a whole word, so they serve what is misspelt. A new line is a token
    of its own, unknown letters are <unk>.
    """
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")])
    words = [word for line in lines for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(line))]
    learned = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(vocab_size=NUM_PIECES, show_progress=False, unk_token="<unk>")
    learned.train_from_iterator(sorted(set(words)), trainer)
    scores = dict.fromkeys(SPECIAL_TOKENS, 0.0)
    scores.update(dict.fromkeys(sorted(set(words)), -8.0))
    for pieces, score in ((learned.get_vocab(), -10.0), (set("".join(words)), -14.0)):
        scores.update({piece: score for piece in sorted(pieces) if piece not in scores})
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=SPECIAL_TOKENS.index("<unk>")))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.add_tokens([AddedToken("\n", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return tokenizer


def save_model(model: Any, tokenizer: Any, folder: Path, recipe: dict[str, Any], **names: str) -> None:
    """Weights, tokenizer (`names`: its further special tokens) and recipe."""
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>",
        model_max_length=int(model.config.max_position_embeddings), model_input_names=["input_ids", "attention_mask"],
        **names,
    )  # fmt: skip
    fast.save_pretrained(folder)
    (folder / "RECIPE.json").write_text(json.dumps(recipe, indent=1) + "\n")


def padded(rows: Sequence[Any]) -> tuple[Any, Any]:
    """(B, T) token ids and mask."""
    import torch

    width = max(map(len, rows))
    ids = np.zeros((len(rows), width), np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def optimizer(params: list[Any], steps: int, rate: float) -> tuple[Any, Any]:
    """AdamW with a short warm-up and a linear way down."""
    import torch

    adamw = torch.optim.AdamW(params, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: min((step + 1) / 40, max(0.02, 1 - step / steps)))
    return adamw, schedule


def descend(loss: Any, params: list[Any], adamw: Any, schedule: Any) -> float:
    """One step; returns the loss."""
    import torch

    adamw.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    adamw.step()
    schedule.step()
    return float(loss.item())
