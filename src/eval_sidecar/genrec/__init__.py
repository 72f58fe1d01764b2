"""Evaluates a generative recommender: beam search over the items of an index, with HR@K and NDCG@K.

A process of its own (``python -m eval_sidecar.genrec``), which meets the rest of eval-sidecar only
through its command line and the files it writes, and imports nothing else of it.
"""
