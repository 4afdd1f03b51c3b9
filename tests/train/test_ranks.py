"""Two ranks, as torchrun starts them, train what one process trains; one of them is killed."""

import contextlib
import csv
import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from apd import ranks
from apd.ranks import BatchSlice, batch_slice
from apd.results import read_results

SIZE = 2
TERMS = [f"TRAINER.APD.{name}" for name in ("LAMBDA_NAT", "LAMBDA_IMG", "LAMBDA_TXT", "BETA")]
TERMS = tuple(item for name in TERMS for item in (name, 0.5))
CASES = {
    "CoOp": ("CoOp", "TRAINER.COOP.CSC", True),
    "VPT": ("VPT",),
    "IVLP": ("IVLP", "TRAINER.PROMPT.TEXT_CHUNK", 1),
    "MaPLe": ("MaPLe",),
    "APT": ("APT", "AT.TRAIN.NORM", "l2"),
    "APT-perturbed": (
        "APT",
        "AT.TRAIN.PROMPT",
        "perturbed",
        "AT.TRAIN.PALPHA",
        1.0,
        "AT.TRAIN.AT_LOSS_TYPE",
        "adv_half",
    ),
    "AdvPT": ("AdvPT",),
    "AdvVPT": ("AdvVPT", "DATASET.NUM_SHOTS", 1),  # 4 images, a batch that is not whole
    "AdvIVLP": ("AdvIVLP", "AT.TRAIN.AT_LOSS_TYPE", "adv_half"),
    "AdvMaPLe": ("AdvMaPLe", "AT.TRAIN.AT_LOSS_TYPE", "clean"),
    "FAP": ("FAP",),
    "CBAFAPT": ("CBAFAPT",),
    "MMoP": ("MMoP",),
    "APD": ("APD", *TERMS, "TRAINER.APD.ATTACK_LOSS", "kl"),
    "APD-offline": ("APD", "TRAINER.APD.TEACHER.MODE", "offline"),
    "APD-frozen": ("APD", "TRAINER.APD.TEACHER.MODE", "frozen"),
    "APD-checkpoint": ("APD", "TRAINER.APD.TEACHER.MODE", "checkpoint"),
    "few-images": ("AdvIVLP", "DATALOADER.TRAIN_X.BATCH_SIZE", 3),
}


def train64(lines, out):
    """Train each command in float64: what it logged, and its prompts, into ``out``."""
    import apd
    from apd.train.command import parse_args, setup_cfg
    from apd.training import base

    apd.register()
    torch.set_num_threads(1)
    found = {}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        load, parse = base.load_clip, base.PromptTrainer.parse_batch_train
        patch.setattr(base, "load_clip", lambda *names: load(*names).double())

        def double(trainer, batch):
            images, labels = parse(trainer, batch)
            return images.double(), labels

        patch.setattr(base.PromptTrainer, "parse_batch_train", double)
        for name, line in lines.items():
            cfg = setup_cfg(parse_args(line))
            apd.host.set_random_seed(cfg.SEED)
            trainer = apd.host.build_trainer(cfg)
            trainer.train()
            prompts = {
                f"{model}.{key}": value
                for model, learner in trainer._models.items()
                for key, value in learner.state_dict().items()
            }
            logged = [{k: v for k, v in row.items() if k != "seconds"} for row in trainer.history]
            found[name] = (logged, prompts)
    if not ranks.rank():
        torch.save(found, out)


def _as_rank(rank, port, target, arguments):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": SIZE, "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in place.items()}, MASTER_ADDR="127.0.0.1")
    sys.exit(target(*arguments))


def start(target, *arguments):
    """The processes of two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork").Process
    found = [fork(target=_as_rank, args=(r, port, target, arguments)) for r in range(SIZE)]
    for process in found:
        process.start()
    return found


def end(processes, seconds=240):
    for process in processes:
        process.join(seconds)
        process.kill()
    return [process.exitcode for process in processes]


def _train_ranks(lines, out):
    with ranks.joined(cuda=False):
        train64(lines, out)


def test_every_method_trains_as_one_process_does(command, tmp_path):
    def lines(folder):
        short = ("OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", 0, "TEST.NO_TEST", True)
        batch = ("DATALOADER.TRAIN_X.BATCH_SIZE", 5)
        found = {
            name: command(method, tmp_path / folder / name, *short, *batch, *options)
            for name, (method, *options) in CASES.items()
        }
        found["APD-checkpoint"] += ["TRAINER.APD.TEACHER.PATH", str(tmp_path / folder / "IVLP")]
        return found

    train64(lines("one"), tmp_path / "one.pt")
    assert end(start(_train_ranks, lines("two"), tmp_path / "two.pt")) == [0, 0]
    one, two = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two"))
    for case in CASES:
        (logged, prompts), (other_logged, other_prompts) = one[case], two[case]
        assert len(logged) == 1 and prompts.keys() == other_prompts.keys()
        for row, other in zip(logged, other_logged):
            assert other == pytest.approx(row, abs=1e-6), case
        for name, value in prompts.items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(other_prompts[name], value, atol=1e-6, rtol=0, msg=case)


# -- whole runs ------------------------------------------------------------------------------------


def _main(arguments, log, kill_at=0):
    """train.py as a rank; the second one is killed before its ``kill_at``-th step."""
    import apd.train.command
    from apd.training.base import PromptTrainer

    torch.set_num_threads(1)
    sys.stderr = open(f"{log}-{os.environ['RANK']}", "w", buffering=1)  # noqa: SIM115
    step, left = PromptTrainer.forward_backward, kill_at

    def stepping(trainer, batch):
        nonlocal left
        left -= 1
        if not left and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(trainer, batch)

    PromptTrainer.forward_backward = stepping
    return apd.train.command.main(arguments)


def told(folder):
    records = read_results(folder)["evaluations"]
    return [{k: v for k, v in record.items() if k not in ("seconds", "key")} for record in records]


def test_a_rank_is_killed_and_the_run_goes_on(command, run, tmp_path):
    options = ("OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1)
    assert run("APD", tmp_path / "one", *options).code == 0
    line, log = command("APD", tmp_path / "two", *options), tmp_path / "stderr"
    assert end(start(_main, line, log, 4)) == [1, -signal.SIGKILL]
    assert Path(f"{log}-0").read_text() == (
        "error: another rank has stopped: the same command goes on after the last finished epoch\n"
    )
    state = torch.load(tmp_path / "two" / "resume.pth.tar")
    assert state["epoch"] == 1 and not (tmp_path / "two" / "results.json").exists()
    assert end(start(_main, line, log)) == [0, 0]
    assert told(tmp_path / "two") == told(tmp_path / "one")
    # one writer
    files, other = (
        {
            str(path.relative_to(folder)).split("/")[0]
            for path in folder.rglob("*")
            if path.is_file() and "log.txt-" not in path.name
        }
        for folder in (tmp_path / "two", tmp_path / "one")
    )
    assert files == other and len(list((tmp_path / "two").glob("log.txt*"))) == 2
    assert not list((tmp_path / "two").rglob("*.pt"))  # of shards
    with open(tmp_path / "two" / "history.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    assert Path(f"{log}-1").read_text() == "" and (tmp_path / "two" / "log.txt").is_file()


@pytest.mark.skipif(not find_spec("dassl"), reason="Dassl is not installed")
def test_torchrun_on_upstream_dassl_trains_the_digits_as_one_process_does(tmp_path):
    root = Path(__file__).parents[2]
    paths = [p for p in sys.path if (Path(p) / "dassl").is_dir()]
    environment = {
        **os.environ,
        "APD_HOST": "dassl",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    options = (
        "--dataset-config-file configs/datasets/digits.yaml --trainer APD --seed 1 "
        "--config-file configs/trainers/APD/mini.yaml --output-dir {} DATASET.NUM_SHOTS 2 "
        "OPTIM.MAX_EPOCH 2 AT.TRAIN.STEPS 1 TEST.NO_TEST True USE_CUDA False"
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={SIZE}"]
    for name, starter in (("one", []), ("two", torchrun)):
        arguments = [
            *starter,
            "train.py",
            "--root",
            tmp_path,
            *options.format(tmp_path / name).split(),
        ]
        done = subprocess.run(
            [sys.executable, *arguments], cwd=root, env=environment, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        assert "host: dassl" in (tmp_path / name / "log.txt").read_text()
    for part in ("prompt_learner", "teacher"):
        one, two = (
            torch.load(tmp_path / name / part / "model.pth.tar-2")["state_dict"]
            for name in ("one", "two")
        )
        assert one.keys() == two.keys()
        for key, value in one.items():  # in float32, whose sums have another order
            torch.testing.assert_close(two[key], value, atol=1e-6, rtol=0)


def test_ranks_need_a_seed_and_say_so_once(command, tmp_path):
    line, log = command("CoOp", tmp_path / "run", flags=("--seed", "-1")), tmp_path / "stderr"
    line = [*line[: line.index("--seed")], *line[line.index("--seed") + 2 :]]
    assert end(start(_main, line, log)) == [2, 2]
    assert "give --seed" in Path(f"{log}-0").read_text() and Path(f"{log}-1").read_text() == ""


# -- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count, clean", [(5, 0), (5, 2), (6, 3), (7, 7)])
def test_parts_of_a_batch(monkeypatch, count, clean):
    images, found, attacked, weights = torch.arange(count), [], [], []
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(ranks, "size", lambda: 3)
        part = batch_slice(count)
        own = images[part.rows]
        left = part.after(clean)
        assert torch.equal(own[part.before(clean) :], images[clean:][left.rows])
        found += own.tolist()
        attacked += images[clean:][left.rows].tolist()
        weights.append(part.weight)
    assert sorted(found) == images.tolist() and sorted(attacked) == images[clean:].tolist()
    assert sum(weights) == pytest.approx(1)
    # fewer images than ranks: each takes them all
    assert batch_slice(2) == BatchSlice(2, weight=1 / 3)


def test_a_process_alone_has_all(monkeypatch):
    assert (
        batch_slice(7) == BatchSlice(7)
        and batch_slice(7).weight == 1
        and batch_slice(7).rows == slice(0, None, 1)
    )
    assert not ranks.divides_text(1000)
