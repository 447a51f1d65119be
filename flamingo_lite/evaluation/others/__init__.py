"""Models of others in our evaluation: those of transformers, and those behind an OpenAI-compatible endpoint."""
