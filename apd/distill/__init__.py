"""The distillation head: what the student takes over from a clean teacher, as plain losses."""

from apd.distill.losses import feature_alignment, kl_distillation, mean_probability

__all__ = ["feature_alignment", "kl_distillation", "mean_probability"]
