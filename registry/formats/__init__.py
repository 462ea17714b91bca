"""Each kind of adapter, from its files to the canonical form. A new kind is a file here and a line in `kind.py`."""
