"""Join a pin's texts: fields, board titles, engaged queries.

python pipelines/enrich.py --config configs/chorus.yaml
"""

from ray_app.cli import run_stage

if __name__ == "__main__":
    run_stage("enrich", __doc__)
