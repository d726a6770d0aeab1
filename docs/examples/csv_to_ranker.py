"""From three CSV files to a served ranker.   python csv_to_ranker.py products.csv searches.csv grades.csv"""

import sys

import ray_app

products, searches, grades = sys.argv[1:4]
locale = {"locale": "en-US"}
cfg = ray_app.load_config(
    {
        "extends": "base.yaml",
        "output": "runs/shop",
        "ingest": {
            "pins": {"adapter": "table", "path": products, "columns": {"pin_id": "sku", "title": "name", "description": "text"}, "constants": locale},
            "search_log": {
                "adapter": "table", "path": searches, "constants": locale,
                "columns": {"event_id": "id", "timestamp": "at", "query": "q", "pin_id": "sku", "position": "rank", "action": "what",
                            "client_id": "who"},
            },
            "human_labels": {
                "adapter": "table", "path": grades, "constants": locale, "columns": {"pin_id": "sku", "rater_id": "rater", "grade": "rating"},
                "grade_map": {0: 1, 1: 3, 2: 4, 3: 5},
            },
        },
        "train_teacher": {"num_layers": 3, "pooling": "spans", "train": {"train_top_layers": 2, "learning_rate": 1e-4}},
        "sample": {"num_pairs": 2000},
        "distill": {"train": {"epochs": 6, "train_top_layers": 0, "batch_size": 128}},
    },
    sys.argv[4:],
)  # fmt: skip

if __name__ == "__main__":
    ray_app.run(cfg)
    for row in ray_app.evaluate(cfg):
        print(row)
    with ray_app.serve(cfg, port=8000) as client:
        for result in client.search("red chair", locale="en-US", top_k=5)["results"]:
            print(result["pin_id"], round(result["score"], 2), result["title"])
