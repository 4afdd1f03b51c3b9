"""Drawn sequences of commands, whose numbers and refusals a plain model foretells.

APD_DRAWS=500 draws that many (default: a few, always the same ones).
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)
from plain_world import (
    METHODS,
    TIE,
    Plain,
    Refused,
    Run,
    Spec,
    class_names,
    plain_table,
    refused_prompts,
    subset,
    write_images,
)

from apd.arguments.convert import main as convert
from apd.arguments.evaluate import main as attack
from apd.clip import load_clip
from apd.results import read_results
from apd.tables.command import main as table

DRAWS = int(os.environ.get("APD_DRAWS", 6))
KINDS = ("methods", "few-shot", "base-to-new", "transfer")  # of tables
OWN = "PGD-3 eps=1/255"  # what each run evaluates itself
CHANGES = st.sampled_from(
    [
        *[{}] * 6,
        *({"method": name} for name in METHODS),
        *({"subsample": half} for half in ("all", "base", "new")),
        *({"seed": 2}, {"seed": 3}, {"shots": 2}, {"dataset": "turned"}, {"part": "1/2"}),
        *({"position": "middle"}, {"csc": True}, {"epochs": 2}, {"epochs": 2, "final": "best_val"}),
        {"dataset": "turned", "subsample": "new"},
    ]
)


@pytest.fixture(scope="module")
def bench(run, tiny, tmp_path_factory):
    """What all draws share: data, a plain model, and each training's finished folder."""
    folder = tmp_path_factory.mktemp("bench")
    write_images(folder / "data")
    clip = load_clip(tiny.clip, device=torch.device("cpu")).double()

    def call(spec, out, *more, flags=()):
        flags = ("--root", str(folder / "data"), *flags)
        return run(spec.method, out, *spec.options(), *more, flags=flags)

    @cache
    def trained(spec):
        out = folder / f"{len(list(folder.iterdir()))}"
        assert call(spec, out).code == 0
        return out

    return SimpleNamespace(
        root=folder / "data",
        call=call,
        trained=trained,
        plain=Plain(clip, folder / "data"),
        verdicts={},
        seen=Counter(),
    )


def said(call, *argv):
    """Exit code of a command, and what it prints; a refusal is one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = call([*map(str, argv)])
    lines = err.getvalue().splitlines()
    assert code == 0 or len([line for line in lines if not line.startswith("note")]) == 1, lines
    return code, out.getvalue() + err.getvalue()


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved_prompts(folder, epoch=None):
    """Of an epoch; without it the best, or else the last ones."""
    path = folder / "prompt_learner" / (f"model.pth.tar-{epoch}" if epoch else "model-best.pth.tar")
    if not path.exists():
        path = path.with_name((path.parent / "checkpoint").read_text().strip())
    return torch.load(path, weights_only=True)["state_dict"]


def trained_otherwise(run):
    """Whether the folder that a run's prompts were read from has other ones now.

    They are the same where training anew makes no difference: up to the epoch that was read.
    """
    if not run.origin or not run.origin.gone:
        return False
    prompts = saved_prompts(run.origin.folder, run.epoch)
    return any(not torch.equal(prompts[name], run.prompts[name]) for name in run.prompts)


class Commands(RuleBasedStateMachine):
    """Runs are made, evaluated, converted and tabled in drawn order."""

    runs = Bundle("runs")

    def __init__(self, bench):
        super().__init__()
        self.bench, self.root, self.count = bench, bench.root, 0
        self.folder = Path(tempfile.mkdtemp())

    def teardown(self):
        shutil.rmtree(self.folder)

    def new_folder(self):
        self.count += 1
        return self.folder / f"{self.count}"

    def names(self, spec):
        return class_names(self.root, spec)

    # -- training ----------------------------------------------------------------------------

    @initialize(target=runs, method=st.sampled_from(METHODS), half=st.sampled_from(["all", "base"]))
    def first(self, method, half):
        return self.train(Spec(method, subsample=half))

    @rule(target=runs, run=runs, change=CHANGES)
    def train_another(self, run, change):
        return self.train(replace(run.trained or run.spec, **change))

    @rule(target=runs, run=consumes(runs))
    def train_anew(self, run):
        """Another training in the folder of one that was deleted."""
        if not run.own:
            return multiple(run)
        shutil.rmtree(run.folder)
        run.gone = True
        return self.train(replace(run.spec, epochs=3 - run.spec.epochs), run.folder)

    def train(self, spec, folder=None):
        folder = folder or self.new_folder()
        shutil.copytree(self.bench.trained(spec), folder)
        prompts = saved_prompts(folder) if spec.learns else {}
        return self.finished(Run(folder, spec, spec if spec.learns else None, prompts))

    @rule(run=runs, change=CHANGES)
    def train_in_the_folder_of_a_finished_run(self, run, change):
        asked, before = replace(run.trained or run.spec, **change), files(run.folder)
        same = run.own and asked == run.spec
        assert self.bench.call(asked, run.folder).code == (0 if same else 2)
        assert files(run.folder) == before

    @rule(run=runs)
    def train_from_prompts(self, run):
        folder = self.new_folder()
        flags = ("--model-dir", str(run.folder))
        assert self.bench.call(run.spec, folder, flags=flags).code == 2 and not folder.exists()

    # -- evaluation --------------------------------------------------------------------------

    @rule(
        target=runs,
        run=runs,
        change=CHANGES,
        way=st.sampled_from(["", "", "theirs", "back"]),
        epoch=st.sampled_from([None, None, 1]),
    )
    def evaluate_prompts(self, run, change, way, epoch):
        asked = replace(run.trained or run.spec, **change)
        place, prompts = self.converted(run, way), run.prompts
        if place is None:
            return multiple()
        flags = ["--eval-only", "--model-dir", str(place)]
        epoch = epoch if run.own and run.trained and not way else None
        if epoch:
            flags += ["--load-epoch", str(epoch)]
            prompts = saved_prompts(place, epoch)
        folder = self.new_folder()
        result = self.bench.call(asked, folder, flags=flags)
        trained = self.names(run.trained) if run.trained else ()
        if refused_prompts(asked, run, self.names(asked), trained):
            assert result.code == 2 and not folder.exists(), (asked, run.trained)
            self.bench.seen["evaluation refused"] += 1
            return multiple()
        assert result.code == 0, result.err
        self.bench.seen["evaluation accepted"] += 1
        learned = (run.trained, prompts) if asked.learns else (None, {})
        origin = run if asked.learns and not way else None
        return self.finished(Run(folder, asked, *learned, own=False, origin=origin, epoch=epoch))

    def converted(self, run, way):
        """The folder of a run's prompts, or of their copy; None: there is none to be made."""
        place = run.folder
        for _ in range(("", "theirs", "back").index(way)):
            copy = self.new_folder()
            code, text = said(convert, place, copy)
            assert code == (0 if run.own and run.trained else 2), text
            if code:
                assert not copy.exists()
                return None
            assert said(convert, place, copy)[0] == 2  # is not overwritten
            place = copy
        if way == "back":
            back = saved_prompts(place)
            assert back.keys() == run.prompts.keys()
            assert all(torch.equal(back[name], run.prompts[name]) for name in back)
        return place

    @rule(
        chosen=st.lists(runs, min_size=1, max_size=2),
        steps=st.sampled_from([1, 3]),
        radii=st.sampled_from(["1", "4", "1,4"]),
        count=st.sampled_from([0, 8]),
        shards=st.sampled_from([0, 0, 1, 3]),
        keep=st.booleans(),
    )
    def attack(self, chosen, steps, radii, count, shards, keep):
        images = self.new_folder()
        flags = ["--attack", f"pgd-{steps}", "--eps", radii, "--subset", count]
        flags += ["--shards", shards] * bool(shards) + ["--save-adv", images] * keep
        before = {run: (run.folder / "results.json").read_bytes() for run in chosen}
        code, text = said(attack, *(run.folder for run in chosen), *flags)
        if any(map(trained_otherwise, chosen)):
            assert code == 2, text
            self.bench.seen["prompts trained anew are refused"] += 1
            return
        assert code == 0, text
        for run in dict.fromkeys(chosen):
            assert (run.folder / "results.json").read_bytes() == before[run]
            for eps in radii.split(","):
                part = f", {count} images" * bool(count)
                run.results.setdefault(f"PGD-{steps} eps={eps}/255{part}", None)
            self.check(run)
        if keep:
            self.check_witnesses(dict.fromkeys(chosen), images, steps)

    def finished(self, run):
        """Check what a run has left against the plain model."""
        found = read_results(run.folder)
        assert (found["dataset"], found["subsample"]) == run.spec.place
        assert found["class_names"] == self.names(run.spec)
        record = found["trained_on"]
        assert (record is None) == (run.trained is None)
        if record:
            assert (record["dataset"], record["subsample"]) == run.trained.place
            for name in ("method", "shots", "seed"):
                assert record[name] == getattr(run.trained, name)
        clean, _ = found["evaluations"]
        self.check_clean(run, clean["correct"], clean["total"])
        run.results = {"clean": clean["accuracy"], OWN: None}
        self.check(run)
        return run

    def check_clean(self, run, correct, total, rows=slice(None)):
        margins = self.bench.plain.right(run)[rows]
        assert total == len(margins)
        assert (margins > TIE).sum() <= correct <= (margins > -TIE).sum()

    def check(self, run):
        """Verdicts are about the images that they should be, agree with each other and with clean
        predictions, and are as many as there are evaluations."""
        paths = sorted((run.folder / "evaluations").glob("*.json"))
        assert len(paths) == len(run.results) - 1
        for path in paths:
            kept = json.loads(path.read_text())
            record, lost = kept["record"], np.array(kept["lost_to"])
            threat, images = record["threat_model"], record["images"]
            labels = self.bench.plain.pixels(run.spec)[1]
            count = 0 if images == "all" else images["count"]
            rows = subset(len(labels), count)
            assert kept["labels"] == labels[rows].tolist()
            self.check_clean(run, (lost != -1).sum(), len(lost), rows)
            assert (record["correct"], record["total"]) == ((lost == 0).sum(), len(lost))
            assert record["accuracy"] == pytest.approx(100 * (lost == 0).mean())
            assert threat["seed"] == run.spec.seed and threat["alpha"] == threat["eps"] / 2
            column = f"{record['attack'].upper()} eps={threat['eps']:g}/255"
            column += f", {count} images" * bool(count)
            assert column in run.results
            run.results[column] = record["accuracy"]
            attacked = (record["attack"], threat["eps"], threat["seed"])
            for row, verdict in zip(rows.tolist(), lost.tolist()):
                about = (run.key, run.spec.method, run.spec.place, attacked, row)
                assert self.bench.verdicts.setdefault(about, verdict) == verdict

    def check_witnesses(self, runs, folder, steps):
        """Kept images lie in the ball, and the plain model says of them what the verdicts say."""
        for path in sorted(folder.glob("*/*.npz")):
            found = np.load(path)
            (stated,) = (json.loads(p.read_text()) for p in path.parent.glob("*.json"))
            (run, *_) = [
                run
                for run in runs
                if stated["identity"]["model"] == read_results(run.folder)["fingerprint"]
            ]
            pixels, labels = self.bench.plain.pixels(run.spec)
            clean, attacked = pixels[found["index"]], torch.from_numpy(found["attacked"]).double()
            assert (found["label"] == labels[found["index"]].numpy()).all()
            radius = stated["record"]["threat_model"]["eps"] / 255
            assert (attacked - clean).abs().max() <= radius + 1e-6
            assert 0 <= attacked.min() and attacked.max() <= 1
            margins = self.bench.plain.margins(run, attacked, labels[found["index"]])
            right = torch.from_numpy(found["right"])
            assert (margins[right] > -TIE).all() and (margins[~right] < TIE).all()

    # -- tables ------------------------------------------------------------------------------

    @rule(
        chosen=st.lists(runs, min_size=1, max_size=6, unique_by=id),
        kind=st.sampled_from(KINDS),
    )
    def tabulate(self, chosen, kind):
        path = self.new_folder()
        folders = [run.folder for run in chosen]
        code, text = said(table, *folders, "--table", kind, "--json", path)
        try:
            wanted = plain_table(kind, chosen)
        except Refused as reason:
            self.bench.seen[f"{kind} refused"] += 1
            assert code == 2 and not path.exists(), (reason, text)
            return
        assert code == 0, text
        found = dict(read_cells(kind, json.loads(path.read_text())["tables"]))
        self.bench.seen[f"{kind} accepted"] += 1
        assert found.keys() == wanted.keys()
        for place, values in wanted.items():
            assert found[place] == pytest.approx(values, abs=1e-5), place


def read_cells(kind, tables):
    """As ``plain_table``."""
    for made in tables:
        title, *_ = made["title"].split(" (%)")
        for row in made["rows"]:
            for name, cell in row.items():
                if isinstance(cell, dict) and cell["values"] and name != "seconds":
                    yield (
                        (*place_of(kind, made["title"], title, name), row["method"]),
                        cell["values"],
                    )


def place_of(kind, title, column, name):
    of_sets = "average" if "average of" in title else None
    if kind == "few-shot":
        dataset = of_sets or title.split(" (%), ")[1].split(",")[0]
        return column, f"{dataset}, {name.split()[0]}"
    if kind == "base-to-new":
        return name.removesuffix(" (%)"), of_sets or title.split(", ")[1]
    if " (%)" in name:  # of methods on one data set
        return name.removesuffix(" (%)"), title.split(", ")[0]
    return column, "average" if "average" in name else name.removesuffix(" (source)")


def test_drawn_commands_give_what_a_plain_model_foretells(bench, inline):
    run_state_machine_as_test(
        lambda: Commands(bench),
        settings=settings(
            max_examples=DRAWS,
            stateful_step_count=8,
            derandomize="APD_DRAWS" not in os.environ,
            database=None,
            deadline=None,
            phases=[Phase.generate],  # draws are small, and shrinking takes many runs
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(bench.seen)
    if DRAWS >= 500:  # of fewer, not all may be among them
        assert {f"{kind} {end}" for kind in KINDS for end in ("accepted", "refused")} <= {
            *bench.seen
        }
