"""Texts that config keys, flags and attacks take, each list once; this module imports nothing."""

NORMS = ("linf", "l2")
LOSSES = ("ce", "kl", "margin")  # of PGD
PRECISIONS = ("fp32", "bf16", "amp", "fp16")
POSITIONS = ("end", "middle", "front")  # of the class name in a prompt
ATTACKED = ("adv_full", "adv_half", "clean")  # AT.TRAIN.AT_LOSS_TYPE: all, half or no images
ATTACKED_PROMPTS = ("onfly", "constant", "perturbed")  # AT.TRAIN.PROMPT, of APT
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
TEACHERS = ("online", "offline", "frozen", "checkpoint", "auto")  # TRAINER.APD.TEACHER.MODE
RULES = ("majority", "all", "one")  # of verdicts in several draws
BACKWARDS = ("exact", "surrogate", "none")  # what autograd gives of a test-time defence
