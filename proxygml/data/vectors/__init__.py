"""Vectors in files: found in a column or a .npy file, checked, coded in fewer bytes, written with their items."""
