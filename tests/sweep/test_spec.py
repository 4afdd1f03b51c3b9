"""From YAML to cells."""

import json
import re
from pathlib import Path

import pytest
import yaml

import apd
from apd.errors import UserError
from apd.sweep.spec import read_spec
from apd.train.command import parse_args, setup_cfg

ROOT = Path(__file__).parents[2]
SPECS = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
GRID = {"trainer": "APD", "config": "mini", "dataset": "digits", "shots": 16, "seed": 1}


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """Function: the cells of a spec with this grid and these other keys."""
    monkeypatch.chdir(ROOT)

    def cells(grid=(), replaced=(), **more):
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump({"grid": {**GRID, **dict(grid)}, **more}, sort_keys=False))
        return read_spec(path, **dict(replaced))

    return cells


def config(cell):
    apd.register()
    return setup_cfg(parse_args(list(cell.argv)))


def folders(cells):
    return [cell.folder for cell in cells]


# -- what the grid makes ---------------------------------------------------------------------------


def test_the_grid_is_multiplied_out_into_the_folders_of_the_scripts(cells):
    found = cells({"trainer": ["CoOp", "APD"], "shots": [1, 2], "seed": [1, 3]})
    assert folders(found) == [
        f"output/digits/{trainer}/mini_{shots}shots/seed{seed}"
        for trainer in ("CoOp", "APD")
        for shots in (1, 2)
        for seed in (1, 3)
    ]
    cfg = config(found[1])
    assert (cfg.TRAINER.NAME, cfg.DATASET.NUM_SHOTS, cfg.SEED) == ("CoOp", 1, 3)
    assert (cfg.DATASET.NAME, cfg.DATASET.ROOT) == ("Digits", "data")
    assert cfg.OUTPUT_DIR == found[1].folder
    assert cfg.INPUT.SIZE == (32, 32)


def test_config_keys_in_the_grid_make_folders_of_their_own(cells):
    first, second = cells({"TRAINER.APD.TAU": [1, 2.0], "INPUT.TRANSFORMS": [["random_flip"]]})
    name = "mini+APD.TAU=1+INPUT.TRANSFORMS=-random_flip-_16shots"
    assert first.folder == f"output/digits/APD/{name}/seed1"
    assert config(first).TRAINER.APD.TAU == 1.0 and config(second).TRAINER.APD.TAU == 2.0
    assert list(config(first).INPUT.TRANSFORMS) == ["random_flip"]


def test_a_backbone_is_a_part_of_the_folder(cells):
    (cell,) = cells({"backbone": "ViT-B/32"})
    assert cell.folder == "output/digits/APD/mini+backbone=ViT-B-32_16shots/seed1"
    assert config(cell).MODEL.BACKBONE.NAME == "ViT-B/32"


def test_all_images(cells):
    (cell,) = cells({"shots": -1})
    assert cell.folder == "output/digits/APD/mini_-1shots/seed1"
    assert config(cell).DATASET.NUM_SHOTS == -1


def test_a_base_gives_what_the_file_does_not_say(cells, tmp_path):
    (tmp_path / "below.yaml").write_text(
        yaml.safe_dump({"base": "base.yaml", "grid": {"seed": 5}, "set": {"TRAIN.PRINT_FREQ": 2}})
    )
    base = {"grid": {**GRID, "seed": [1, 2]}, "output": "there", "set": {"OPTIM.MAX_EPOCH": 1}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    assert folders(read_spec(tmp_path / "base.yaml")) == [
        f"there/digits/APD/mini_16shots/seed{seed}" for seed in (1, 2)
    ]
    (cell,) = read_spec(tmp_path / "below.yaml")
    assert cell.folder == "there/digits/APD/mini_16shots/seed5"
    assert config(cell).TRAIN.PRINT_FREQ == 2 and config(cell).OPTIM.MAX_EPOCH != 1


@pytest.mark.parametrize(
    "base, told", [("below.yaml", "below.yaml is its own base"), ("no.yaml", "base no.yaml: ")]
)
def test_a_base_that_is_none(tmp_path, base, told):
    (tmp_path / "below.yaml").write_text(yaml.safe_dump({"base": base, "grid": GRID}))
    with pytest.raises(UserError, match=told):
        read_spec(tmp_path / "below.yaml")


def test_variants_come_one_after_another(cells):
    found = cells(
        variants=[{}, {"TRAINER.APD.BETA": [0.1, 1.0]}, {"TRAINER.APD.COUPLED": True, "seed": 2}]
    )
    assert [config(c).TRAINER.APD.BETA for c in found] == [0, 0.1, 1, 0]
    assert [(config(c).TRAINER.APD.COUPLED, config(c).SEED) for c in found] == [
        (False, 1),
        (False, 1),
        (False, 1),
        (True, 2),
    ]


def test_lists_of_variants_are_combined_the_first_list_outermost(cells):
    found = cells(
        variants=[
            [{"dataset": "digits"}, {"dataset": "letters", "DATASET.CLASSES": "1/2/0"}],
            [{"trainer": ["AdvIVLP", "APD"]}, {"TRAINER.APD.TAU": 2.0}],
        ]
    )
    assert folders(found) == [
        f"output/{place}/{run}_16shots/seed1"
        for place in ("digits", "letters+1-2")
        for run in ("AdvIVLP/mini", "APD/mini", "APD/mini+APD.TAU=2.0")
    ]


def test_what_is_set_stays_out_of_the_folder_and_the_command_line_wins(cells):
    rule = {"trainer": ["CoOp", "APT"], "shots": [1], "set": {"OPTIM.MAX_EPOCH": 5}}
    more = {
        "grid": {"trainer": ["CoOp", "APD"], "shots": [1, 2]},
        "set": {"OPTIM.MAX_EPOCH": 7, "AT.TEST.STEPS": 3},
        "where": [rule],
    }
    found = cells(**more)
    assert folders(found)[0] == "output/digits/CoOp/mini_1shots/seed1"
    assert [config(c).OPTIM.MAX_EPOCH for c in found] == [5, 7, 7, 7]
    assert {config(c).AT.TEST.STEPS for c in found} == {3}
    forced = cells(**more, replaced={"set": {"OPTIM.MAX_EPOCH": "9"}})
    assert {config(c).OPTIM.MAX_EPOCH for c in forced} == {9}


def test_the_command_line_replaces_axes(cells):
    found = cells({"seed": [1, 2]}, {"seed": [5], "trainer": ["CoOp"], "output": "o", "root": None})
    assert folders(found) == ["o/digits/CoOp/mini_16shots/seed5"]
    assert config(found[0]).DATASET.ROOT == "data"
    found = cells(variants=[{"seed": [1, 2]}], replaced={"seed": [5]})
    assert folders(found) == ["output/digits/APD/mini_16shots/seed5"]


def test_tasks_have_folders_beside_the_data_set_s(cells):
    tasks = {"DATASET.CLASSES": ["1/2/0", "2/2/0", ["one", "two"]], "OPTIM.LR": 0.1}
    found = cells(variants=[tasks, {"seed": [1, 2]}])
    run = "APD/mini+OPTIM.LR=0.1_16shots/seed1"
    assert folders(found) == [
        f"output/digits+1-2/{run}",
        f"output/digits+2-2/{run}",
        f"output/digits+one-two/{run}",
        "output/digits/APD/mini_16shots/seed1",
        "output/digits/APD/mini_16shots/seed2",
    ]
    classes = [config(cell).DATASET.CLASSES for cell in found]
    assert classes == [["1/2/0"], ["2/2/0"], ["one", "two"], [], []]
    assert found[0].similarity_key[1] == found[3].similarity_key[1] == "digits"
    base, new = cells({"DATASET.CLASSES": "1/2/0"}, protocol="base-to-new")
    assert base.folder == "output/base2new/train_base/digits+1-2/shots_16/APD/mini/seed1"
    assert config(new).DATASET.CLASSES == ["1/2/0"]
    with pytest.raises(UserError, match="DATASET.CLASSES is 3/2/0: use class names"):
        cells({"DATASET.CLASSES": "3/2/0"})


# -- protocols -------------------------------------------------------------------------------------


def test_base_to_new(cells):
    base, new = cells({"trainer": "CoOp"}, protocol="base-to-new")
    run = "digits/shots_16/CoOp/mini/seed1"
    assert base.folder == f"output/base2new/train_base/{run}" and base.needs == ""
    assert new.folder == f"output/base2new/test_new/{run}" and new.needs == base.folder
    assert [config(c).DATASET.SUBSAMPLE_CLASSES for c in (base, new)] == ["base", "new"]
    args = parse_args(list(new.argv))
    assert args.eval_only and args.model_dir == base.folder
    assert not parse_args(list(base.argv)).eval_only


def test_transfer(cells):
    source, letters, rendered = cells(protocol="transfer", targets=["letters", "rendered_digits"])
    assert source.folder == "output/digits/APD/mini_16shots/seed1"
    assert letters.folder == "output/evaluation/digits/APD/mini_16shots/letters/seed1"
    assert letters.needs == rendered.needs == source.folder
    assert config(letters).DATASET.NAME == "Letters"


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grid, more, message",
    [
        ({}, {"grids": {}}, 'the sweep has the key "grids": did you mean grid?'),
        ({"trainers": "CoOp"}, {}, 'grid has the key "trainers": did you mean trainer'),
        ({"OPTIM.LRR": 1}, {}, "did you mean OPTIM.LR"),
        ({"SEED": 7}, {}, 'grid has the key "SEED": use seed'),
        ({}, {"set": {"OUTPUT_DIR": "elsewhere"}}, 'set has the key "OUTPUT_DIR": use output'),
        ({}, {"set": {"OPTIM.MAX_EPOCHS": 1}}, "set has the key .*did you mean OPTIM.MAX_EPOCH"),
        ({}, {"set": {"OPTIM": 1}}, 'set has the key "OPTIM"'),
        ({}, {"variants": [{}, {"TAU": 1}]}, 'variant 2 has the key "TAU"'),
        ({}, {"variants": [[1]]}, "variant 1 is no mapping"),
        ({}, {"where": [{"shots": 1}]}, "rule 1 of where has no mapping named set"),
        ({}, {"where": [{"shot": 1, "set": {}}]}, 'rule 1 of where has the key "shot"'),
        ({}, {"where": {"shots": 1}}, "where is no list"),
        ({"shots": "many"}, {}, "shots is 'many': use a number from 1"),
        ({"shots": 0}, {}, "shots is 0: use a number from 1, or -1 for all images"),
        ({"seed": -1}, {}, "seed is -1"),
        ({"trainer": []}, {}, "an empty list leaves no cells"),
        ({"trainer": 3}, {}, "trainer is 3: use a name"),
        ({"seed": [1, 1]}, {}, "two cells have the folder output/digits/APD/mini_16shots/seed1"),
        ({}, {"protocol": "few"}, "protocol is few: use few-shot, base-to-new, transfer"),
        ({}, {"protocol": "transfer"}, "transfer needs targets"),
    ],
)
def test_mistakes_are_told(cells, tmp_path, grid, more, message):
    with pytest.raises(UserError, match=message) as error:
        cells(grid, **more)
    assert str(error.value).startswith(str(tmp_path / "spec.yaml"))


def test_mistakes_in_the_file_are_told(tmp_path):
    path = tmp_path / "spec.yaml"
    for text, message in (
        ("- 1", "no mapping of keys to values"),
        ("grid: {", "spec.yaml: "),
        ("grid: {trainer: APD}", "grid lacks config, dataset, shots, seed"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_spec(path)
    with pytest.raises(UserError, match="no config file"):
        read_spec(tmp_path / "none.yaml")


# -- the shipped ones ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_shipped_specs(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = read_spec(path)
    # the number of cells stands in the file's head
    assert f"{len(found):,} cells" in path.read_text().partition("grid:")[0]
    kinds = {cell.similarity_key[:4]: cell for cell in found}  # all configs, data sets and variants
    configs = [config(cell) for cell in kinds.values()]
    assert all(cfg.AT.TEST.EPS for cfg in configs)  # robust accuracy is what it is about


def test_published_epochs_by_shots(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = read_spec(
        "configs/sweeps/fewshot.yaml", dataset=["dtd"], seed=[1], trainer=["CoOp", "APT", "APD"]
    )
    epochs = [config(cell).OPTIM.MAX_EPOCH for cell in found]
    assert epochs == [50, 100, 100, 200, 200] * 2 + [50] * 5
    imagenet = read_spec("configs/sweeps/fewshot.yaml", dataset=["imagenet"], trainer=["CoOp"])
    assert {config(cell).OPTIM.MAX_EPOCH for cell in imagenet} == {50}
    mini = read_spec("configs/sweeps/digits_fewshot.yaml", seed=[1])
    assert {config(cell).OPTIM.MAX_EPOCH for cell in mini} == {50}


def test_the_ablation_is_of_all_our_choices(monkeypatch):
    """Every key of TRAINER.APD that apd/config.py has as our choice, beyond its default."""
    monkeypatch.chdir(ROOT)
    for name in ("ablation", "digits_ablation"):
        found = read_spec(f"configs/sweeps/{name}.yaml", seed=[1])
        configs = [config(cell).TRAINER.APD for cell in found]
        default = configs[0]
        keys = set(default) - {"CTX_INIT", "PREC", "TEACHER"}
        assert [key for key in keys if all(c[key] == default[key] for c in configs)] == []
        assert {c.TEACHER.MODE for c in configs} == {"online", "offline", "frozen", "auto"}


# -- a search, and what it chose -------------------------------------------------------------------

SEARCH = {
    "budget": 3,
    "trials": {
        "AdvIVLP": {"OPTIM.LR": [0.01, 0.02, 0.03]},
        "APD": [{"TRAINER.APD.TAU": [1.0, 2.0]}, {"TRAINER.APD.TAU": 1.0, "OPTIM.LR": 0.5}],
    },
}


def test_a_search_gives_every_trainer_its_trials_on_validation_images(cells):
    found = cells(search=SEARCH, set={"TEST.SPLIT": "test"})
    assert folders(found) == [
        f"output/search/digits/{trainer}/mini+{keys}_16shots/seed1"
        for trainer, keys in (
            *(("AdvIVLP", f"OPTIM.LR=0.0{rate}") for rate in (1, 2, 3)),
            *(("APD", f"APD.TAU={rest}") for rest in ("1.0", "2.0", "1.0+OPTIM.LR=0.5")),
        )
    ]
    for cell in found:
        cfg = config(cell)
        assert (cfg.TEST.SPLIT, cfg.DATASET.VAL_SHOTS) == ("val", 0)
    assert config(found[5]).OPTIM.LR == 0.5
    few = cells(search=SEARCH, set={"DATASET.VAL_SHOTS": 8}, replaced={"trainer": ["APD"]})
    assert folders(few) == folders(found)[3:] and config(few[0]).DATASET.VAL_SHOTS == 8


@pytest.mark.parametrize(
    "search, more, message",
    [
        ({"budget": 4}, {}, "AdvIVLP has 3 trials, the budget is 4 for each"),
        ({"trials": {"APD": [{"OPTIM.LRR": 1}]}}, {}, 'trial 1 of APD has the key "OPTIM.LRR"'),
        ({"trials": {"APD": [{"seed": 1}]}}, {}, 'trial 1 of APD has the key "seed"'),
        ({"trials": []}, {}, "search needs budget, a number, and trials"),
        ({"budgets": 3}, {}, 'search has the key "budgets": did you mean budget?'),
        ({}, {"protocol": "base-to-new"}, "no protocol but few-shot"),
        ({}, {"variants": [{"shots": 1}]}, "a search has no variants"),
        ({}, {"replaced": {"trainer": ["FAP"]}}, "search has no trials of FAP"),
    ],
)
def test_a_search_with_a_mistake_is_told(cells, search, more, message):
    with pytest.raises(UserError, match=re.escape(message)):
        cells(search={**SEARCH, **search}, **more)


def write_chosen(tmp_path, chosen):
    path = tmp_path / "search.json"
    path.write_text(json.dumps({"tables": [{"name": "search", "chosen": chosen}]}))
    return str(path)


def test_what_was_chosen_for_a_trainer_is_below_its_own_variants(cells, tmp_path):
    path = write_chosen(tmp_path, {"APD": {"TRAINER.APD.TAU": 4.0, "OPTIM.LR": 0.5}})
    trainers = {"trainer": ["APD", "AdvIVLP"]}
    apd, ivlp = cells(trainers, chosen=path, set={"OPTIM.LR": 0.1})
    assert apd.folder == "output/digits/APD/mini_16shots/seed1"
    assert (config(apd).TRAINER.APD.TAU, config(apd).OPTIM.LR) == (4.0, 0.5)
    assert (config(ivlp).TRAINER.APD.TAU, config(ivlp).OPTIM.LR) == (1.0, 0.1)
    (varied,) = cells({"TRAINER.APD.TAU": 2.0}, replaced={"chosen": path})
    assert (config(varied).TRAINER.APD.TAU, config(varied).OPTIM.LR) == (2.0, 0.5)


def test_a_choice_that_cannot_be_read_is_told(cells, tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"tables": []}')
    for path, message in (
        (tmp_path / "search.json", "No such file or directory; apd-table RUNS --table search"),
        (other, "is no search table in JSON"),
        ({"APD": None}, "has chosen nothing for APD"),
        ({"APD": {"OPTIM.LRS": 1}}, 'has the key "OPTIM.LRS"'),
    ):
        if isinstance(path, dict):
            path = write_chosen(tmp_path, path)
        with pytest.raises(UserError, match=re.escape(message)):
            cells(chosen=str(path))
