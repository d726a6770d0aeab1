"""Who engaged with what: rates of pins, and a two-tower model of queries and pins."""
