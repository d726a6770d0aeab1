"""Fine-tune the cross-encoder teacher on human labels.

python pipelines/train_teacher.py --config configs/chorus.yaml
"""

from ray_app.cli import run_stage

if __name__ == "__main__":
    run_stage("train_teacher", __doc__)
