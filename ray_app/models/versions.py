"""Preprocessing versions of the models: part of recipes. Raise one when the outputs for equal inputs change.

They stand apart from the models so that planning a job does not load torch.
"""

TEXT_ENCODER = 3
CROSS_ENCODER = 5
BI_ENCODER = 4
