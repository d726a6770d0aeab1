"""Generate the demo dataset under `<output>/world` (docs/demo_world.md).

python pipelines/demo.py --config configs/demo.yaml --set demo.num_pins=100000 --set demo.pictures=bytes
"""

from ray_app.cli import run_stage

if __name__ == "__main__":
    run_stage("demo", __doc__)
