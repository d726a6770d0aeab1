"""Embed all pins with the student and publish a release; `--estimate-cost` estimates time and cost before they are spent.

python pipelines/embed.py --config configs/chorus.yaml
"""

from ray_app.cli import run_model_stage

if __name__ == "__main__":
    run_model_stage("embed", __doc__)
