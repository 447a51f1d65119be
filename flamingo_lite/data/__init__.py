"""Reading and writing documents: shards, images, synthetic families."""
