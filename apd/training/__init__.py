"""The base classes of all methods: frozen CLIP, training step, attack, resumable runs."""
