"""Training, evaluation and what they write to the run folder."""
