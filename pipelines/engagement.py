"""Rates of pins, and vectors of queries and pins, from the search log.

python pipelines/engagement.py --config configs/demo.yaml --set engagement={}
"""

from ray_app.cli import run_stage

if __name__ == "__main__":
    run_stage("engagement", __doc__)
