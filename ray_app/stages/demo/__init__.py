"""demo: write the synthetic demo dataset."""
