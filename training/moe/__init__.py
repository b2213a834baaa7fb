"""MoE-GS: models that are trained each for itself, and what blends their pictures."""
