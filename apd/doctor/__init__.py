"""What a data root holds."""
