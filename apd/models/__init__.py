"""Trained prompts as an image classifier: load, predict, save, share."""
