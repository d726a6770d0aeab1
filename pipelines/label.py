"""Label the sampled pairs with the teacher, through the ledger.

python pipelines/label.py --config configs/chorus.yaml
"""

from runner import run_stage

from ray_app.label.stage import run

if __name__ == "__main__":
    run_stage(run, __doc__)
