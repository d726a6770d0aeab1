"""Training curves in TensorBoard or MLflow, as configured; from the first worker."""

from collections.abc import Callable

from ray_app.base.config import TrainConfig
from ray_app.base.errors import UserError
from ray_app.base.extras import require_extra
from ray_app.base.storage import Storage

Track = Callable[[dict[str, float], int], None]


def start_tracking(cfg: TrainConfig, store: Storage, run_name: str, model_folder: str) -> Track:
    """Return a function that logs the metrics of a step to the trackers in `train.report_to`.

    TensorBoard's files go to `<output>/tracking/<model folder>`. MLflow's to the server at MLFLOW_TRACKING_URI; one
    MLflow run per model.

    Raises:
        UserError: mlflow is missing or no server is named, or TensorBoard's output is remote.
    """
    trackers = [
        {"tensorboard": _tensorboard, "mlflow": _mlflow}[name](cfg, store, run_name, model_folder)
        for name in cfg.report_to
    ]

    def track(metrics: dict[str, float], step: int) -> None:
        for tracker in trackers:
            tracker(metrics, step)

    return track


def _tensorboard(cfg: TrainConfig, store: Storage, run_name: str, model_folder: str) -> Track:
    from tensorboardX import SummaryWriter

    if not store.is_local:
        raise UserError(
            "train.report_to has tensorboard, which writes to a local folder; use mlflow with a remote output"
        )
    writer = SummaryWriter(store.full_path(f"tracking/{model_folder}"), flush_secs=2)
    writer.add_text("config", f"```\n{cfg.model_dump_json(indent=1)}\n```")

    def track(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return track


def _mlflow(cfg: TrainConfig, store: Storage, run_name: str, model_folder: str) -> Track:
    import os

    require_extra("mlflow", "train.report_to: mlflow", "or remove it")
    import mlflow

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError("train.report_to has mlflow: set MLFLOW_TRACKING_URI to the address of the tracking server")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(run_name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(run_name)
    run_id = client.create_run(experiment_id, run_name=model_folder).info.run_id
    for name, value in cfg.model_dump(mode="json").items():
        client.log_param(run_id, name, value)

    def track(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            client.log_metric(run_id, name, value, step=step)

    return track
