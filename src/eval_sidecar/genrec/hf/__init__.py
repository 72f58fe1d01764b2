"""Everything that an evaluation relies on in transformers: what it renames is changed here, and only here."""
