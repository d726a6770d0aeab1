"""Embed pins and queries with the untrained base encoder: baseline, retriever for `sample`, feature for `train_teacher`.

python pipelines/zero_shot.py --config configs/chorus.yaml
"""

from ray_app.cli import run_stage

if __name__ == "__main__":
    run_stage("zero_shot", __doc__)
