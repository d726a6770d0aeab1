"""Count the words of all pins' texts, by which BM25 and other features weigh them.

python pipelines/corpus_statistics.py --config configs/chorus.yaml
"""

from ray_app.cli import run_stage

if __name__ == "__main__":
    run_stage("corpus_statistics", __doc__)
