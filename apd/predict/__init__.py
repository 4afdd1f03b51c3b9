"""Trained classifiers on images of one's own."""
