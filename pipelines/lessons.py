"""Train the models of the lessons: teachers on fewer text features, students on fewer labels.

python pipelines/lessons.py --config configs/demo.yaml
"""

from runner import run_stage

from ray_app.lessons.stage import run

if __name__ == "__main__":
    run_stage(run, __doc__)
