"""Foreign datasets to shards: one small module per format, each *record -> Document*."""
