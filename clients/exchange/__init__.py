"""Adapters in other people's forms: directories, OCI layouts and archives, images, Ollama's. Over the wire only."""
