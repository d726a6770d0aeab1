"""Sample the (query, pin) pairs that the teacher labels.

python pipelines/sample.py --config configs/chorus.yaml
"""

from runner import run_stage

from ray_app.sample.stage import run

if __name__ == "__main__":
    run_stage(run, __doc__)
