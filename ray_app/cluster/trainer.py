"""Ray Train's trainer and process group, without what trainings of this project have no use for."""

from typing import Any

from ray.train.torch import TorchConfig, TorchTrainer

from ray_app.cluster.resources import owns_cluster


class LeanTrainer(TorchTrainer):
    """Ray's, without two processes that our trainings have no use for, each of which imports torch.

    One hands out datasets, which are not given to this trainer. The other removes placement groups after the death of the
    controller; on a cluster of this driver's own they end with the cluster.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if owns_cluster() else set())
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if type(callback).__name__ not in unused]


class _TorchBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if len(worker_group) > 1:
            super().on_start(worker_group, backend_config)


class LonelyTorchConfig(TorchConfig):
    """Ray's, but a worker alone joins no process group: torch's store would listen on all interfaces, without a token."""

    @property
    def backend_cls(self) -> type:  # noqa: D102
        return _TorchBackend
