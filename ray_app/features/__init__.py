"""Features of query-pin pairs, in numpy."""
