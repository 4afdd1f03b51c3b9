"""The methods, one file each. Importing this package registers them with the toolbox."""

from apd.trainers import (  # noqa: F401
    adv_ivlp,
    adv_maple,
    adv_vpt,
    apd,
    apt,
    coop,
    ivlp,
    maple,
    vpt,
    zsclip,
)
