"""Answers from prompts: texts (generate) and log-probabilities of candidates (score)."""
