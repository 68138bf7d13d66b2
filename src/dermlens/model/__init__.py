"""Classifiers: build, train, calibrate, evaluate, save and load."""
