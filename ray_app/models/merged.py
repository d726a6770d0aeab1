"""A teacher for engines that read plain language models: its adapters merged into the weights, once."""

from pathlib import Path

from ray_app.manifest import Output
from ray_app.models.checkpoint import finished_model, local_folder, model_files, save_model
from ray_app.storage import Storage


def merged_model(store: Storage, teacher: Output) -> Output:
    """The model itself if it has no adapters, else a merged copy that is made when it is first asked for."""
    if not any(Path(file).name == "adapter_config.json" for file in teacher.files):
        return teacher
    folder = f"models/{teacher.name}_merged/{teacher.content_hash}"
    if model_files(store, folder) is None:
        from ray_app.models.cross_encoder import CrossEncoder

        model = CrossEncoder.from_pretrained(local_folder(store, teacher))
        model.merge_adapters()
        save_model(model, store, folder, history=[], extra_files={})
    return finished_model(store, folder)
