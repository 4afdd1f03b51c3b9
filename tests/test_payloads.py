"""Files that run code where they are read as their makers meant: none of our loaders runs any.

Each payload writes to a path of its choice. That it does, where its code is run, is tested first.
"""

import os
import pickle
import zipfile
from contextlib import suppress
from functools import cache

import pytest
import torch
from torch import nn

import apd
from apd.checkpoint import load_checkpoint, load_pretrained_weights, resume_from_checkpoint
from apd.clip import load_clip
from apd.datasets.caches import read_pickle
from apd.errors import UserError
from apd.evaluate.state import AttackState, Clean
from apd.interchange.command import convert

pytestmark = pytest.mark.filterwarnings("ignore")  # torch deprecates torch.jit


class Writes(nn.Module):
    """Writes 8 bytes to ``path`` when TorchScript restores it."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, images: torch.Tensor):
        return images

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.path, self.training = state[0], state[1]
        self.weight = torch.from_file(state[0], True, 8, dtype=torch.uint8).fill_(65).float()


class Calls:
    """Is unpickled by a call."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


def calls_from_file(target):
    return Calls(torch.from_file, str(target), True, 8)


def torchscript(path, target, content):
    torch.jit.script(Writes(str(target))).save(path)


def torchscript_in_a_state_dict(path, target, content):
    """An archive of ``torch.save`` that holds TorchScript's records too."""
    torch.save(content, path)
    script = path.with_name("script.pt")
    torchscript(script, target, content)
    with zipfile.ZipFile(script) as source, zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        for name in source.namelist():
            archive.writestr(f"{root}/{name.partition('/')[2]}", source.read(name))


def from_file(path, target, content):
    torch.save({**content, "extra": calls_from_file(target)}, path)


def from_file_as_a_weight(path, target, content):
    torch.save({**content, "state_dict": calls_from_file(target)}, path)


def storage_of_a_file(path, target, content):
    made = Calls(torch.UntypedStorage.from_file, str(target), True, 8)
    torch.save({**content, "extra": made}, path)


def legacy(path, target, content):
    torch.save(
        {**content, "extra": calls_from_file(target)}, path, _use_new_zipfile_serialization=0
    )


def system(path, target, content):
    torch.save({**content, "extra": Calls(os.system, f"touch '{target}'")}, path)


def bare_pickle(path, target, content):
    path.write_bytes(pickle.dumps({**content, "extra": Calls(os.system, f"touch '{target}'")}))


PAYLOADS = [
    torchscript,
    torchscript_in_a_state_dict,
    from_file,
    from_file_as_a_weight,
    storage_of_a_file,
    legacy,
    system,
    bare_pickle,
]
each_payload = pytest.mark.parametrize("payload", PAYLOADS, ids=lambda made: made.__name__)


@each_payload
def test_a_payload_works_where_its_code_is_run(tmp_path, payload):
    if payload is torchscript_in_a_state_dict and torch.__version__.startswith("2.6."):
        pytest.skip("PyTorch 2.6 fails on a dict before it runs the code in it")
    path, target = tmp_path / "clip.pt", tmp_path / "target"
    payload(path, target, {})
    if payload is bare_pickle:
        pickle.loads(path.read_bytes())
    elif payload in (torchscript, torchscript_in_a_state_dict):
        torch.jit.load(path)
    else:
        torch.load(path, weights_only=False)
    assert target.exists()


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """Function: the bytes of a payload beside a CLIP's weights, and the path that it writes to."""
    weights = torch.load(tiny.clip, weights_only=True)

    @cache
    def made(payload):
        folder = tmp_path_factory.mktemp(payload.__name__)
        payload(folder / "a.pt", folder / "target", {"state_dict": weights, "epoch": 1})
        return (folder / "a.pt").read_bytes(), folder / "target"

    return made


def backbone(path, tiny):
    load_clip(str(path))


def transformers_folder(path, tiny):
    (path.parent / "config.json").write_text('{"model_type": "clip"}')
    path.rename(path.with_name("pytorch_model.bin"))
    load_clip(str(path.parent))


def openclip_folder(path, tiny):
    (path.parent / "open_clip_config.json").write_text(
        '{"model_cfg": {"embed_dim": 8, "vision_cfg": {"layers": 2, "width": 64}, "text_cfg": {}}}'
    )
    path.rename(path.with_name("open_clip_pytorch_model.bin"))
    load_clip(str(path.parent))


def robust_encoder(path, tiny):
    load_clip(tiny.clip, str(path))


def checkpoint(path, tiny):
    load_checkpoint(path)


def checkpoint_of_dassl(path, tiny):
    load_checkpoint(path, inert=True)


def resumed(path, tiny):
    (path.parent / "checkpoint").write_text(path.name)
    resume_from_checkpoint(path.parent, nn.Linear(2, 2))


def pretrained(path, tiny):
    load_pretrained_weights(nn.Linear(2, 2), path)


def converted(path, tiny):
    path.rename(path.with_name("model.pth.tar-1"))
    convert(path.parent, path.parent / "converted", 1)


def classifier(path, tiny):
    apd.load(path, trainer="CoOp", backbone=tiny.clip, classes=["a", "b"])


def saved_classifier(path, tiny):
    """Its learned vectors, of which ``path`` takes the place."""
    folder = path.parent / "saved"
    apd.zero_shot(tiny.clip, ["a", "b"]).save(folder)
    path.replace(folder / "prompts.safetensors")
    apd.load(folder)


def attack_state(path, tiny):
    AttackState(torch.ones(2, dtype=torch.bool), attack_all=False).load(path)


def clean_verdicts(path, tiny):
    Clean.join([path], "")


def few_shot_cache(path, tiny):
    read_pickle(path)


@each_payload
@pytest.mark.parametrize(
    "read",
    [
        backbone,
        transformers_folder,
        openclip_folder,
        robust_encoder,
        checkpoint,
        checkpoint_of_dassl,
        resumed,
        pretrained,
        converted,
        classifier,
        saved_classifier,
        attack_state,
        clean_verdicts,
        few_shot_cache,
    ],
    ids=lambda loader: loader.__name__,
)
def test_no_loader_runs_code_of_a_file(tmp_path, tiny, made, payload, read):
    content, target = made(payload)
    path = tmp_path / "clip.pt"
    path.write_bytes(content)
    with suppress(UserError, KeyError):  # refused, or read without what is not plain data
        read(path, tiny)
    assert not target.exists()


PROMPTS = "prompt_learner/model.pth.tar-1"


@pytest.mark.parametrize("payload", [torchscript, from_file], ids=["torchscript", "pickle"])
@pytest.mark.parametrize(
    "method, place, options",
    [
        ("APD", "teacher.pt", ("TRAINER.APD.TEACHER.BACKBONE", "{folder}/teacher.pt")),
        ("APD", "robust.pt", ("TRAINER.APD.TEACHER.ROBUST", "{folder}/robust.pt")),
        (
            "APD",
            PROMPTS,
            ("TRAINER.APD.TEACHER.MODE", "checkpoint", "TRAINER.APD.TEACHER.PATH", "{folder}"),
        ),
        ("CoOp", PROMPTS, ("--eval-only", "--model-dir", "{folder}", "--load-epoch", "1")),
        ("CoOp", "resume.pth.tar", ("--output-dir", "{folder}")),
        ("CoOp", PROMPTS, ("--resume", "{folder}")),
    ],
    ids=["teacher", "robust-teacher", "teachers-prompts", "prompts", "resume", "resume-folder"],
)
def test_no_command_runs_code_of_a_file(run, tmp_path, payload, method, place, options):
    folder, target = tmp_path / "given", tmp_path / "target"
    (folder / place).parent.mkdir(parents=True)
    (folder / place).with_name("checkpoint").write_text("model.pth.tar-1\n")
    payload(folder / place, target, {"state_dict": {"text.0": torch.zeros(4, 64)}, "epoch": 1})
    options = [option.format(folder=folder) for option in options]
    flags, keys = (options, []) if options[0].startswith("--") else ([], options)
    result = run(method, tmp_path / "out", *keys, "OPTIM.MAX_EPOCH", 1, flags=flags)
    assert not target.exists()
    assert result.code in (0, 2)
    if result.code == 2:
        assert result.err.startswith("error: ") and result.err.count("\n") == 1
