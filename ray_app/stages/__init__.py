"""One package per stage; no stage imports another."""
