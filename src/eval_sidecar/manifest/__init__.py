"""Which models there are, which run each belongs to, and what a receipt says."""
