"""The documents' models in NumPy."""
