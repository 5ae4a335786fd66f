"""Clusters and near-duplicates of vectors, and the folder that they are written to."""
