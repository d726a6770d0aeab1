"""Search relevance with an LLM teacher, a distilled student and offline pin embeddings, on Ray."""
