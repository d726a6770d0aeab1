"""Join a pin's texts: fields, board titles, engaged queries.

python pipelines/enrich.py --config configs/chorus.yaml
"""

from ray_app.cli import run_stage
from ray_app.stages.enrich.stage import run

if __name__ == "__main__":
    run_stage(run, __doc__)
