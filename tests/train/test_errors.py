"""The user's mistakes: one line, exit code 2, and nothing is written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apd.host import HOST
from apd.results import read_results

OUT = "out"


@pytest.fixture
def refused(run, tmp_path, monkeypatch, contents):
    """Function: run a command that must be refused, and return its one line. Relative paths are
    below a folder of its own, which it must leave as it was."""
    monkeypatch.chdir(tmp_path)

    def refused(*args, **more):
        before = contents(tmp_path)
        result = run(*args, **more)
        assert result.code == 2
        lines = result.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), result.err
        assert contents(tmp_path) == before
        return lines[0].removeprefix("error: ")

    return refused


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, near", [("adv_ivlp", "AdvIVLP"), ("Coop", "CoOp"), ("APDD", "APD")])
def test_unknown_trainer(refused, name, near):
    line = refused(name, OUT)
    assert line.startswith(f'unknown trainer "{name}" (--trainer)')
    assert near in line.split(";")[1]


def test_unknown_trainer_like_no_other(refused):
    line = refused("qqqqq", OUT)
    for name in ("ZeroshotCLIP", "CoOp", "VPT", "IVLP", "MaPLe", "APT", "AdvVPT", "APD"):
        assert name in line


def test_no_trainer(refused):
    assert 'unknown trainer ""' in refused("", OUT)


def test_unknown_dataset(refused):
    line = refused("APD", OUT, "DATASET.NAME", "Didgits")
    assert line.startswith('unknown dataset "Didgits" (DATASET.NAME); did you mean Digits')


@pytest.mark.parametrize("name", ["ViT-B/31", "nowhere.pt"])
def test_unknown_backbone(refused, name):
    line = refused("APD", OUT, flags=("--backbone", name))
    assert f'"{name}"' in line and "MODEL.BACKBONE.NAME" in line
    assert "ViT-B/32" in line or name == "nowhere.pt"


def test_backbone_that_is_no_clip(refused, tmp_path):
    (tmp_path / "text.pt").write_text("no weights")
    assert "text.pt" in refused("APD", OUT, flags=("--backbone", "text.pt"))


# -- files and keys ------------------------------------------------------------------------------


def test_missing_data_root(refused):
    assert "there is no folder" in refused("APD", OUT, flags=("--root", "nowhere"))


def test_no_data_root(refused):
    assert "--root" in refused("APD", OUT, flags=("--root", ""))


def test_missing_folder_of_images(refused):
    assert "there is no folder" in refused("APD", OUT, "DATASET.FOLDER.DIR", "nowhere")


@pytest.mark.parametrize("flag", ["--config-file", "--dataset-config-file"])
def test_missing_config_file(refused, flag):
    line = refused("APD", OUT, flags=(flag, "configs/nowhere.yaml"))
    assert line == "no config file configs/nowhere.yaml"


@pytest.mark.parametrize(
    "text, part",
    [
        ("TRAINER: {APD: {NO_SUCH: 1}}", "NO_SUCH"),
        ("OPTIM: {LR: high}", "OPTIM.LR"),
        ("OPTIM: [LR, 1", "mine.yaml"),
        ("just words", "mine.yaml"),
        ("OPTIM: 3", "OPTIM"),
        ("OPTIM: {LR: 2020-01-01}", "OPTIM.LR"),
        ("OPTIM: {1: 2}", "mine.yaml"),
    ],
    ids=["unknown key", "wrong type", "no YAML", "no mapping", "no section", "date", "number"],
)
def test_bad_config_file(refused, tmp_path, text, part):
    (tmp_path / "mine.yaml").write_text(text)
    line = refused("APD", OUT, flags=("--config-file", "mine.yaml"))
    assert line.startswith("mine.yaml: ") and part in line


def test_config_file_of_another_kind(refused, tmp_path):
    (tmp_path / "mine.txt").write_text("OPTIM: {LR: 1.0}")
    assert refused("APD", OUT, flags=("--config-file", "mine.txt")).startswith("mine.txt: ")


@pytest.mark.parametrize(
    "options",
    [
        ("TRAINER.APD.NO_SUCH", 1),
        ("TRAINER.NOBODY.N_CTX", 1),
        ("DATASET.NUM_SHOTS.MORE", 1),
        ("DATASET.NUM_SHOTS", "many"),
        ("DATASET.NUM_SHOTS", 1.5),
        ("OPTIM.LR", "[1]"),
        ("TRAINER.APD", 3),
        ("OPTIM.LR",),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_bad_option_on_the_command_line(refused, options):
    line = refused("APD", OUT, *options)
    assert line.startswith("command line: ")


@pytest.mark.parametrize(
    "options",
    [
        ("OPTIM.LR_SCHEDULER", "cosin"),
        ("OPTIM.WARMUP_TYPE", "slow"),
        ("DATASET.SUBSAMPLE_CLASSES", "bass"),
        ("TRAINER.COOP.CLASS_TOKEN_POSITION", "top"),
        ("TRAINER.COOP.N_CTX", 0),
        ("TRAINER.COOP.N_CTX", -1),
        ("TEST.FINAL_MODEL", "best_vall"),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_unknown_choice(refused, options):
    refused("CoOp", OUT, *options)


@pytest.mark.skipif(HOST == "dassl", reason="Dassl checks these, and raises errors of its own")
@pytest.mark.parametrize(
    "options",
    [
        ("OPTIM.NAME", "sdg"),
        ("INPUT.INTERPOLATION", "cubic"),
        ("INPUT.TRANSFORMS", "('random_flop',)"),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_unknown_choice_that_the_toolbox_checks(refused, options):
    refused("CoOp", OUT, *options)


def renamed(tiny, root, name):
    """Put the images below ``root``, squares under another class name."""
    shutil.copytree(Path(tiny.root) / "shapes", root / "shapes")
    for split in ("train", "val", "test"):
        folder = root / "shapes" / split
        (folder / "square").rename(folder / name)


# -- what does not fit ---------------------------------------------------------------------------


def test_image_size_that_does_not_fit_the_backbone(refused):
    line = refused("APD", OUT, "INPUT.SIZE", "(64, 64)")
    assert line.startswith("INPUT.SIZE is (64, 64), but the backbone ") and "(32, 32)" in line


VISUAL = ("VPT", "IVLP", "MaPLe", "AdvVPT", "AdvIVLP", "AdvMaPLe", "FAP", "CBAFAPT", "MMoP", "APD")


@pytest.mark.parametrize("method", VISUAL)
def test_visual_prompts_on_a_resnet(refused, tiny, method):
    line = refused(method, OUT, flags=("--backbone", tiny.resnet))
    assert "visual prompts need a ViT" in line


@pytest.mark.parametrize("key", ["PROMPT_DEPTH_TEXT", "PROMPT_DEPTH_VISION"])
def test_prompts_deeper_than_the_encoder(refused, key):
    line = refused("APD", OUT, f"TRAINER.APD.{key}", 9)
    assert "depth 9 does not fit an encoder of 2 layers" in line


def test_prompt_and_class_name_over_77_tokens(refused, tmp_path, tiny):
    renamed(tiny, tmp_path, "square_with_four_corners")
    options = ("TRAINER.COOP.N_CTX", 71)  # 71 + 4 + full stop + start + end = 78
    line = refused("CoOp", OUT, *options, flags=("--root", str(tmp_path)))
    assert 'class "square with four corners" has 78 tokens, CLIP reads 77' in line


# -- checkpoints ---------------------------------------------------------------------------------


def of(folder):
    return ("--eval-only", "--model-dir", str(folder))


def test_class_specific_prompts_of_another_class_list(refused, runs):
    options = ("TRAINER.COOP.CSC", True, "DATASET.SUBSAMPLE_CLASSES", "new")
    line = refused("CoOp", OUT, *options, flags=of(runs.csc))
    assert "class-specific prompts of another class list" in line


def test_class_specific_prompts_of_as_many_other_classes(refused, runs, tmp_path, tiny):
    renamed(tiny, tmp_path, "rhombus")
    options = ("TRAINER.COOP.CSC", True, "DATASET.SUBSAMPLE_CLASSES", "base")
    flags = (*of(runs.csc), "--root", str(tmp_path))
    assert "another class list" in refused("CoOp", OUT, *options, flags=flags)


@pytest.mark.parametrize(
    "method, other", [("AdvMaPLe", "maple"), ("IVLP", "maple"), ("APT", "coop"), ("CoOp", "maple")]
)
def test_prompts_of_another_method(refused, runs, method, other):
    line = refused(method, OUT, flags=of(getattr(runs, other)))
    trained = {"maple": "MaPLe", "coop": "CoOp"}[other]
    assert line.endswith(f"holds prompts of {trained}, not of {method}")


@pytest.mark.parametrize(
    "method, options, other",
    [
        ("CoOp", ("TRAINER.COOP.N_CTX", 5), "coop"),
        ("CoOp", ("TRAINER.COOP.CSC", True, "DATASET.SUBSAMPLE_CLASSES", "base"), "coop"),
        ("MaPLe", ("TRAINER.MAPLE.PROMPT_DEPTH", 1), "maple"),
    ],
    ids=["length", "kind", "depth"],
)
def test_prompts_of_another_shape(refused, runs, method, options, other):
    line = refused(method, OUT, *options, flags=of(getattr(runs, other)))
    assert "does not fit this configuration's prompts" in line


@pytest.mark.parametrize(
    "name, method, key, was, asked",
    [
        ("coop", "CoOp", "TRAINER.COOP.CLASS_TOKEN_POSITION", "end", "middle"),
        ("coop", "CoOp", "INPUT.INTERPOLATION", "bicubic", "bilinear"),
        ("coop", "CoOp", "TRAINER.COOP.CTX_INIT", "", "a photo of a"),
        ("maple", "MaPLe", "TRAINER.MAPLE.CTX_INIT", "a photo of a", "an image of a"),
        ("coop", "CoOp", "DATASET.FOLDER.TEMPLATE", "", "a drawing of a {}."),
    ],
)
def test_prompts_under_settings_that_change_their_meaning(
    refused, runs, name, method, key, was, asked
):
    options = ("DATASET.SUBSAMPLE_CLASSES", "base") if name == "coop" else ()
    line = refused(method, OUT, *options, key, asked, flags=of(getattr(runs, name)))
    assert f"was trained with {key} {was!r}, not {asked!r}: give what" in line


@pytest.fixture
def older(copy_of):
    """Function: a copy of a run of a version whose results and checkpoints say less."""

    def older(folder, keep_results=True):
        folder = copy_of(folder)
        path = folder / "results.json"
        results = json.loads(path.read_text())
        for key in ("trained_on", "class_names", "prompts", "input"):
            del results[key]
        del results["backbone_sha256"], results["prompts_sha256"]
        path.write_text(json.dumps(results))
        if not keep_results:
            path.unlink()
        for path in folder.glob("prompt_learner/model.pth.tar-*"):
            checkpoint = torch.load(path, weights_only=True)
            del checkpoint["trained_on"]
            torch.save(checkpoint, path)
        return folder

    return older


def test_prompts_of_an_older_run_are_held_against_its_config(refused, runs, older):
    options = ("TRAINER.COOP.CLASS_TOKEN_POSITION", "front")
    line = refused("CoOp", OUT, *options, flags=of(older(runs.coop)))
    assert "was trained with TRAINER.COOP.CLASS_TOKEN_POSITION 'end', not 'front'" in line


def test_what_nothing_says_of_older_prompts_is_told(run, runs, older, tmp_path):
    options = ("DATASET.SUBSAMPLE_CLASSES", "base")
    folder = older(runs.coop, keep_results=False)
    result = run("CoOp", tmp_path / "eval", *options, flags=of(folder))
    assert result.code == 0 and result.out.count("note: nothing says under which settings") == 1
    assert read_results(tmp_path / "eval")["trained_on"] is None
    result = run("CoOp", None, *options, flags=of(runs.coop))
    assert "nothing says" not in result.out


def test_other_weights_under_the_same_name(refused, run, tiny, tmp_path):
    backbone, folder = tmp_path / "clip.pt", tmp_path / "run"
    weights = torch.load(tiny.clip, weights_only=True)
    torch.save(weights, backbone)
    assert run("VPT", folder, flags=("--backbone", str(backbone))).code == 0
    moved = tmp_path / "moved.pt"  # the same weights under another name are the same
    torch.save({"state_dict": weights}, moved)
    assert run("VPT", None, flags=(*of(folder), "--backbone", str(moved))).code == 0
    torch.save({**weights, "visual.proj": weights["visual.proj"] * 1.01}, backbone)
    line = refused("VPT", OUT, flags=(*of(folder), "--backbone", str(backbone)))
    assert "other weights than MODEL.BACKBONE.NAME" in line and "SHA-256" in line


@pytest.mark.parametrize("flag", [("--model-dir", "bn/base"), ("--load-epoch", "3")])
def test_prompts_to_load_in_a_run_that_trains(refused, flag):
    line = refused("CoOp", OUT, "DATASET.SUBSAMPLE_CLASSES", "new", flags=flag)
    assert f"{' '.join(flag)} without --eval-only would be ignored" in line


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_truncated_checkpoint(refused, runs, copy_of, keep):
    folder = copy_of(runs.maple)
    path = folder / "prompt_learner" / "model.pth.tar-2"
    path.write_bytes(path.read_bytes()[:keep])
    line = refused("MaPLe", OUT, flags=of(folder))
    assert str(path) in line and "truncated" in line


def test_checkpoint_that_is_something_else(refused, runs, copy_of):
    folder = copy_of(runs.maple)
    torch.save([1, 2], folder / "prompt_learner" / "model.pth.tar-2")
    assert "model.pth.tar-2" in refused("MaPLe", OUT, flags=of(folder))


def test_missing_epoch_lists_those_there_are(refused, runs):
    line = refused("APD", OUT, flags=(*of(runs.apd), "--load-epoch", "7"))
    assert "model.pth.tar-7" in line
    assert "there are model.pth.tar-1, model.pth.tar-2" in line


def test_nothing_to_evaluate(refused):
    assert "--model-dir" in refused("APD", OUT, flags=("--eval-only",))


def test_missing_model_folder(refused):
    assert "no checkpoint" in refused("APD", OUT, flags=of("nowhere"))


# -- folders of other runs -----------------------------------------------------------------------


@pytest.fixture
def unfinished(runs, copy_of):
    """A folder with a run of MaPLe that was killed before its end."""
    folder = copy_of(runs.maple)
    (folder / "results.json").unlink()
    return folder


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_truncated_resume_file(refused, unfinished, keep):
    path = unfinished / "resume.pth.tar"
    path.write_bytes(path.read_bytes()[:keep])
    line = refused("MaPLe", unfinished)
    assert "resume.pth.tar" in line and "truncated" in line


def test_resume_file_of_something_else(refused, unfinished):
    torch.save({"epoch": 3}, unfinished / "resume.pth.tar")
    assert "resume.pth.tar" in refused("MaPLe", unfinished)


def test_resume_file_with_fields_of_a_wrong_kind(refused, unfinished):
    path = unfinished / "resume.pth.tar"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "epoch": "two", "history": {}}, path)
    line = refused("MaPLe", unfinished)
    assert "resume.pth.tar is damaged (it has epoch two, has history {})" in line


@pytest.mark.parametrize(
    "method, options, part",
    [
        ("MaPLe", ("OPTIM.LR", 0.5), "OPTIM.LR: 0.5, was 0.02"),
        ("MaPLe", ("SEED", 2), "SEED: 2, was 1"),
        ("AdvMaPLe", (), "TRAINER.NAME: 'AdvMaPLe', was 'MaPLe'"),
        ("MaPLe", ("DATASET.SUBSAMPLE_CLASSES", "new"), "DATASET.SUBSAMPLE_CLASSES"),
    ],
    ids=["rate", "seed", "method", "classes"],
)
def test_resuming_another_configuration(refused, unfinished, method, options, part):
    line = refused(method, unfinished, *options)
    assert "another configuration" in line and part in line


def test_resuming_with_other_classes_in_the_same_configuration(refused, unfinished, tmp_path, tiny):
    renamed(tiny, tmp_path, "rhombus")
    line = refused("MaPLe", unfinished, flags=("--root", str(tmp_path)))
    assert "classnames" in line


def test_resume_flag_names_another_configuration(refused, unfinished):
    line = refused("MaPLe", OUT, "OPTIM.LR", 0.5, flags=("--resume", str(unfinished)))
    assert "OPTIM.LR" in line


def test_resume_flag_names_no_run(refused):
    assert "nowhere" in refused("MaPLe", OUT, flags=("--resume", "nowhere"))


@pytest.mark.parametrize(
    "method, options, part",
    [
        ("MaPLe", ("OPTIM.LR", 0.5), "OPTIM.LR: 0.5, was 0.02"),
        ("MaPLe", ("AT.TEST.STEPS", 5), "AT.TEST.STEPS: 5, was 3"),
        ("AdvMaPLe", (), "TRAINER.NAME"),
    ],
    ids=["rate", "attack", "method"],
)
def test_folder_with_the_results_of_another_configuration(
    refused, runs, copy_of, method, options, part
):
    line = refused(method, copy_of(runs.maple), *options)  # byte for byte: see refused
    assert "holds the results of another run" in line and part in line
    assert "choose another --output-dir" in line


def test_keys_of_other_methods_make_no_other_configuration(run, runs, copy_of):
    result = run("MaPLe", copy_of(runs.maple), "TRAINER.APD.TAU", 2.0)
    assert result.code == 0 and "is finished" in result.out


def test_folder_with_the_results_of_training_is_not_evaluated_into(refused, runs, copy_of):
    folder = copy_of(runs.maple)
    line = refused("MaPLe", folder, flags=of(folder))
    assert "another run" in line and "prompts from" in line


def test_folder_with_an_evaluation_of_other_prompts(run, refused, runs, tmp_path):
    out = tmp_path / OUT
    assert run("APD", out, "TRAIN.CHECKPOINT_FREQ", 1, flags=of(runs.apd)).code == 0
    line = refused(
        "APD", out, "TRAIN.CHECKPOINT_FREQ", 1, flags=(*of(runs.apd), "--load-epoch", "1")
    )
    assert "prompts from" in line


def test_damaged_results(refused, runs, copy_of):
    folder = copy_of(runs.maple)
    path = folder / "results.json"
    path.write_bytes(path.read_bytes()[:100])
    assert "results.json is damaged" in refused("MaPLe", folder)


def test_the_real_command_prints_nothing_else(tmp_path):
    """Not even the warnings of what it imports."""
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / "train.py"), "--trainer", "APDD", "--output-dir", "out"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [root, *sys.path]))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith('error: unknown trainer "APDD" (--trainer); did you mean APD')
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(run, tmp_path, tiny, workers):
    shutil.copytree(Path(tiny.root) / "shapes", tmp_path / "shapes")
    for path in (tmp_path / "shapes" / "train" / "star").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    result = run(
        "CoOp", tmp_path / "out", "DATALOADER.NUM_WORKERS", workers, flags=("--root", str(tmp_path))
    )
    assert result.code == 2 and result.err.count("\n") == 1
    assert result.err.startswith(
        f"error: cannot read image {tmp_path / 'shapes' / 'train' / 'star'}"
    )


# -- wrapped prompts, and places that cannot be written --------------------------------------------


def test_prompts_in_dataparallels_wrapper_are_read(run, runs, copy_of, tmp_path):
    folder = copy_of(runs.maple)
    path = folder / "prompt_learner" / "model.pth.tar-2"
    checkpoint = torch.load(path, weights_only=True)
    state = {f"module.{name}": value for name, value in checkpoint["state_dict"].items()}
    torch.save({**checkpoint, "state_dict": state}, path)
    result = run("MaPLe", tmp_path / "eval", flags=of(folder))
    assert (result.code, result.err) == (0, "")
    loaded = result.trainer.model.prompt_learner.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in checkpoint["state_dict"].items())


def test_an_output_folder_under_a_file(refused, tmp_path):
    (tmp_path / "file").touch()
    line = refused("CoOp", "file/out")
    assert line.startswith("--output-dir file/out: ") and "file is no folder" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission(refused, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "locked cannot be written to" in refused("CoOp", "locked/out")


def test_an_output_that_is_a_link_to_nowhere(refused, tmp_path):
    (tmp_path / "link").symlink_to("nowhere/at/all")
    assert "--output-dir link" in refused("CoOp", "link")


def test_other_writers_tell_a_place_that_cannot_be_written(runs, tmp_path, capsys):
    (tmp_path / "file").touch()
    from apd.figures.command import main as plot
    from apd.report.command import main as report
    from apd.tables.command import main as table

    run, out = str(runs.maple), str(tmp_path / "file" / "a")
    for command, flags in (
        (table, [run, "--csv", out]),
        (report, [run, "-o", out]),
        (plot, [run, "-o", out]),
    ):
        assert command(flags) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("error: ") and "file" in err


@pytest.mark.parametrize("method", ["CoOp", "AdvPT"])
def test_an_image_of_16_bits_is_named_on_every_host(run, tmp_path, tiny, method):
    shutil.copytree(Path(tiny.root) / "shapes", tmp_path / "shapes")
    for path in (tmp_path / "shapes" / "train").glob("*/*.png"):
        Image.fromarray(np.full((32, 32), 40000, dtype=np.uint16)).save(path)
    result = run(method, tmp_path / "out", flags=("--root", str(tmp_path)))
    assert result.code == 2 and result.err.count("\n") == 1
    assert "mode I;16 has more than 8 bits: save it with 8" in result.err
