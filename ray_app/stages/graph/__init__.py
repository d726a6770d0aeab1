"""Which pins share boards: GraphSAGE on the graph of pins and boards."""
