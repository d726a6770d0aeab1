"""On which workers an experiment's models are trained."""

from types import SimpleNamespace

from tiny_config import tiny_config

from ray_app.analysis.experiment import stage
from ray_app.analysis.experiment.variants import Training
from ray_app.base.storage import Storage


def test_teachers_train_with_the_workers_of_teach_and_students_with_those_of_distill(tmp_path, monkeypatch):
    """A large teacher on distill's one CPU worker takes days, or runs out of memory, while train_teacher's GPUs stand idle."""
    workers = {"train_teacher": {"base_model": "m", "num_workers": 4}, "distill": {"base_model": "m", "num_workers": 2}}
    cfg, trained = tiny_config(tmp_path, **workers), {}

    def train(name, jobs, seed, store, workers):
        trained.update({job.model_folder: workers.num_workers for job in jobs})

    def of_stage(name):
        return SimpleNamespace(
            pending_jobs=lambda own, variant: [SimpleNamespace(model_folder=f"{name}/{variant.variant}")],
            run=lambda own, variant: None,
        )

    monkeypatch.setattr(stage, "train_on_ray", train)
    monkeypatch.setattr(stage, "load_stage", of_stage)
    trainings = [
        Training(name="a", system=system, cfg=cfg, variant=f"k/{i}", stages=(name,))
        for i, (system, name) in enumerate(
            [("teacher", "train_teacher"), ("student", "distill"), ("teacher", "train_teacher")]
        )
    ]
    stage._train(trainings, Storage(str(tmp_path)))
    assert trained == {"train_teacher/k/0": 4, "distill/k/1": 2, "train_teacher/k/2": 4}
