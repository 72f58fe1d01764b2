"""What is known of one model: transitions, codec, store, results, requests, status."""
