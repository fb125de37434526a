"""What bitconv costs, beside other programs on the same files: `make bench` and `make bench-quick`."""
