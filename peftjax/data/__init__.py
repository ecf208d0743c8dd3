"""From records to packed batches: JSONL or a built-in set, splits by group, a tfds store, tokens, packing, batches."""
