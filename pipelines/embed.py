"""Embed all pins with the student and publish a release.

python pipelines/embed.py --config configs/chorus.yaml
"""

from ray_app.cli import run_stage
from ray_app.stages.embed.stage import run

if __name__ == "__main__":
    run_stage(run, __doc__)
