"""What runs and tables must say, written plainly: images, classes, predictions, means.

Of ``apd`` only the backbone's weights are taken. A prompt's record is its ``Spec``.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from statistics import harmonic_mean, mean

import numpy as np
import plain_clip
import torch
from PIL import Image

LEARNS = ("CoOp", "APT", "IVLP", "MaPLe")
METHODS = ("ZeroshotCLIP", *LEARNS)
TEST_IMAGES = 5  # of a class
TIE = 1e-3  # logits that are nearer than this may be told apart either way
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).double().view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).double().view(3, 1, 1)


@dataclass(frozen=True)
class Spec:
    """What a run is asked for."""

    method: str = "CoOp"
    dataset: str = "digits"
    part: str = ""  # of the classes
    subsample: str = "all"
    shots: int = 1
    seed: int = 1
    position: str = "end"
    csc: bool = False
    epochs: int = 1
    final: str = "last_step"

    def __post_init__(self):
        if self.method not in ("CoOp", "APT"):
            object.__setattr__(self, "position", "end")
            object.__setattr__(self, "csc", False)
        if not self.learns:
            object.__setattr__(self, "final", "last_step")

    @property
    def learns(self):
        return self.method in LEARNS

    @property
    def place(self):
        """The data set as results name it, and which of its classes."""
        return f"{self.dataset} {self.part}".strip(), self.subsample

    def options(self):
        options = {
            "DATASET.FOLDER.DIR": self.dataset,
            "DATASET.SUBSAMPLE_CLASSES": self.subsample,
            "DATASET.NUM_SHOTS": self.shots,
            "OPTIM.MAX_EPOCH": self.epochs,
            "TRAINER.COOP.CLASS_TOKEN_POSITION": self.position,
            "TRAINER.COOP.CSC": self.csc,
            "TEST.FINAL_MODEL": self.final,
            "TRAIN.CHECKPOINT_FREQ": 1,
            "SEED": self.seed,
        }
        if self.part:
            options["DATASET.CLASSES"] = f"{self.part}/0"
        return [x for pair in options.items() for x in pair]


@dataclass(eq=False)
class Run:
    """A finished run.

    Attributes:
        trained: what its prompts were trained as; None: it has none.
        own: whether it trained them itself.
        origin: the run that did, if it was read from there.
        epoch: the epoch whose prompts were read; None: the last, or the best.
        gone: whether another run has taken its folder.
        results: evaluation (the column's name) -> accuracy.
    """

    folder: Path
    spec: Spec
    trained: Spec | None
    prompts: dict
    own: bool = True
    origin: Run | None = None
    epoch: int | None = None
    gone: bool = False
    results: dict = field(default_factory=dict)

    @property
    def key(self):
        return tuple((name, value.numpy().tobytes()) for name, value in self.prompts.items())

    @property
    def seed(self):
        return (self.trained or self.spec).seed

    @property
    def source(self):
        """Where its prompts were trained, as seen from where they are tested."""
        if not self.trained:
            return ""
        dataset, half = self.trained.place
        return dataset if half == self.spec.subsample else f"{dataset}, {half} classes"


# -- images and predictions ------------------------------------------------------------------------


def write_images(root):
    """Real digits as two data sets; the second one's are turned, and have other names."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    places = {label: iter(np.flatnonzero(digits.target == label)) for label in range(10)}
    names = "zero one two three four five six seven eight nine".split()
    sets = {"digits": names, "turned": [f"turned {name}" for name in names[:4]]}
    for (dataset, classes), splits in product(sets.items(), [{"train": 3, "val": 2, "test": 5}]):
        for label, name in enumerate(classes):
            for split, count in splits.items():
                folder = root / dataset / split / name
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = digits.images[next(places[label])] * 255 / 16
                    pixels = np.kron(np.rot90(pixels, 2 * (dataset == "turned")), np.ones((4, 4)))
                    Image.fromarray(pixels.round().astype(np.uint8)).save(folder / f"{number}.png")


def class_names(root, spec):
    names = sorted(path.name for path in (root / spec.dataset / "test").iterdir())
    if spec.part:
        part, parts = map(int, spec.part.split("/"))
        shuffled = names.copy()
        random.Random(0).shuffle(shuffled)
        kept = np.array_split(shuffled, parts)[part - 1]
        names = [name for name in names if name in kept]
    half = (len(names) + 1) // 2
    return {"all": names, "base": names[:half], "new": names[half:]}[spec.subsample]


class Plain:
    """Predictions of prompts on test images, in double precision."""

    def __init__(self, clip, root):
        self.clip, self.root = clip, root
        self.right = cache(self._right)

    def pixels(self, spec):
        """(N, 3, 32, 32) in [0, 1], and labels (N,)."""
        names = class_names(self.root, spec)
        images = [
            np.asarray(Image.open(self.root / spec.dataset / "test" / name / f"{i}.png"))
            for name in names
            for i in range(TEST_IMAGES)
        ]
        pixels = torch.from_numpy(np.stack(images)).double()[:, None].repeat(1, 3, 1, 1) / 255
        return pixels, torch.arange(len(names)).repeat_interleave(TEST_IMAGES)

    def margins(self, run, pixels, labels):
        """(N,) the right class's logit minus the best other one."""
        logits = self.logits(run, pixels)
        right = logits.gather(1, labels[:, None])[:, 0]
        others = logits.scatter(1, labels[:, None], -torch.inf)
        return right - others.amax(1)

    def _right(self, run):
        """Margins of all test images of a run."""
        return self.margins(run, *self.pixels(run.spec))

    def logits(self, run, pixels):
        names, prompts = class_names(self.root, run.spec), run.prompts
        text = [value.double() for name, value in prompts.items() if name.startswith("text.")]
        visual = [value.double() for name, value in prompts.items() if name.startswith("visual.")]
        if run.spec.method == "MaPLe":
            weights = [
                [prompts[f"projections.{i}.{end}"].double() for end in ("weight", "bias")]
                for i in range(len(text))
            ]
            visual = [vectors @ w.t() + b for vectors, (w, b) in zip(text, weights)]
        words = {"n_ctx": 2, "words": "a photo of a"}
        if run.spec.method == "ZeroshotCLIP":
            words = {"n_ctx": 0, "words": "a photo of a"}
        elif run.spec.method in ("CoOp", "APT"):
            words = {"n_ctx": 4, "position": run.spec.position}
        layouts = [plain_clip.layout(name, **words) for name in names]
        classes = plain_clip.text_features(self.clip, layouts, text)
        images = plain_clip.image_features(self.clip.visual, (pixels - MEAN) / STD, visual)
        classes, images = (x / x.norm(dim=1, keepdim=True) for x in (classes, images))
        return self.clip.logit_scale.exp() * images @ classes.t()


def subset(total, count):
    """Which images a subset of ``count`` has; 0: all."""
    if not count or count >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count].sort()[0]


# -- refusals and tables ---------------------------------------------------------------------------


def refused_prompts(asked, source, names, trained_names):
    """Whether prompts of a run may not be evaluated as ``asked``."""
    if not asked.learns:
        return False  # it has no prompts to load
    trained = source.trained
    if not (source.own and trained):
        return True
    same = ("method", "position", "csc")
    other_shape = any(getattr(asked, name) != getattr(trained, name) for name in same)
    return other_shape or (asked.csc and names != trained_names)


class Refused(Exception):
    pass


def cells(runs, *same):
    """(method, place, shots) -> seed -> run, of runs that one table may hold."""
    learned = [run for run in runs if run.trained]
    for name in same:
        about = learned if name == "shots" else runs
        if (
            len(
                {
                    getattr(run.trained or run.spec, name)
                    if name == "shots"
                    else getattr(run.spec, name)
                    for run in about
                }
            )
            > 1
        ):
            raise Refused(name)
    only(learned, lambda run: run.spec.place, lambda run: run.source)
    record = lambda run: (run.trained.method, run.trained.place, run.trained.shots, run.seed)  # noqa: E731
    only(learned, record, lambda run: run.key)
    found = defaultdict(dict)
    shots = {run.trained.shots for run in learned} or {0}
    zero = defaultdict(set)
    for run in runs:
        if run.trained:
            places = [(run.spec.method, run.spec.place, run.trained.shots)]
        else:
            name = (run.spec.place, run.seed)
            if run.spec.shots in zero[name]:
                raise Refused("twice")
            zero[name].add(run.spec.shots)
            here = {r.trained.shots for r in learned if r.spec.place == run.spec.place}
            places = [(run.spec.method, run.spec.place, k) for k in here or shots]
        for place in places:
            if run.trained and run.seed in found[place]:
                raise Refused("twice")
            found[place].setdefault(run.seed, run)
    for seeds in found.values():
        settings = {run.trained and settings_of(run.trained) for run in seeds.values()}
        if len(settings) > 1:
            raise Refused("seeds trained differently")
    return found


def settings_of(spec):
    return spec.position, spec.csc, spec.epochs, spec.final


def only(runs, key, value):
    found = {}
    for run in runs:
        if found.setdefault(key(run), value(run)) != value(run):
            raise Refused("two values")


def accuracies(found, method, place, shots, column):
    """Seed -> accuracy."""
    runs = found.get((method, place, shots), {})
    return {seed: run.results[column] for seed, run in runs.items() if column in run.results}


def averaged(parts):
    seeds = set.intersection(*map(set, parts))
    return {seed: mean(part[seed] for part in parts) for seed in seeds}


def plain_table(kind, runs):
    """Where a number stands -> the numbers of all seeds, of a table of that kind.

    Raises:
        Refused: there can be no such table.
    """
    columns = {column for run in runs for column in run.results}
    methods = {run.spec.method for run in runs}
    table = {}
    if kind in ("methods", "few-shot"):
        found = cells(runs, "subsample", *["shots"] * (kind == "methods"))
        places = sorted({(place, shots) for _, place, shots in found})
        for method, column, k in product(methods, columns, {shots for _, shots in places}):
            sets = {place[0]: place for place, _ in places}
            if kind == "methods":
                sets = {place[0]: place for place, shots in places if shots == k}
            parts = {
                name: accuracies(found, method, place, k, column) for name, place in sets.items()
            }
            if len(parts) > 1:
                parts["average"] = averaged(list(parts.values()))
            said = f", {k}" if kind == "few-shot" else ""
            table |= {(column, name + said, method): part for name, part in parts.items()}
    if kind == "base-to-new":
        if any(run.spec.subsample == "all" for run in runs):
            raise Refused("all classes")
        if any(run.trained and run.trained.place != (run.spec.place[0], "base") for run in runs):
            raise Refused("not trained on base classes")
        found = cells(runs, "shots")
        k = next(iter(found))[2]
        sets = {run.spec.place[0] for run in runs}
        for method, column in product(methods, columns):
            for group in [*([name] for name in sets), *[sets] * (len(sets) > 1)]:
                halves = [
                    averaged([accuracies(found, method, (name, half), k, column) for name in group])
                    for half in ("base", "new")
                ]
                name = "average" if len(group) > 1 else group[0]
                table |= {
                    (f"{half} {column}", name, method): part
                    for half, part in zip(("base", "new"), halves)
                }
                if all(halves):
                    h = harmonic_mean([mean(part.values()) for part in halves])
                    table[f"H {column}", name, method] = {None: h}
    if kind == "transfer":
        found = cells(runs, "subsample", "shots")
        trained = {run.source for run in runs} - {""}
        if len(trained) != 1:
            raise Refused("not one source")
        (trained,), k = trained, next(iter(found))[2]
        sets = {place[0]: place for _, place, _ in found}
        for method, column in product(methods, columns):
            parts = {
                name: accuracies(found, method, place, k, column) for name, place in sets.items()
            }
            targets = [part for name, part in parts.items() if name != trained]
            if targets:
                parts["average"] = averaged(targets)
            table |= {(column, name, method): part for name, part in parts.items()}
    return {
        place: list(dict(sorted(part.items())).values()) if None not in part else [part[None]]
        for place, part in table.items()
        if part
    }
