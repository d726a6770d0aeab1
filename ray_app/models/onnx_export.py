"""The query tower as an ONNX file, compared with the torch model."""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_app.base.errors import UserError, one_line
from ray_app.base.extras import require_extra

if TYPE_CHECKING:
    from ray_app.models.bi_encoder import BiEncoder

logger = logging.getLogger(__name__)

# torch's exporter names an inner value `embedding` and then writes a corrupt file for an output of that name.
ONNX_OUTPUT = "sentence_embedding"
MAX_ONNX_DIFFERENCE = 1e-4  # between unit embeddings; measured: 2e-6 for MiniLM
_ONE_FILE_BYTES = 1_500_000_000  # an ONNX file cannot pass 2 GiB; larger weights are stored next to it


def query_tower(student: "BiEncoder") -> Any:
    """The query tower as a module: input_ids, attention_mask (B, T) int64 -> (B, dim) float32."""
    import torch

    class ExportedQueryTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = student

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.student.embed("query", input_ids, attention_mask)

    return ExportedQueryTower().eval()


def write_onnx(student: "BiEncoder", path: Path) -> None:
    """Write the query tower as ONNX: input_ids, attention_mask (B, T) int64 -> sentence_embedding (B, dim) float32.

    Raises:
        UserError: a package is missing, the model cannot be traced, or onnxruntime computes other vectors.
    """
    require_extra("export", "ONNX", "or export without it: --no-onnx")
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = {0: "batch", 1: "sequence"}
    num_bytes = sum(p.numel() * p.element_size() for p in student.tower("query").backbone.parameters())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch and copyreg, about their own future
        try:
            torch.onnx.export(
                query_tower(student), token_batch(student, 3, 7), path, dynamo=True, verbose=False,
                input_names=["input_ids", "attention_mask"], output_names=[ONNX_OUTPUT],
                dynamic_shapes=(sizes, sizes), external_data=num_bytes > _ONE_FILE_BYTES,
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            reason = one_line(error)[:200]
            raise UserError(f"torch cannot write this language model as ONNX ({reason}); try --no-onnx") from None
    difference = onnx_difference(student, path)
    if not difference <= MAX_ONNX_DIFFERENCE:  # NaN too
        raise UserError(
            f"the ONNX file gives other vectors than the model (by up to {difference:.1e}), so it is not exported; try --no-onnx"
        )
    logger.info("export: ONNX differs by at most %.1e", difference)


def onnx_difference(student: "BiEncoder", path: Path) -> float:
    """Largest absolute difference between onnxruntime's query embeddings and the student's, over several batch sizes.

    Each batch has rows of different lengths; sequences are padded as the tokenizer pads, and on the other side too.
    """
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    longest = student.cfg.max_query_tokens
    worst = 0.0
    for batch, tokens in ((1, 1), (1, 5), (2, 2), (5, longest), (8, min(12, longest)), (1, longest)):
        right = token_batch(student, batch, tokens)
        for ids, mask in (right, tuple(tensor.flip(1) for tensor in right)):
            with torch.no_grad():
                ours = student.embed("query", ids, mask).numpy()
            theirs = session.run([ONNX_OUTPUT], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
            if theirs.shape != ours.shape:
                return float("inf")
            worst = float(np.maximum(worst, np.abs(ours - theirs).max()))  # NaN stays NaN
    return worst


def token_batch(student: "BiEncoder", batch: int, tokens: int) -> tuple[Any, Any]:
    """Random input_ids and attention_mask, (batch, tokens) int64; row i lacks its last i tokens, the first one stays."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, student.backbone.config.vocab_size, (batch, tokens), generator=generator)
    lengths = (tokens - torch.arange(batch)).clamp(min=1)
    return ids, (torch.arange(tokens) < lengths.unsqueeze(1)).long()
