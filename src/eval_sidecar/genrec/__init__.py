"""Evaluates a generative recommender: beam search over the items of an index, with HR@K and NDCG@K.

A process of its own (``start.py eval_sidecar.genrec.cli``), which meets the rest of eval-sidecar only
through its command line and the files it writes, and imports nothing else of it but what says where it lies.
"""
