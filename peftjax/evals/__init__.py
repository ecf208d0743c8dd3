"""What a fine-tuned model is measured by: metrics over text, tasks and statistics."""
