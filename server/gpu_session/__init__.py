"""Everything that one short session on a GPU has to find out, in one command; see `__main__`."""
