"""The functional decoder, its configuration, tokenizers and generation. Nothing here knows a fine-tuning method."""
