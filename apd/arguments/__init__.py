"""Flags of commands whose work needs PyTorch, read before it is imported."""
