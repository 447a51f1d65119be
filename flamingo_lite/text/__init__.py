"""Documents to token ids: the tokenizer and the template."""
