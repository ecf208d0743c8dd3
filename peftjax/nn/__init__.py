"""Kernels (nodes and `dot`), layers and sites: all that a model knows about being adapted."""
