"""Fixtures that every level uses: tiny models, made once per session. No test asks a hub."""

import os
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
sys.path.insert(0, str(Path(__file__).parent))  # for tiny_models

from tiny_models import save_tiny_decoder, save_tiny_encoder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_encoder(tmp_path_factory.mktemp("models") / "encoder"))


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_decoder(tmp_path_factory.mktemp("models") / "decoder"))
