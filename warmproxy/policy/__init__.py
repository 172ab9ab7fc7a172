"""Floor 1: pure judgement. Numbers in, numbers out."""
