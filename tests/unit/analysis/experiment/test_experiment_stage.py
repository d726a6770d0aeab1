"""On which workers an experiment's models are trained."""

from types import SimpleNamespace

from ray_app.analysis.experiment import stage
from ray_app.analysis.experiment.variants import Training
from ray_app.base.config import Config
from ray_app.base.storage import Storage


def test_teachers_train_with_the_workers_of_teach_and_students_with_those_of_distill(tmp_path, monkeypatch):
    """A large teacher on distill's one CPU worker takes days, or runs out of memory, while teach's GPUs stand idle."""
    source = {"adapter": "table", "path": "unused.csv"}
    workers = {"teach": {"base_model": "m", "num_workers": 4}, "distill": {"base_model": "m", "num_workers": 2}}
    cfg = Config.model_validate(
        {"output": str(tmp_path), "ingest": {"pins": source}, "features": {"zero_shot_model": "m"}, **workers}
    )
    trained = {}

    def train(name, jobs, seed, store, workers):
        trained.update({job.model_folder: workers.num_workers for job in jobs})

    def of_stage(name):
        def pending_jobs(own, view):
            return [SimpleNamespace(model_folder=f"{name}/{view.view}")]

        return SimpleNamespace(pending_jobs=pending_jobs, run=lambda own, view: None)

    monkeypatch.setattr(stage, "train_on_ray", train)
    monkeypatch.setattr(stage, "load_stage", of_stage)
    trainings = [
        Training(arm="a", system=system, cfg=cfg, view=f"k/{i}", stages=(name,))
        for i, (system, name) in enumerate([("teacher", "teach"), ("student", "distill"), ("teacher", "teach")])
    ]
    stage._train(trainings, Storage(str(tmp_path)))
    assert trained == {"teach/k/0": 4, "distill/k/1": 2, "teach/k/2": 4}
