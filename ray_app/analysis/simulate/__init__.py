"""The online experiment in simulation: two rankers meet the same people of the demo world."""
