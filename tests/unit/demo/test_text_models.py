"""The text models that the repository carries, and the recipe that makes them."""

from pathlib import Path

import numpy as np
import pytest

from ray_app.demo.concepts import MATERIALS, OBJECTS, Request, draw_concept
from ray_app.demo.corpus import documents, verdict, word_list
from ray_app.demo.texts import query_text
from ray_app.demo.vocabulary import LANGUAGES

pytestmark = pytest.mark.slow

MODELS = Path(__file__).parents[3] / "ray_app" / "demo" / "models"
MAX_BYTES = 6_000_000


def test_both_models_stay_small() -> None:
    """They are checked in."""
    files = [file for name in ("tower", "teacher") for file in (MODELS / name).rglob("*") if file.is_file()]
    assert {"RECIPE.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in files}
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES


@pytest.mark.parametrize(("name", "kind"), [("tower", "bert"), ("teacher", "llama")])
def test_checked_in_folders_load(name: str, kind: str) -> None:
    from ray_app.models.model_sources import load_backbone

    model, tokenizer = load_backbone(str(MODELS / name))
    assert model.config.model_type == kind
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.pad_token_id == 0


def test_teacher_loads_as_a_language_model() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODELS / "teacher")
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings >= 192


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_of_every_language_are_few_known_tokens(language: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODELS / "tower")
    rng = np.random.default_rng(1)
    texts = [query_text(Request(draw_concept(rng).object, "red"), language, rng) for _ in range(50)]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in {i for row in ids for i in row}
    assert sum(map(len, ids)) / len(texts) <= 6


def test_unknown_letters_and_new_lines_are_tokens() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODELS / "teacher")
    assert tokenizer.unk_token_id in tokenizer("ꙮ", add_special_tokens=False)["input_ids"]
    assert len(tokenizer("\n", add_special_tokens=False)["input_ids"]) == 1


def test_translations_are_nearer_than_other_objects() -> None:
    from ray_app.models.text_encoder import TextEncoder

    encoder = TextEncoder(str(MODELS / "tower"), None, 64, role="pin")
    rng = np.random.default_rng(2)
    requests = [Request(obj, "red") for obj in OBJECTS if obj != "coffee"]
    english = encoder.encode([query_text(request, "en", rng) for request in requests])
    for language in LANGUAGES:
        other = encoder.encode([query_text(request, language, rng) for request in requests])
        similarity = english @ other.T
        assert np.mean(similarity.argmax(1) == np.arange(len(requests))) >= 0.9, language


def test_verdicts_say_what_can_be_read() -> None:
    rng = np.random.default_rng(0)
    concept = draw_concept(rng, "sofa")
    near = Request("armchair", material=next(m for m in MATERIALS["home"] if m != concept.material))
    said = set(verdict(rng, near, concept, frozenset({"object"})).split(". "))
    assert said == {"near sofa not armchair", f"unknown material {near.material}"}
    said = set(verdict(rng, Request("sofa", concept.colour), concept, frozenset({"colour"})).split(". "))
    assert said == {"unknown object sofa", f"fits colour {concept.colour}"}


def test_corpus_is_a_function_of_the_generator() -> None:
    def write(seed: int) -> list[tuple[str, str, str]]:
        return list(documents(np.random.default_rng(seed), 20))

    assert write(1) == write(1)
    assert write(1) != write(2)
    assert any(query and said for _, query, said in write(1))


def test_recipe_runs_and_writes_both_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ray_app.demo.text_models import main

    options = ["--out", str(tmp_path), "--seed", "3", "--tower-steps", "2", "--documents", "40", "--reading-steps", "3"]
    monkeypatch.setattr(sys, "argv", ["text_models", *options])
    main()
    assert {path.name for path in tmp_path.iterdir()} == {"tower", "teacher"}
    AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")
    assert AutoTokenizer.from_pretrained(tmp_path / "tower")("a red sofa")["input_ids"][0] == 2


def test_comparisons_say_what_can_be_read() -> None:
    """Classes that were off by one would teach a base model nonsense, silently."""
    from ray_app.demo.reading import DIFFERS, FITS, NOT_ASKED, UNKNOWN, comparisons
    from ray_app.demo.tokens import build_tokenizer

    rows, classes = comparisons(build_tokenizer(word_list()), np.random.default_rng(0), 300, 150)
    assert len(rows) == len(classes) == 300
    assert classes[:, 0].min() >= 0 and classes[:, 0].max() <= 4
    assert set(classes[:, 1:].ravel()) == {NOT_ASKED, FITS, DIFFERS, UNKNOWN}


def test_tokenizer_is_the_same_each_time() -> None:
    from ray_app.demo.tokens import build_tokenizer

    assert build_tokenizer(word_list()).to_str() == build_tokenizer(word_list()).to_str()
