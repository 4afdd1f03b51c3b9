"""Galleries of images under attack, and the words that are nearest to learned vectors."""
