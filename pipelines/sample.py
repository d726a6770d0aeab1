"""Sample the (query, pin) pairs that the teacher labels.

python pipelines/sample.py --config configs/chorus.yaml
"""

from ray_app.cli import run_stage

if __name__ == "__main__":
    run_stage("sample", __doc__)
