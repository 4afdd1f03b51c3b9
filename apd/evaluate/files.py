"""The files that an evaluation stores an attack's states, verdicts and images in, and their names.

The names are digests of all that verdicts depend on, so that a stored verdict is never used for
another model, attack or image.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from apd.attacks import Attack
from apd.evaluate.request import WHITE_BOX, EvaluationRequest, Shard
from apd.evaluate.state import digest
from apd.results.verdicts import Verdicts, read_verdicts, write_verdicts

CLEAN = Attack("clean", (), {})


class EvaluationFiles(NamedTuple):
    """The files of one attack on some images.

    Attributes:
        key: their name: a digest of ``identity``.
        identity: all that the attack's verdicts depend on.
        adv: folder for the images that decided the verdicts; None: they are not saved.
        folders: where the verdicts are written; the first one has the unfinished state too. Empty:
            nothing is stored.
        shard: the part of the images; None: all images.
    """

    key: str
    identity: dict
    adv: Path | None
    folders: tuple[Path, ...]
    shard: Shard | None

    @property
    def unfinished(self) -> Path:
        """The state of an attack that has not ended. This and ``finished`` need ``folders``."""
        return self.folders[0] / f"{self.key}.pt"

    @property
    def finished(self) -> Path:
        """Verdicts of all images, or the state of a shard that has ended."""
        suffix = "done.pt" if self.shard else "json"
        return self.folders[0] / f"{self.key}.{suffix}"

    @property
    def ended(self) -> bool:
        """Whether the attack has ended and is stored."""
        return bool(self.folders) and self.finished.exists()

    def read(self) -> Verdicts:
        """Read the verdicts of an attack that has ended, and write them to the other folders.

        Runs with the same predictions share the folder of attacked images, but each has a file of
        verdicts of its own.
        """
        verdicts = read_verdicts(self.finished)
        for folder in self.folders:
            if not (path := folder / f"{self.key}.json").exists():
                write_verdicts(path, verdicts)
        return verdicts

    def write(self, verdicts: Verdicts) -> None:
        """Store the verdicts, and delete the unfinished state."""
        for folder in self.folders:
            write_verdicts(folder / f"{self.key}.json", verdicts)
            (folder / f"{self.key}.pt").unlink(missing_ok=True)


def evaluation_files(
    request: EvaluationRequest, attack: Attack, fingerprint: str, images: str, places: str | dict
) -> EvaluationFiles:
    """The files of one attack of a request.

    Args:
        fingerprint: of the model.
        images: digest of the images, of a shard: of its own.
        places: as records state them ("all", or size and seed of the subset), also of a shard.
    """
    source = request.source
    identity = {
        "attack": attack.name,
        "threat_model": request.conditions(attack),
        "model": fingerprint,
        "made_on": fingerprint if source == WHITE_BOX else source.fingerprint,
        "images": images,
        "places": places,
    }
    if request.shard:
        identity["shard"] = str(request.shard)
    key = digest(identity)
    adv = None
    if request.save_adv and attack.stages:
        adv = request.save_adv / f"{attack.name}-{key}"
    store = request.store
    if store and request.shard:
        # a shard's state counts the files of images that it has written, so it is stored with them
        store = None if adv else store / request.shard.folder
    folders = tuple(folder for folder in (adv, store) if folder)
    return EvaluationFiles(key, identity, adv, folders, request.shard)
