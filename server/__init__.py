"""An adapter in use: one quantized base model on a device, many adapters under it, requests over gRPC."""
