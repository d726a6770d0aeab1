"""Caption all images with a vision-language model; `--estimate-cost` estimates time and cost before they are spent.

python pipelines/caption.py --config configs/demo.yaml --estimate-cost
python pipelines/caption.py --config configs/demo.yaml --set caption.backend=vllm
"""

from ray_app.cli import run_model_stage

if __name__ == "__main__":
    run_model_stage("caption", __doc__)
