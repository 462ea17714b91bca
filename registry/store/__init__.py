"""A store on the disk: an OCI image layout, its SQLite index and its logs, and who may change them when."""
