"""What training and saving need to know of a transformer body, for encoders (BERT-like) and decoders (Llama-like)."""

from pathlib import Path
from typing import Any

from ray_app.config import TrainConfig
from ray_app.models.sources import load_backbone


def is_decoder(backbone: Any) -> bool:
    """Whether tokens only see what stands before them, so that the last token must be the one that is pooled."""
    return is_decoder_config(backbone.config)


def is_decoder_config(config: Any) -> bool:
    """`is_decoder` of the model that has this config."""
    if getattr(config, "is_decoder", False):
        return True
    encoders = ("bert", "roberta", "electra", "mpnet", "deberta", "t5", "xlm")
    return not any(word in config.model_type for word in encoders)


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
    """Optimiser groups of the body with layer-wise learning rates; what is not trained is frozen here.

    The pooler of BERT-like models is always frozen: we never call it, and distributed training waits for the
    gradients of every trainable weight.
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
        embeddings = list(backbone.get_input_embeddings().parameters())
        for parameter in embeddings:
            parameter.requires_grad = True
        groups.append({"params": embeddings, "lr": cfg.learning_rate * cfg.layer_decay ** len(layers)})
    for depth, layer in enumerate(layers):
        chosen = [p for p in layer.parameters() if depth >= first and names[id(p)] in trainable]
        for parameter in chosen:
            parameter.requires_grad = True
        if chosen:
            rate = cfg.learning_rate * cfg.layer_decay ** (len(layers) - 1 - depth)
            groups.append({"params": chosen, "lr": rate})
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


def load_saved_backbone(
    folder: Path, base_model: str, revision: str | None, num_layers: int | None = None
) -> tuple[Any, Any]:
    """Body and tokenizer that a model of ours saved; adapters are put on their base model."""
    if not (folder / "adapter_config.json").exists():
        return load_backbone(str(folder))
    from peft import PeftModel
    from transformers import AutoTokenizer

    base, _ = load_backbone(base_model, revision, num_layers)
    return PeftModel.from_pretrained(base, folder), AutoTokenizer.from_pretrained(folder)
