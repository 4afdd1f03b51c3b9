"""What the methods share: a frozen CLIP, the training step, its attack, and runs that resume."""
