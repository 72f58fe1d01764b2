"""What an evaluation's output says: one contract (`base`), one module a format."""
