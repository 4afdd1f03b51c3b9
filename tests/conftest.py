"""A tiny CLIP, a handful of images, and the command line called in this process."""

import io
import os
import shutil
import sys
from contextlib import redirect_stderr
from types import SimpleNamespace

import pytest
import torch
import yaml

from apd.config import default

CONFIG = """\
DATASET: {NAME: Folder, FOLDER: {DIR: shapes}, NUM_SHOTS: 2}
DATALOADER: {TRAIN_X: {BATCH_SIZE: 4}, TEST: {BATCH_SIZE: 8}, NUM_WORKERS: 0}
INPUT: {SIZE: [32, 32], INTERPOLATION: bicubic, TRANSFORMS: [random_flip]}
OPTIM: {NAME: sgd, LR: 0.02, MAX_EPOCH: 2, LR_SCHEDULER: cosine, WARMUP_EPOCH: 1,
  WARMUP_TYPE: constant, WARMUP_CONS_LR: 0.001}
USE_CUDA: False
VERBOSE: False
TRAINER:
  COOP: {N_CTX: 4}
  ADV: {N_CTX: 4}
  RTPT: {VIEWS: 8, CONFIDENT: 0.4, NEIGHBOURS: 3}
  TAPT: {VIEWS: 8, CONFIDENT: 0.4, LAYER_TO: 3}
AT:
  TRAIN: {EPS: 1.0, ALPHA: 0.7, STEPS: 2}
  TEST: {EPS: 1.0, ALPHA: 0.5, STEPS: 3}
"""
CLASSES = {  # and the colour of their images
    "circle": (200, 60, 60),
    "square": (60, 200, 60),
    "star": (180, 180, 60),
    "triangle": (60, 60, 200),
}
SPLITS = {"train": 6, "val": 2, "test": 5}  # images per class


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models this small only wait for further threads, and sums keep their order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """What a run of seconds needs: ``clip``, ``wide`` (64 px, another embedding width), ``resnet``
    (backbones), ``root`` (with data set ``shapes``: 4 classes of 6 + 2 + 5 images), ``config``."""
    folder = tmp_path_factory.mktemp("tiny")
    vit = {"vision_layers": 2, "vision_width": 128}
    small = {"embed_dim": 32, "image_resolution": 32, "vision_patch_size": 8}
    wide = {"embed_dim": 48, "image_resolution": 64, "vision_patch_size": 16}
    _save_clip(folder / "clip.pt", 1, **small, **vit)
    _save_clip(folder / "wide.pt", 2, **wide, **vit)
    _save_clip(
        folder / "resnet.pt",
        3,
        embed_dim=32,
        image_resolution=32,
        vision_layers=(1, 1, 1, 1),
        vision_width=4,
        vision_patch_size=None,
    )
    _save_images(folder / "data" / "shapes")
    (folder / "method.yaml").write_text(yaml.safe_dump(_config()))
    return SimpleNamespace(
        clip=str(folder / "clip.pt"),
        wide=str(folder / "wide.pt"),
        resnet=str(folder / "resnet.pt"),
        root=str(folder / "data"),
        config=str(folder / "method.yaml"),
    )


def _config():
    """``CONFIG``, in which all methods prompt two layers, as many as the tiny CLIP has."""
    config = yaml.safe_load(CONFIG)
    for section, keys in default().TRAINER.items():
        if depths := {key: 2 for key in keys if key.startswith("PROMPT_DEPTH")}:
            config["TRAINER"].setdefault(section, {}).update(depths)
    return config


def _save_clip(path, seed, **geometry):
    from clip.model import CLIP

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(
            context_length=77,
            vocab_size=49408,
            transformer_width=64,
            transformer_heads=1,
            transformer_layers=2,
            **geometry,
        )
        with torch.no_grad():  # CLIP's own start makes all images and all names nearly alike
            for name, weight in model.named_parameters():
                if "bias" in name or "embedding" in name:
                    weight.normal_(std=0.3)
                elif "conv1" in name or "in_proj" in name:
                    weight.normal_(std=1.5 * weight[0].numel() ** -0.5)
            model.logit_scale.fill_(3.0)
    torch.save(model.state_dict(), path)


def _save_images(folder):
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for name, colour in CLASSES.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.array(colour) + draw.normal(0, 60, (32, 32, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / split / name / f"{i}.png")


@pytest.fixture(scope="session")
def command(tiny):
    """Function: the arguments of ``train.py`` for a run on ``tiny``. Later options win."""

    def arguments(trainer, out=None, *options, flags=()):
        args = ["--root", tiny.root, "--seed", "1", "--config-file", tiny.config]
        args += ["--backbone", tiny.clip, *flags, "--trainer", trainer]
        args += ["--output-dir", str(out)] if out else []
        return [*args, *map(str, options)]

    return arguments


@pytest.fixture(scope="session")
def run(command):
    """Function: ``train.py`` in this process, arguments as ``command``.

    Returns code, out and err (what is printed), and trainer, if it came to one.
    """
    import apd.host
    import apd.train.command

    def run(*args, **more):
        return call(command(*args, **more))

    def call(arguments):
        made, stdout, build = [], sys.stdout, apd.host.build_trainer
        out, err = io.StringIO(), io.StringIO()

        def build_trainer(cfg):
            made.append(build(cfg))
            return made[-1]

        with pytest.MonkeyPatch.context() as patch, redirect_stderr(err):
            patch.setattr(apd.host, "build_trainer", build_trainer)
            sys.stdout = out
            try:
                code = apd.train.command.main(arguments)
            finally:
                # setup_logger puts a Logger in its place (and upstream's closes it in the end)
                logger, sys.stdout = sys.stdout, stdout
                printed = out.getvalue()
                if logger is not out:
                    logger.file.close()
        return SimpleNamespace(
            code=code, out=printed, err=err.getvalue(), trainer=made[-1] if made else None
        )

    run.call = call
    return run


@pytest.fixture(scope="session")
def build(command):
    """Function: the trainer of a command, built but not run; arguments as ``command``."""
    import apd.train.command

    def build(*args, **more):
        apd.register()
        cfg = apd.train.command.setup_cfg(apd.train.command.parse_args(command(*args, **more)))
        apd.host.set_random_seed(cfg.SEED)
        return apd.host.build_trainer(cfg)

    return build


@pytest.fixture
def inline(monkeypatch):
    """Sweeps and shards run each job in this process. Has ``started``, folders."""
    import apd.evaluate.command
    import apd.evaluate.workers
    import apd.jobs.options
    from apd.jobs.worker import run_job

    class Inline:
        """An executor that has run a job when it has started it."""

        started, pause = [], 0

        def room(self, running):
            return 1 - running

        def start(self, jobs):
            self.started += [job.folder for job in jobs]
            for job in jobs:
                run_job(job, ".", threads=1)
            return list(jobs)

        def poll(self, handle):
            return ""

        def close(self):
            pass

    executor = Inline()
    monkeypatch.setattr(apd.jobs.options.ExecutorOptions, "start", lambda *_: executor)
    monkeypatch.setattr(apd.evaluate.workers, "start_local", lambda *_: executor)
    monkeypatch.setattr(apd.evaluate.command, "warm_up", lambda: None)
    return executor


@pytest.fixture
def fill(monkeypatch):
    """Function: whatever a module writes by ``open`` from now on finds no room.

    The files are made, and the system itself (/dev/full) refuses their content.
    """

    def fill(module):
        def full(path, mode="r", **more):
            if not set(mode) & set("wxa"):
                return open(path, mode, **more)
            open(path, mode, **more).close()
            return open("/dev/full", mode.replace("x", "w"), **more)

        monkeypatch.setattr(module, "open", full, raising=False)

    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    return fill


@pytest.fixture
def save(tmp_path):
    """Function: write a made-up run; its folder is named after method and seed unless given."""
    from sample_results import results

    from apd.results import write_results

    def save(folder=None, **fields):
        values = results(**fields)
        run = tmp_path / (folder or f"{values['method']}/seed{values['seed']}")
        write_results(run, values)
        return run

    return save


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ALONE = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-component-update
--disable-background-networking --disable-sync""".split()


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium with an empty profile: a page; ``requested`` are the addresses it loads."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as started:
        context = started.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=CHROMIUM,
            args=ALONE,
            viewport={"width": 1280, "height": 1000},
        )
        context.set_default_timeout(60_000)
        page = context.pages[0]
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        yield page
        context.close()


def pytest_report_header(config):
    from apd.host import HOST, HOST_VERSION

    return f"apd.host: {HOST} {HOST_VERSION}"
