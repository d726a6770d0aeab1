"""What the vllm engine cannot read as the teacher was trained to is refused before an engine starts."""

import pytest
from label_world import save_teacher

from ray_app.base.config import LabelConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.stages.label.vllm import vllm_chain


def test_a_teacher_that_reads_token_types_is_refused(tmp_path, tiny_encoder) -> None:
    """The engine gives the model none: labels of the same ledger would depend on the engine."""
    store = Storage(str(tmp_path))
    teacher = save_teacher(store, tiny_encoder, "mean")
    with pytest.raises(UserError, match=r"token_type_ids.*label\.backend=transformers"):
        vllm_chain(store, teacher, teacher, LabelConfig(backend="vllm"))
