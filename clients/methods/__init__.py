"""The clients' methods, one noun a file; `aio_x.py` is the asyncio twin of `x.py`. Together they are the clients."""
