"""Train the bi-encoder student on the teacher's soft labels.

python pipelines/distill.py --config configs/chorus.yaml
"""

from ray_app.cli import run_stage

if __name__ == "__main__":
    run_stage("distill", __doc__)
