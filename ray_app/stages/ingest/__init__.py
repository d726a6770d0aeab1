"""Raw sources -> the four source tables; bad rows become data in quarantine, with a reason."""
