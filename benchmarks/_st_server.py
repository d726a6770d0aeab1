"""The plain way to serve a sentence encoder: FastAPI and sentence-transformers, nothing else. A peer of bench_serve."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Queries(BaseModel):
    """Request."""

    queries: list[str]


def main(model: str, port: int) -> None:
    encoder = SentenceTransformer(model, device="cpu")
    encoder.encode(["warm up"])
    app = FastAPI()

    @app.post("/encode")
    def encode(body: Queries) -> dict[str, list[list[float]]]:
        return {"embeddings": encoder.encode(body.queries, show_progress_bar=False).tolist()}

    @app.get("/ready")
    def ready() -> str:
        return "ok"

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
