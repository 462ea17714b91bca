"""The base model: its shape, its weights, its tokenizer and the one decoder that runs every family."""
