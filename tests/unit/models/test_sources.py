"""A model's identity: what can change a result is in it, what cannot is not, and a branch of a hub is a commit."""

import logging
from pathlib import Path

import huggingface_hub.constants
import pytest
from tiny_models import save_tiny_encoder

from ray_app.models import model_sources as sources
from ray_app.models.model_sources import load_backbone, model_identity, pinned_revision

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def forget_all():
    forget()


def forget():
    """As in another process."""
    sources.model_identity.cache_clear()
    sources.pinned_revision.cache_clear()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def identity_after(folder, name, content=b"other"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    sources.model_identity.cache_clear()
    return model_identity(str(folder))


@pytest.mark.parametrize(
    "name",
    ["spiece.model", "tokenizer.spm", "qwen.tiktoken", "vocab.bpe", "merges.txt", "chat_template.jinja",
     "1_Pooling/config.json", "vocab"],
)  # fmt: skip
def test_another_tokenizer_or_setting_is_another_model(folder, name):
    """deberta-v3 has no tokenizer file but spiece.model: another one gives other tokens, and other labels."""
    first, second = identity_after(folder, name, b"one"), identity_after(folder, name, b"two")
    assert first != second


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "onnx/config.json", "README.md",
     "modeling.py", ".gitattributes", ".git/HEAD", ".cache/x.json"],
)  # fmt: skip
def test_what_is_never_read_does_not_count(folder, name):
    """Else a downloaded copy in another format would train everything again."""
    assert identity_after(folder, "config.json", b"{}") == identity_after(folder, name)


def test_the_same_bytes_under_another_name_or_cut_elsewhere_are_another_model(tmp_path):
    found = set()
    for i, files in enumerate([{"a.txt": b"x", "b.txt": b"y"}, {"a.txt": b"y", "b.txt": b"x"}, {"a.txt": b"x6 b.txt 1 y"},
                               {"sub/a.txt": b"x", "b.txt": b"y"}]):  # fmt: skip
        for name, content in files.items():
            found.add(identity_after(tmp_path / str(i), name, content))
    assert len(found) == 7


# --- hub ids ---


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local cache with the model shop/tiny at OLD and at NEW; `main` is OLD."""
    repo = tmp_path / "hub" / "models--shop--tiny"
    for commit, width in ((OLD, 16), (NEW, 32)):
        save_tiny_encoder(repo / "snapshots" / commit, width)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(OLD)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return repo


def test_a_hub_id_without_revision_is_the_commit_of_the_local_copy(hub):
    """`@main` would stand for any state that the branch ever had."""
    assert model_identity("shop/tiny") == model_identity("shop/tiny", "main") == f"shop/tiny@{OLD}"
    assert model_identity("shop/tiny", NEW) == f"shop/tiny@{NEW}"
    (hub / "refs" / "main").write_text(NEW)
    forget()
    assert model_identity("shop/tiny") == f"shop/tiny@{NEW}"


def test_what_is_loaded_is_what_the_identity_says(hub):
    """The branch may move while a run goes on: then the recipe would name one commit, and the weights be another's."""
    assert model_identity("shop/tiny") == f"shop/tiny@{OLD}"
    (hub / "refs" / "main").write_text(NEW)
    assert load_backbone("shop/tiny")[0].config.hidden_size == 16
    forget()
    assert load_backbone("shop/tiny")[0].config.hidden_size == 32


def test_a_commit_that_nobody_knows_is_said_once(hub, caplog):
    with caplog.at_level(logging.WARNING):
        assert [model_identity("shop/unknown") for _ in range(3)] == ["shop/unknown@main"] * 3
        assert pinned_revision("shop/unknown", "v2") == "v2"
        assert pinned_revision("shop/unknown", "v2") == "v2"
    said = [record.message for record in caplog.records if "shop/unknown" in record.message]
    assert len(said) == 2, "once per revision"
    assert all("set its revision" in message for message in said)


def test_a_local_folder_has_no_commit(tmp_path):
    assert pinned_revision(str(tmp_path)) is None
    assert pinned_revision(str(Path(tmp_path) / "nowhere")) is None
