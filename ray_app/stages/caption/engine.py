"""The one recipe of prompt and processor for all engines, and the captioner that runs it with transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_app.base.config import CaptionConfig
from ray_app.base.content_key import recipe_id
from ray_app.base.errors import UserError
from ray_app.base.images import decode as images
from ray_app.models.model_sources import model_identity, resolve
from ray_app.models.text_encoder import stage_dtype
from ray_app.stages.caption import clean

if TYPE_CHECKING:
    from PIL import Image

VERSION = 1  # part of the recipe: raised when equal pictures give other answers than before


def caption_recipe(cfg: CaptionConfig) -> str:
    """Hash of everything that decides a caption besides the image. The backend is not part of it: both give the same captions."""
    assert cfg.model is not None
    return recipe_id(
        stage="caption",
        model=model_identity(cfg.model, cfg.revision),
        prompt=cfg.prompt,
        max_new_tokens=cfg.max_new_tokens,
        max_chars=cfg.max_chars,
        dtype=stage_dtype(cfg),
        max_side=cfg.limits.max_side,
        max_pixels=cfg.limits.max_pixels,
        versions=[VERSION, images.VERSION, clean.VERSION],
    )


def load_processor(cfg: CaptionConfig) -> Any:
    """The model's own picture and text processor.

    Raises:
        UserError: the model has none, or it cannot be loaded.
    """
    from transformers import AutoProcessor

    assert cfg.model is not None
    try:
        processor = AutoProcessor.from_pretrained(resolve(cfg.model), trust_remote_code=False, **_where(cfg))
    except (OSError, ValueError, ImportError) as error:
        raise _cannot_load(cfg, error) from None
    if not hasattr(processor, "image_processor"):
        raise UserError(f"caption.model {cfg.model!r} has no image processor: it is not a vision-language model")
    return processor


def render_prompt(processor: Any, prompt: str) -> str:
    """The prompt in the model's chat template, with the place of one picture.

    Raises:
        UserError: the model has no chat template.
    """
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
    try:
        rendered: str = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    except ValueError as error:
        raise UserError(f"caption.model has no chat template: {' '.join(str(error).split())[:200]}") from None
    return rendered


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Answer of the model for one image, or its error; the other one is None."""

    text: str | None
    error: str | None


class TransformersCaptioner:
    """Greedy captions with transformers' own `generate`, batch by batch.

    Args:
        cfg: Model, prompt, dtype.
        cpu_threads: Of torch, when there is no GPU; 0: as torch chose.
    """

    def __init__(self, cfg: CaptionConfig, cpu_threads: int = 0) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, GenerationConfig
        from transformers.utils import logging as transformers_logging

        from ray_app.models.devices import pick_device, pick_dtype

        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()  # Idefics3 warns of its own default config each time
        assert cfg.model is not None
        self.processor = load_processor(cfg)
        self.processor.tokenizer.padding_side = "left"  # so that all answers of a batch start at the same position
        if self.processor.tokenizer.pad_token is None:
            self.processor.tokenizer.pad_token = self.processor.tokenizer.eos_token
        self.prompt = render_prompt(self.processor, cfg.prompt)
        self.device = pick_device(cpu_threads)
        self.dtype = getattr(torch, pick_dtype(cfg.dtype, self.device))
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                resolve(cfg.model), dtype=self.dtype, use_safetensors=True, trust_remote_code=False, **_where(cfg)
            )
        except (OSError, ValueError) as error:
            raise _cannot_load(cfg, error) from None
        # Nothing of the model's own sampling settings: vllm gets none of them either.
        model.generation_config = GenerationConfig(
            do_sample=False, num_beams=1, repetition_penalty=1.0, max_new_tokens=cfg.max_new_tokens,
            eos_token_id=model.generation_config.eos_token_id or self.processor.tokenizer.eos_token_id,
            bos_token_id=model.generation_config.bos_token_id,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )  # fmt: skip
        self.model = model.eval().to(self.device)
        self._torch = torch

    def caption(self, pictures: Sequence["Image.Image"]) -> list[str]:
        """One greedy answer per RGB picture, as one batch, special tokens left out."""
        inputs = self.processor(
            text=[self.prompt] * len(pictures), images=[[picture] for picture in pictures], padding=True,
            return_tensors="pt",
        ).to(self.device)  # fmt: skip
        if self.dtype != self._torch.float32:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        with self._torch.inference_mode():
            tokens = self.model.generate(**inputs)
        said = tokens[:, inputs["input_ids"].shape[1] :]
        return list(self.processor.tokenizer.batch_decode(said, skip_special_tokens=True))

    def answer(self, pictures: Sequence["Image.Image"]) -> list[Answer]:
        """`caption`, but a picture that the processor or the model refuses costs only its own row."""
        if not pictures:
            return []
        try:
            return [Answer(text=text, error=None) for text in self.caption(pictures)]
        except (ValueError, IndexError, TypeError) as error:
            if len(pictures) == 1:
                return [
                    Answer(text=None, error=f"engine: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
                ]
            return [answer for picture in pictures for answer in self.answer([picture])]


def _where(cfg: CaptionConfig) -> dict[str, Any]:
    return {"revision": cfg.revision} if cfg.revision else {}


def _cannot_load(cfg: CaptionConfig, error: Exception) -> UserError:
    return UserError(f"caption.model {cfg.model!r} cannot be loaded: {' '.join(str(error).split())[:200]}")
