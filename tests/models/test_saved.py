"""``save``: a folder that says all of a classifier but its CLIP, and what is not one is refused."""

import json
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import apd
from apd.errors import UserError


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory):
    return apd.load(folder).save(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def edited(saved, tmp_path):
    """Function: a copy of the folder with other fields in config.json."""

    def edited(**fields):
        copy = shutil.copytree(saved, tmp_path / f"copy{len(list(tmp_path.iterdir()))}")
        config = json.loads((copy / "config.json").read_text())
        for name, value in fields.items():
            *sections, last = name.split("__")
            node = config
            for section in sections:
                node = node[section]
            node[last] = value
        (copy / "config.json").write_text(json.dumps(config))
        return copy

    return edited


@pytest.mark.parametrize("method", ["ZeroshotCLIP2", "CoOp", "VPT", "MaPLe", "FAP", "MMoP", "APD"])
def test_what_is_saved_is_loaded_to_the_bit(trained, method, images, tmp_path):
    """Prompts of each kind."""
    model = apd.load(trained(method)[0])
    again = apd.load(model.save(tmp_path / "saved"))
    assert torch.equal(again(images), model(images))
    assert again.class_names == model.class_names and again.threat_model == model.threat_model
    records = [r["accuracy"] for r in model.results["evaluations"]]
    assert [r["accuracy"] for r in again.results["evaluations"]] == records
    assert {p.name for p in (tmp_path / "saved").iterdir()} == {
        "config.json",
        "prompts.safetensors",
        "README.md",
    }
    twice = again.save(tmp_path / "twice")
    for name in ("config.json", "prompts.safetensors", "README.md"):
        assert (twice / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_zero_shot_is_saved_too(tiny, images, tmp_path):
    model = apd.zero_shot(tiny.clip, ["a", "b"], ["a {}.", "one {}."])
    again = apd.load(model.save(tmp_path / "saved"))
    assert torch.equal(again(images), model(images))


def test_no_place_of_this_machine_is_in_it_but_that_of_the_clip(saved, tiny, folder):
    text = "".join(path.read_text() for path in saved.glob("*.[jm][sd]*"))
    text = text.replace(tiny.clip, "")
    assert tiny.root not in text and str(folder) not in text


def test_nothing_is_overwritten(model, saved, tmp_path):
    with pytest.raises(UserError, match="exists: choose another folder"):
        model.save(saved)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        model.save(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert apd.load(model.save(tmp_path / "empty")).class_names == model.class_names


def test_half_of_a_folder_is_never_left(model, tmp_path, monkeypatch):
    import apd.models.saved

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(apd.models.saved, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        model.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_rounded_weights_are_not_saved(model, tmp_path):
    with pytest.raises(UserError, match="float16.*load it again"):
        model.half().save(tmp_path / "saved")


def test_another_clip_under_the_same_name_is_refused(edited, tiny):
    with pytest.raises(UserError, match="another CLIP.*SHA-256.*backbone="):
        apd.load(edited(backbone__name=tiny.wide))
    moved = edited(backbone__name="/nowhere/clip.pt")
    with pytest.raises(UserError, match="/nowhere/clip.pt"):
        apd.load(moved)
    assert apd.load(moved, backbone=tiny.clip).description.backbone.name == tiny.clip


def test_other_class_names(saved, model, images):
    other = apd.load(saved, classes=["cat", "dog"])
    assert torch.equal(other(images), model.classes(["cat", "dog"])(images))
    assert other.results == {}


def test_what_only_a_run_takes_is_refused(saved):
    for name, value in (("epoch", 3), ("epoch", 0), ("trainer", "CoOp"), ("options", {"SEED": 1})):
        with pytest.raises(UserError, match=f"was written by save: it takes no {name}="):
            apd.load(saved, **{name: value})


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"schema": 2}, "has schema 2, this version reads 1"),
        ({"method": 3}, "has method 3"),
        ({"class_names": [1]}, "class names that are no texts"),
        ({"class_names": []}, "class names"),
        ({"prompts__n_ctx_text": 10**9}, "prompts with n_ctx_text 1000000000"),
        ({"prompts__n_ctx_text": True}, "prompts with n_ctx_text True"),
        ({"prompts__n_ctx_visual": 3}, "does not fit config.json"),
        ({"prompts__depth_text": 99}, "depth 99"),
        ({"prompts__position": "side"}, "prompts with position side"),
        ({"prompts__clip_model": "x"}, "prompts with clip_model x"),
        ({"prompts__templates": "x"}, "prompts with templates x"),
        ({"backbone__device": "cpu"}, "has backbone device"),
        ({"backbone__resolution": "x"}, "backbone has resolution x"),
        ({"backbone__resolution": 33}, "multiple of the patch size"),
        ({"input__interpolation": "lanczos"}, "no interpolation that is known"),
        ({"threat_model__train": {"norm": "linf"}}, "lacks alpha"),
        ({"results__shots": "many"}, "has shots many"),
        ({"results__evaluations": [{}]}, "lacks"),
        ({"prompts_sha256": "0" * 64}, "is not what config.json beside it says"),
    ],
)
def test_damaged_configs_are_one_line(edited, fields, said):
    with pytest.raises(UserError, match=said) as error:
        apd.load(edited(**fields))
    assert "\n" not in str(error.value)


def test_a_config_that_cannot_be_read_is_named(edited):
    for content in ("{", "[]", '{"library_name": "other"}'):
        copy = edited()
        (copy / "config.json").write_text(content)
        with pytest.raises(UserError, match="config.json"):
            apd.load(copy)


def test_damaged_prompts_are_one_line(edited):
    copy = edited()
    path = copy / "prompts.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    for content in (b"", whole[:-10], b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(UserError, match="prompts.safetensors cannot be read"):
            apd.load(copy)
    save_file({**tensors, "text.0": tensors["text.0"] + 1}, path)
    with pytest.raises(UserError, match="is not what config.json beside it says"):
        apd.load(copy)
    save_file({"text.0": tensors["text.0"]}, path)
    with pytest.raises(UserError, match="does not fit config.json"):
        apd.load(copy)
    path.unlink()
    with pytest.raises(UserError, match="prompts.safetensors"):
        apd.load(copy)


def test_the_model_card_is_one_of_the_hubs_format(saved, model):
    hub = pytest.importorskip("huggingface_hub")
    loaded = hub.ModelCard.load(saved / "README.md")
    data = loaded.data
    assert data.library_name == "apd-clip" and data.pipeline_tag == "image-classification"
    assert data.datasets == ["shapes"] and "AdvIVLP" in data.tags
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    clean, robust = model.results["evaluations"]
    assert found == {
        "clean accuracy": round(clean["accuracy"], 2),
        "robust accuracy, PGD-1, linf eps 1/255": round(robust["accuracy"], 2),
    }
    assert 'apd.load("FOLDER")' in loaded.text and "eps 1/255" in loaded.text


def test_the_card_shows_flags_and_its_front_matter_is_plain_yaml(edited, tmp_path):
    flags = {"few-steps": "PGD <script>"}
    copy = edited()
    config = json.loads((copy / "config.json").read_text())
    config["results"]["evaluations"][1]["flags"] = flags
    config["results"]["dataset"] = 'a: "b"\n- c'
    (copy / "config.json").write_text(json.dumps(config))
    card = (apd.load(copy).save(tmp_path / "again") / "README.md").read_text()
    front = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)[1])
    assert front["datasets"] == ['a: "b"\n- c']
    assert "few-steps" in card
