"""Read the sources, validate every row, and write pins, boards, search_log, human_labels and quarantine.

python pipelines/ingest.py --config configs/chorus.yaml
"""

from ray_app.cli import run_stage

if __name__ == "__main__":
    run_stage("ingest", __doc__)
