"""What people look at: one set of facts per model and checkpoint, for every screen and file."""
