"""The losses of distillation, by which a student learns from a clean teacher."""

from apd.distill.losses import feature_alignment, kl_distillation, mean_probability

__all__ = ["feature_alignment", "kl_distillation", "mean_probability"]
