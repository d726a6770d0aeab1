"""A teacher for backends that read plain language models: its adapters merged into the weights, once."""

from pathlib import Path

from ray_app.base.storage import Storage
from ray_app.models.checkpoint import finished_model, save_model
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import Output
from ray_app.tables.model_files import model_files


def merged_model(store: Storage, teacher: Output) -> Output:
    """The model itself if it has no adapters, else a merged copy, created on first use."""
    if not any(Path(file).name == "adapter_config.json" for file in teacher.files):
        return teacher
    folder = f"models/{teacher.name}_merged/{teacher.content_hash}"
    if model_files(store, folder) is None:
        from ray_app.models.cross_encoder import CrossEncoder

        model = CrossEncoder.from_pretrained(local_folder(store, teacher))
        model.merge_adapters()
        save_model(model, store, folder, history=[], extra_files={})
    return finished_model(store, folder)
