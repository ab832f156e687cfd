"""Retrieval-augmented generation: documents to chunks to vectors, found again and read.

Needs the extra ``rag``.
"""
