"""Under lmms-eval: our models as models of its own, and our few-shot tasks as tasks of its own."""
