"""GraphSAGE embeddings on the bipartite graph of pins and boards."""
