"""Everything that runs on Ray: resources, the stage executor, encoders, training workers, vLLM."""
