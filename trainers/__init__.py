"""The methods, one file each. Importing this package registers them with the toolbox."""

from apd.trainers import (  # noqa: F401
    adv_ivlp,
    adv_maple,
    adv_vpt,
    advpt,
    apd,
    apt,
    coop,
    fap,
    ivlp,
    maple,
    vpt,
    zsclip,
)
