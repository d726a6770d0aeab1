"""Vectors of pins and boards, from which pins share boards.

python pipelines/graph.py --config configs/demo.yaml --set graph={}
"""

from ray_app.cli import run_stage

if __name__ == "__main__":
    run_stage("graph", __doc__)
