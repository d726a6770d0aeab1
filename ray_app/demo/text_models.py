"""Makes the demo's two text models from scratch: an encoder for the towers and a tiny Llama for the teacher.

`python -m ray_app.demo.text_models --out ray_app/demo/models --seed 1` (what `make demo-models` calls) writes `tower/`
and `teacher/`, each with its tokenizer and a RECIPE.json, and prints one JSON line. Some minutes on two cores.

They are base models: they know the languages, and the Llama has learned to compare a pin with a query, but has seen no
grade (ray_app/demo/corpus.py, reading.py). Shapes: B batch, T tokens, D hidden size.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ray_app.demo.concepts import ATTRIBUTES, draw_concept
from ray_app.demo.corpus import OUTCOMES, all_values, any_language, ask, documents, entry, pin_text, word_list
from ray_app.demo.reading import STEPS, train_reading
from ray_app.demo.texts import query_text

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")
NUM_PIECES = 1000  # guessed; of words that people misspell
WIDTH = 96
TEMPERATURE = 0.07  # guessed, as usual for InfoNCE
TOWER_STEPS = 500
TEACHER_DOCUMENTS = 130_000
SIMPLE_SHARE = 0.5  # of the documents, at the start: short texts are compared first
TEACHER_TOKENS = 1_000  # of a step
DOCUMENT_TOKENS = 160
OTHER_TOKEN_SHARE = 0.25  # of a reading document's tokens before the verdict that count in the loss


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
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=int(model.config.max_position_embeddings),
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )
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


def optimiser(model: Any, steps: int, rate: float) -> tuple[Any, Any]:
    """AdamW with a short warm-up and a linear way down."""
    import torch

    adamw = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: min((step + 1) / 40, max(0.02, 1 - step / steps)))
    return adamw, schedule


# --- tower ---------------------------------------------------------------------------------------------------------


def text_pairs(rng: np.random.Generator, count: int) -> tuple[list[str], list[str], list[tuple[str, ...]]]:
    """Texts of the same thing in two languages: (query, pin text), (query, query), (pin text, pin text), and a key.

    Pairs with equal keys are no negatives of each other.
    """
    left: list[str] = []
    right: list[str] = []
    keys: list[tuple[str, ...]] = []
    for _ in range(count):
        concept = draw_concept(rng)
        names = [name for name in ATTRIBUTES if rng.random() < 0.4]
        request = ask(concept, names)
        kind = rng.random()
        first = query_text(request, any_language(rng), rng, typo_rate=0.05)
        second = query_text(request, any_language(rng), rng) if kind < 0.3 else pin_text(rng, concept).text
        if kind > 0.8:
            first = pin_text(rng, concept).text
        left.append(first)
        right.append(second)
        keys.append((concept.object, *(f"{name}={value}" for name, value in request.asked.items())))
    return left, right, keys


def word_pairs(rng: np.random.Generator) -> tuple[list[str], list[str], list[tuple[str, ...]]]:
    """Every word of the demo in two languages."""
    values = all_values()
    sides = [[entry(rng, name, value, any_language(rng)) for name, value in values] for _ in range(2)]
    return sides[0], sides[1], [*values]


def word_vectors(model: Any) -> Any:
    """What the tower makes of each token alone, centred, of unit deviation; (vocabulary, D)."""
    import torch

    with torch.inference_mode():
        tokens = torch.arange(model.config.vocab_size)
        ids = torch.stack([torch.full_like(tokens, 2), tokens, torch.full_like(tokens, 3)], 1)
        vectors = model(input_ids=ids).last_hidden_state.mean(1)
    vectors = vectors - vectors.mean(0)
    return (vectors / vectors.std(1, keepdim=True)).clone()


def train_tower(tokenizer: Any, rng: np.random.Generator, steps: int, log: list[float]) -> Any:
    """A small BERT whose mean-pooled states are near for texts of the same thing (InfoNCE, negatives in the batch).

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding" (2018).
    """
    import torch
    from torch.nn.functional import cross_entropy, normalize
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    model = BertModel(config, add_pooling_layer=False)
    adamw, schedule = optimiser(model, steps, 3e-3)

    def embed(texts: list[str]) -> Any:
        ids, mask = padded([encoding.ids[:64] for encoding in tokenizer.encode_batch(texts)])
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        return normalize((states * weights).sum(1) / weights.sum(1).clamp(min=1.0), dim=-1)

    for step in range(steps):
        left, right, keys = word_pairs(rng) if step % 3 == 0 or step < steps // 10 else text_pairs(rng, 128)
        scores = embed(left) @ embed(right).T / TEMPERATURE
        number: dict[tuple[str, ...], int] = {}
        group = torch.tensor([number.setdefault(key, len(number)) for key in keys])
        equal = (group[:, None] == group[None, :]) & ~torch.eye(len(keys), dtype=torch.bool)
        scores = scores.masked_fill(equal, -1e4)
        target = torch.arange(len(keys))
        loss = (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        schedule.step()
        log.append(loss.item())
    return model


# --- teacher -------------------------------------------------------------------------------------------------------


def encode_documents(
    tokenizer: Any, rng: np.random.Generator, count: int, simple_share: float = 0.0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token arrays (start, pin, new line, query, verdict, end), and how much each token counts in the loss (0: not)."""
    newline = tokenizer.token_to_id("\n")
    outcomes = [tokenizer.token_to_id(word) for word in OUTCOMES]
    encoded: list[tuple[np.ndarray, np.ndarray]] = []
    parts = [part for document in documents(rng, count, simple_share) for part in document]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(parts, add_special_tokens=False)]
    for i in range(0, len(ids), 3):
        pin, query, said = ids[i : i + 3]
        row = [2, *pin[: DOCUMENT_TOKENS - 50], *([newline] if query else []), *query, *said, 3][:DOCUMENT_TOKENS]
        weight = (rng.random(len(row)) < (OTHER_TOKEN_SHARE if said else 0.6)).astype(np.float32)
        if said:
            weight[len(row) - 1 - len(said) :] = np.where(np.isin(row[len(row) - 1 - len(said) :], outcomes), 3.0, 1.0)
        encoded.append((np.array(row, np.int64), weight))
    return encoded


def token_batches(encoded: Sequence[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator) -> Iterator[list[int]]:
    """Indices of documents of similar length, about TEACHER_TOKENS in a batch; batches in random order."""
    order = np.argsort([len(ids) + rng.random() * 4 for ids, _ in encoded])
    batches: list[list[int]] = []
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(encoded[i][0]) > TEACHER_TOKENS:
            batches.append(batch)
            batch = []
        batch.append(int(i))
    if batch:
        batches.append(batch)
    yield from (batches[i] for i in rng.permutation(len(batches)))


def train_teacher(
    tokenizer: Any, embeddings: Any, rng: np.random.Generator, num_documents: int, log: list[float]
) -> Any:
    """A small Llama, trained to predict the next token; its word vectors start as the tower's, which know translations."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    model: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(0.3 * embeddings + 0.02 * torch.randn_like(embeddings))
        for layer in model.model.layers:
            # Queries equal keys: a word looks for itself and its translations, which takes long to find by chance.
            # Source: Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers" (2023).
            torch.nn.init.orthogonal_(layer.self_attn.k_proj.weight)
            layer.self_attn.q_proj.weight.copy_(layer.self_attn.k_proj.weight)
    encoded = encode_documents(tokenizer, rng, num_documents, SIMPLE_SHARE)
    simple = round(num_documents * SIMPLE_SHARE)
    batches = [
        *token_batches(encoded[:simple], rng),
        *([i + simple for i in batch] for batch in token_batches(encoded[simple:], rng)),
    ]
    adamw, schedule = optimiser(model, len(batches), 1.5e-3)
    for batch in batches:
        ids, mask = padded([encoded[i][0] for i in batch])
        weight = torch.zeros(ids.shape)
        for row, i in enumerate(batch):
            weight[row, : len(encoded[i][1])] = torch.from_numpy(encoded[i][1])
        counts = weight[:, 1:] > 0
        hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        losses = cross_entropy(model.lm_head(hidden[:, :-1][counts]), ids[:, 1:][counts], reduction="none")
        loss = (losses * weight[:, 1:][counts]).sum() / weight[:, 1:].sum()
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        schedule.step()
        log.append(loss.item())
        if len(log) % 50 == 0:
            logger.info("teacher: step %d of %d, loss %.3f", len(log), len(batches), sum(log[-50:]) / 50)
    return model


def main() -> None:
    """Train and write both models."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("ray_app/demo/models"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chose")
    parser.add_argument("--tower-steps", type=int, default=TOWER_STEPS)
    parser.add_argument("--documents", type=int, default=TEACHER_DOCUMENTS)
    parser.add_argument("--reading-steps", type=int, default=STEPS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer(word_list())
    recipe = {"code": "ray_app/demo/text_models.py", "seed": args.seed, "vocabulary": tokenizer.get_vocab_size()}

    # Not the world's seed: its concepts are drawn from another.
    rng = np.random.default_rng([args.seed, 2026])
    started, losses = time.perf_counter(), list[float]()
    tower = train_tower(tokenizer, rng, args.tower_steps, losses)
    about_tower = {**recipe, **_summary(losses, started), "task": "InfoNCE over pairs of texts of the same thing"}
    save_model(tower, tokenizer, args.out / "tower", about_tower, cls_token="<s>", sep_token="</s>")

    torch.manual_seed(args.seed)
    rng = np.random.default_rng([args.seed, 5])
    started, losses = time.perf_counter(), []
    teacher = train_teacher(tokenizer, word_vectors(tower), rng, args.documents, losses)
    about_teacher = {**recipe, **_summary(losses, started), "task": "next token", "documents": args.documents}
    started, losses = time.perf_counter(), []
    right = train_reading(tokenizer, teacher, args.seed, args.reading_steps, losses)
    about_teacher["reading"] = {**_summary(losses, started), "attributes_right": round(right, 4)}
    save_model(teacher, tokenizer, args.out / "teacher", about_teacher, bos_token="<s>", eos_token="</s>")
    sys.stdout.write(json.dumps({"tower": about_tower, "teacher": about_teacher}) + "\n")


def _summary(losses: list[float], started: float) -> dict[str, Any]:
    last = losses[-len(losses) // 10 :]
    return {
        "steps": len(losses),
        "final_loss": round(float(np.mean(last)), 4),
        "training_sec": round(time.perf_counter() - started),
    }


if __name__ == "__main__":
    main()
