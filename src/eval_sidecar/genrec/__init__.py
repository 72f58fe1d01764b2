"""Evaluates a generative recommender: beam search over the items of an index, with HR@K and NDCG@K.

A separate process (``start.py eval_sidecar.genrec.cli``). It talks to the rest of eval-sidecar only through
its command line and the files it writes, and imports nothing of it but :mod:`eval_sidecar.installation`.
"""
