"""What a trainer writes: which checkpoints there are, whether they are complete, and how they are kept."""
