"""Fine-tune the cross-encoder teacher on human labels.

python pipelines/train_teacher.py --config configs/chorus.yaml
"""

from ray_app.cli import run_stage
from ray_app.stages.train_teacher.stage import run

if __name__ == "__main__":
    run_stage(run, __doc__)
