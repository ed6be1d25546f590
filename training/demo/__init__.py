"""How the guides that trimtab ships are made: `make demo-guides`."""
