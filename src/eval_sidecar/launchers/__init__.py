"""What starts an evaluation: one contract (`base`), one module a kind of machine."""
