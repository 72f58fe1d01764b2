"""What starts an evaluation: one contract (`base`), one module for each kind of machine."""
