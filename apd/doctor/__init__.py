"""Checks of a data root, of zero-shot CLIP, and of attacks on a device."""
