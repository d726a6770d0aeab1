"""A published encoder used otherwise than it was trained raises no error and finds the wrong pins."""

import json

import huggingface_hub
import numpy as np
import pytest
import transformers
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from tiny_models import published

from ray_app.base.config import DistillConfig, FeatureConfig
from ray_app.base.errors import UserError
from ray_app.models import encoder_usage
from ray_app.models.backbone import is_decoder_config
from ray_app.models.encoder_usage import EncoderUsage, read_usage, with_usage, zero_shot_usage
from ray_app.models.text_encoder import TextEncoder

TEXTS = ["red cup", "usb hub", "a small large black usb hub cable for the red laptop", "mug"]
PROMPTS = {"query": "blue cable: ", "document": "shoe "}
OLD_CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


@pytest.mark.parametrize("pooling", ["cls", OLD_CLS, "mean", "lasttoken"], ids=["cls", "old cls", "mean", "last"])
@pytest.mark.parametrize("base", ["tiny_encoder", "tiny_decoder"])
def test_queries_and_pins_get_the_vectors_that_sentence_transformers_gives(request, tmp_path, base, pooling) -> None:
    module = pytest.importorskip("sentence_transformers", reason="needs pip install sentence-transformers")
    source = published(tmp_path, request.getfixturevalue(base), pooling, prompts=PROMPTS)
    theirs = module.SentenceTransformer(source, device="cpu")
    ours = TextEncoder(source, None, 10, role="query")
    query, pin = ours.encode(TEXTS, 2), ours.as_role("pin").encode(TEXTS, 3)
    np.testing.assert_allclose(query, theirs.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_allclose(pin, theirs.encode_document(TEXTS), atol=1e-5)
    if base == "tiny_encoder" or pooling in ("mean", "lasttoken"):  # a decoder's first token has read nothing
        assert np.abs(query - pin).max() > 1e-3


@pytest.mark.parametrize(("base", "pooling"), [("tiny_encoder", "mean"), ("tiny_decoder", "last")])
def test_a_bare_language_model_has_no_prompts_and_the_pooling_that_fits_it(request, base, pooling) -> None:
    assert read_usage(request.getfixturevalue(base), None, "distill.") == EncoderUsage(pooling=pooling)


@pytest.mark.parametrize(
    ("stored", "query", "pin"),
    [
        ({"query": "q ", "passage": "p "}, "q ", "p "),
        ({"query": "q ", "corpus": "c ", "document": ""}, "q ", ""),
        ({"s2p_query": "i ", "s2s_query": "s "}, "i ", ""),
        ({"query": "q "}, "q ", ""),
        ({}, "", ""),
        ({"query": None, "document": None}, "", ""),
    ],
)
@pytest.mark.parametrize("default", [None, "query"])
def test_prompts_are_found_by_the_names_in_use(tiny_encoder, tmp_path, stored, query, pin, default) -> None:
    """Also where the query's is the default one, which is not the pins'."""
    source = published(
        tmp_path, tiny_encoder, prompts=stored, default_prompt_name=default if "query" in stored else None
    )
    found = read_usage(source, None, "distill.")
    assert (found.query_prompt, found.pin_prompt) == (query, pin)


def test_a_default_prompt_for_anything_is_asked_for(tiny_encoder, tmp_path) -> None:
    """sentence-transformers puts it before a text or not, as one calls it."""
    source = published(tmp_path, tiny_encoder, prompts={"retrieval": "find {this} "}, default_prompt_name="retrieval")
    with pytest.raises(UserError, match=r"default_prompt_name.*set distill\.query_prompt to 'find \{this\} '"):
        read_usage(source, None, "distill.")
    found = read_usage(source, None, "distill.", query_prompt="find ", pin_prompt="")
    assert (found.query_prompt, found.pin_prompt) == ("find ", "")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"pooling": "max"}, r"1_Pooling/config\.json pools by max"),
        ({"pooling": "weightedmean"}, "pools by weightedmean"),
        ({"pooling": ["cls", "mean"]}, "pools by cls and mean"),
        ({"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}}, "pools by mean_tokens and max_tokens"),
        ({"pooling": {"pooling_mode": "mean", "include_prompt": False}}, "include_prompt"),
        ({"modules": ("Dense",)}, "models.Dense"),
        ({"modules": ("LayerNorm",)}, "models.LayerNorm"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_and_the_config_may_say_otherwise(tiny_encoder, tmp_path, files, says) -> None:
    """A projection that is left out, or another pooling, would give vectors of the right length and of no use."""
    source = published(tmp_path, tiny_encoder, **files)
    with pytest.raises(UserError, match=f"(?s){says}.*features\\.zero_shot_pooling") as caught:
        TextEncoder(source, None, 10, role="query")
    assert source in str(caught.value)
    assert read_usage(source, None, "distill.", pooling="mean").pooling == "mean"


def test_the_configs_keys_come_before_the_models_files(tiny_encoder, tmp_path) -> None:
    source = published(tmp_path, tiny_encoder, "cls", prompts=PROMPTS)
    features = FeatureConfig(zero_shot_model=source, zero_shot_query_prompt="", zero_shot_pooling="mean")
    assert zero_shot_usage(features) == EncoderUsage(pooling="mean", query_prompt="", pin_prompt="shoe ")
    cfg = with_usage(DistillConfig(base_model=source, pin_prompt="mug "))
    assert (cfg.pooling, cfg.query_prompt, cfg.pin_prompt) == ("cls", "blue cable: ", "mug ")
    assert with_usage(cfg) == cfg


def test_the_first_token_of_a_decoder_is_refused(tiny_decoder) -> None:
    with pytest.raises(UserError, match=r"distill\.pooling is cls.*set distill\.pooling to last"):
        read_usage(tiny_decoder, None, "distill.", pooling="cls")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_text_is_cut_and_its_prompt_is_not(tiny_encoder, tmp_path, side) -> None:
    source = published(tmp_path, tiny_encoder, prompts={"query": "blue cable "})
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"truncation_side": side}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    encoder = TextEncoder(source, None, 6, role="query")
    long, cut, other = encoder.encode(["red cup mug shoe", "red cup", "mug shoe"])
    np.testing.assert_allclose(long, cut, atol=1e-6)
    assert np.abs(long - other).max() > 0.01


def test_a_prompt_that_leaves_no_room_is_refused(tiny_encoder, tmp_path) -> None:
    """Every text would be cut away, and all would get one vector."""
    source = published(tmp_path, tiny_encoder, prompts={"document": "red " * 8})
    with pytest.raises(UserError, match=r"fills 10 tokens.*features\.zero_shot_max_tokens"):
        TextEncoder(source, None, 10, role="query")
    TextEncoder(source, None, 11, role="query")


def test_a_hub_that_does_not_answer_is_no_hub_without_the_file(monkeypatch, tiny_encoder) -> None:
    asked = []

    def download(source, name, revision=None):
        asked.append((source, name, revision))
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(
        encoder_usage, "peek_model_config", lambda source, revision: type("Bert", (), {"model_type": "bert"})
    )
    error = LocalEntryNotFoundError("offline")
    with pytest.raises(UserError, match=r"some/model.*modules\.json.*set distill\.pooling, distill\.query_prompt"):
        read_usage("some/model", "v1", "distill.")
    given = read_usage("some/model", "v1", "distill.", pooling="last", query_prompt="", pin_prompt="p ")
    assert given == EncoderUsage(pooling="last", pin_prompt="p ")
    assert asked == [("some/model", "modules.json", "v1")]
    error = EntryNotFoundError("404")
    assert read_usage("some/model", None, "distill.") == EncoderUsage(pooling="mean")


@pytest.mark.parametrize(
    ("kind", "is_decoder"),
    [
        *((kind, False) for kind in ("Ernie", "Longformer", "BigBird", "ModernBert", "Bert", "XLMRoberta", "MPNet", "BertGeneration")),
        *((kind, True) for kind in ("Llama", "Qwen3", "GptOss", "Gemma3Text", "ModernBertDecoder")),
    ],
)  # fmt: skip
def test_encoders_are_not_taken_for_decoders_nor_the_other_way(kind, is_decoder) -> None:
    """As decoders they would read pairs without [CLS] and [SEP], and be pooled at a token that means nothing to them."""
    assert is_decoder_config(getattr(transformers, f"{kind}Config")()) is is_decoder


def test_a_model_of_no_known_kind_is_neither() -> None:
    with pytest.raises(UserError, match="cannot tell whether a model of type 'vit'"):
        is_decoder_config(transformers.ViTConfig())


def test_an_e5_model_without_prompts_is_a_warning_that_names_the_keys(tiny_encoder, tmp_path, caplog) -> None:
    """Its files do not name them, so an engineer who follows no model card would never know."""
    folder = published(tmp_path / "multilingual-e5-small", tiny_encoder)
    read_usage(folder, None, "features.zero_shot_")
    assert "set features.zero_shot_query_prompt and features.zero_shot_pin_prompt" in caplog.text
    caplog.clear()
    read_usage(folder, None, "features.zero_shot_", query_prompt="", pin_prompt="")
    read_usage(published(tmp_path / "le5s", tiny_encoder), None, "distill.")
    assert not caplog.records
