"""The operations that the decoder is made of: tensors only, no adapter, no request."""
