"""Room for LoRA in slots, the same in every worker: whether one acts in a slot or merged must not depend on where and
beside what a job is drawn. Larger and other ones are merged while they draw. No torch."""

SLOTS, RANK, PER_ROW = 8, 16, 2
"""Of each model, their rank, and how many of them one row can use."""
