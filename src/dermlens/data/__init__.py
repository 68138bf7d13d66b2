"""Data sets: download, prepare, split, explore, draw and feed to a model."""
