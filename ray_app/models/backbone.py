"""Structure of transformer bodies for training and saving: encoders (BERT-like) and decoders (Llama-like)."""

from pathlib import Path
from typing import Any

from ray_app.base.config import TeacherConfig, TrainConfig
from ray_app.base.errors import UserError
from ray_app.models.model_sources import load_backbone, open_tokenizer


def is_decoder(backbone: Any) -> bool:
    """Return True if tokens only attend to earlier ones, so that the last token must be pooled."""
    return is_decoder_config(backbone.config)


def is_decoder_config(config: Any) -> bool:
    """`is_decoder` of the model that has this config.

    Raises:
        UserError: transformers knows its type neither as an encoder nor as a decoder.
    """
    if getattr(config, "is_decoder", False) or config.model_type.endswith("-decoder"):  # modernbert-decoder
        return True
    encoders = ("bert", "roberta", "electra", "mpnet", "deberta", "t5", "xlm")
    if any(word in config.model_type for word in encoders):
        return False
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    # Some encoders have a causal head too (ERNIE, BigBird), so the masked one decides.
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return True
    raise UserError(
        f"cannot tell whether a model of type {config.model_type!r} is an encoder or a decoder; use another"
    )


def is_causal(config: Any) -> bool:
    """Return True for a decoder with causal attention; some decoders are converted to bidirectional attention."""
    sees_all = getattr(config, "use_bidirectional_attention", None) in (True, "all")
    return is_decoder_config(config) and not sees_all and getattr(config, "is_causal", None) is not False


def with_pooling(cfg: TeacherConfig, config: Any) -> TeacherConfig:
    """Return a copy with the pooling of the teacher's states resolved.

    Raises:
        UserError: the pooling takes states of a decoder that have not read the whole pair.
    """
    if cfg.pooling is None:
        return cfg.model_copy(update={"pooling": "last" if is_decoder_config(config) else "mean"})
    if cfg.pooling != "last" and is_causal(config):
        raise UserError(
            f"train_teacher.pooling is {cfg.pooling}, but {cfg.base_model!r} is a decoder: only its last token has read the whole "
            "pair; set train_teacher.pooling to last, or leave it out"
        )
    return cfg


def transformer_layers(backbone: Any) -> list[Any]:
    """The stack of layers, bottom first."""
    for path in (
        "encoder.layer",
        "transformer.layer",
        "layers",
        "base_model.model.layers",
        "base_model.model.encoder.layer",
    ):
        module = backbone
        for part in path.split("."):
            module = getattr(module, part, None)
            if module is None:
                break
        else:
            return list(module)
    raise ValueError(f"cannot find the layers of a {type(backbone).__name__}; add its path to transformer_layers()")


def backbone_groups(backbone: Any, cfg: TrainConfig) -> list[dict[str, Any]]:
    """Optimiser groups of the body with layer-wise learning rates; other parameters are frozen here.

    The pooler of BERT-like models is always frozen: we never call it, and distributed training waits for the
    gradients of every trainable weight.

    Raises:
        UserError: layers should train, but all that may train in them is frozen: only the head would learn.
    """
    layers = transformer_layers(backbone)
    top = len(layers) if cfg.train_top_layers is None else cfg.train_top_layers
    first = max(0, len(layers) - top)
    trainable = {name for name, p in backbone.named_parameters() if p.requires_grad}  # adapters freeze the rest
    for parameter in backbone.parameters():
        parameter.requires_grad = False
    groups: list[dict[str, Any]] = []
    names = {id(p): name for name, p in backbone.named_parameters()}
    if cfg.train_embeddings:
        # With adapters the trained copy alone: see `add_adapters`.
        embeddings = [p for p in backbone.get_input_embeddings().parameters() if names[id(p)] in trainable]
        if not embeddings:
            raise UserError("train.train_embeddings is true, but this model's token embeddings are frozen")
        for parameter in embeddings:
            parameter.requires_grad = True
        groups.append({"params": embeddings, "lr": cfg.learning_rate * cfg.layer_decay ** len(layers)})
    num_layers_trained = 0
    for depth, layer in enumerate(layers):
        chosen = [p for p in layer.parameters() if depth >= first and names[id(p)] in trainable]
        for parameter in chosen:
            parameter.requires_grad = True
        if chosen:
            rate = cfg.learning_rate * cfg.layer_decay ** (len(layers) - 1 - depth)
            groups.append({"params": chosen, "lr": rate})
            num_layers_trained += 1
    if first < len(layers) and not num_layers_trained:
        raise UserError(
            f"train.train_top_layers asks for {len(layers) - first} layers, but no weight of them can be trained: adapters "
            "that do not reach them, or a frozen model; set train.train_top_layers to 0 to train the head alone"
        )
    return groups


def save_memory(model: Any, cfg: TrainConfig) -> None:
    """Apply `gradient_checkpointing` and `frozen_dtype`; call it when `param_groups` has frozen what is not trained."""
    import torch

    if cfg.gradient_checkpointing:
        for backbone in model.backbones:
            backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if cfg.frozen_dtype == "bfloat16":
        for parameter in model.parameters():
            if not parameter.requires_grad and parameter.dtype == torch.float32:
                parameter.data = parameter.data.bfloat16()


def add_adapters(backbone: Any, rank: int, train_embeddings: bool) -> Any:
    """Low-rank adapters on all linear layers of a frozen body.

    Args:
        train_embeddings: Give it a copy of the token embeddings that trains and is saved with the adapters; trained in
            place they would be lost, since the base model's own weights are not saved.
    """
    from peft import LoraConfig, get_peft_model

    embeddings = backbone.get_input_embeddings()
    saved = [name for name, module in backbone.named_modules() if module is embeddings] if train_embeddings else None
    return get_peft_model(backbone, LoraConfig(r=rank, target_modules="all-linear", modules_to_save=saved))


def load_saved_backbone(
    folder: Path, base_model: str, revision: str | None, num_layers: int | None = None,
    quantize: str | None = None, trainable: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """Body and tokenizer saved by one of our models; adapters are put on their base model.

    Args:
        base_model: Under the adapters, if there are any; so are `revision`, `num_layers` and `quantize`.
        trainable: The adapters can be trained further; False: they are frozen.
    """
    if not (folder / "adapter_config.json").exists():
        return load_backbone(str(folder))
    from peft import PeftModel

    base, _ = load_backbone(base_model, revision, num_layers, quantize)
    return PeftModel.from_pretrained(base, folder, is_trainable=trainable), open_tokenizer(folder)
