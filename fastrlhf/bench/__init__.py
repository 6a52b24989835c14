"""`fastrlhf bench`: comparisons with what people use today, in turns, in one run."""
