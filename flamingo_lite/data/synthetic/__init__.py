"""Unlimited synthetic pictures and episodes, drawn from seeds, each with its twin in words."""
