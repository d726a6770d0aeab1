"""Label the sampled pairs with the teacher, through the ledger; `--estimate-cost` estimates time and cost before they are spent.

python pipelines/label.py --config configs/chorus.yaml
ray job submit --working-dir . -- python pipelines/label.py --config configs/X.yaml --set label.backend=vllm
"""

from ray_app.cli import run_model_stage

if __name__ == "__main__":
    run_model_stage("label", __doc__)
