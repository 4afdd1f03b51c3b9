"""``apd-show``: galleries of attacked images, and the words that learned vectors are near to."""

import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import apd
from apd.attacks import ThreatModel, find_attack
from apd.attacks.stream import attack_batch
from apd.evaluate import EvaluationRequest, evaluate
from apd.figures.gallery import draw, magnification
from apd.show.attack import answers, attack_all
from apd.show.command import main
from apd.show.sample import draw_sample
from apd.show.words import nearest_words, word

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
THREAT = ThreatModel("linf", 3, 0.75, 5)


@pytest.fixture(scope="module")
def digits():
    """Zero-shot CLIP of the digits, which it knows, and 24 of them with labels."""
    from sklearn.datasets import load_digits

    model = apd.zero_shot("mini", DIGITS, "a photo of the digit {}.")
    found = load_digits()
    pixels = (found.images[:24] * 255 / 16).astype("uint8")
    images = torch.stack([model.preprocess(Image.fromarray(image)) for image in pixels])
    return model, images, torch.from_numpy(found.target[:24])


@pytest.fixture(scope="module")
def run_folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("show") / "AdvIVLP"
    options = ("OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", -1, "AT.TEST.STEPS", 2)
    assert run("AdvIVLP", folder, *options).code == 0
    return folder


@pytest.fixture
def show(capsys):
    """Function: ``apd-show`` in this process; its exit code, and what it printed."""

    def show(*args):
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return show


@pytest.mark.parametrize("name", ["pgd-5", "autoattack-1"])
def test_a_batch_is_attacked_as_the_evaluation_attacks_it(digits, name):
    model, images, labels = digits
    images, labels = images[:8], labels[:8]
    attack = find_attack(name, THREAT)
    loader = DataLoader(list(zip(images, labels)), batch_size=8)
    request = EvaluationRequest((attack,), seed=3)
    _, record = evaluate(model, loader, request)
    right = (model(images).argmax(dim=1) == labels).nonzero()[:, 0]
    attacked, stands = attack_batch(
        attack.stages, model, images[right], labels[right], places=right, seed=3
    )
    assert int(stands.sum()) == record["correct"] and 0 < record["correct"] < len(right)
    assert torch.equal(model(attacked).argmax(dim=1) == labels[right], stands)
    assert (attacked - images[right]).abs().max() <= 3 / 255 + 1e-6


def test_a_gallery_says_what_each_model_sees(digits):
    model, images, labels = digits
    other = apd.zero_shot("mini", DIGITS)
    truth = [DIGITS[label] for label in labels[:6]]
    truth[0], truth[1] = "nine", None  # the first is wrong before the attack, one is not known
    gallery = attack_all(
        [model, other],
        ["first", "second"],
        find_attack("pgd-5", THREAT),
        images[:6],
        truth,
        captions=list("abcdef"),
        title="title",
    )
    assert gallery.labels[0][1] == gallery.answers[0][1][0]
    first, second = gallery.attacked
    assert torch.equal(first.images[0], images[0]) and not torch.equal(first.images[2], images[2])
    assert not torch.equal(first.images[2], second.images[2])
    for attacked in (first, second):
        for classifier, stated in zip((model, other), attacked.answers):
            assert stated == answers(classifier, attacked.images)
    delta = max(float((a.images - images[:6]).abs().max()) for a in gallery.attacked)
    assert magnification(gallery) == int(0.5 / delta) == 42

    figure = draw(gallery)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts.count("wrong before\nthe attack") >= 1
    assert any(t.startswith("\N{CHECK MARK} first: ") for t in texts)
    assert any(t.startswith("\N{BALLOT X} second: ") for t in texts)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [
        "clean",
        "perturbation \N{MULTIPLICATION SIGN} 42",
        "attacked, on first",
        "perturbation \N{MULTIPLICATION SIGN} 42",
        "attacked, on second",
    ]
    framed = [axes.spines["top"] for axes in figure.axes if axes.images]
    solid = [spine.get_linestyle() == "solid" for spine in framed if spine.get_visible()]
    assert solid == [  # dashed: fooled
        attacked.answers[own][i][0] == gallery.labels[own][i]
        for i in range(6)
        for own, attacked in enumerate(gallery.attacked)
        if gallery.answers[own][i][0] == gallery.labels[own][i]
    ]
    assert {*solid} == {True, False}


def test_a_sample_has_both_outcomes_and_is_the_same_again(digits):
    model, images, labels = digits

    class Trainer:
        """As much of a trainer as a draw needs."""

        def split_loader(self, split):
            items = [{"img": x, "label": int(y)} for x, y in zip(images, labels)]
            return DataLoader(items, batch_size=8)

    class Evaluated:
        trainer, folder = Trainer(), "folder"

    attack = find_attack("pgd-5", THREAT)
    sample = draw_sample(Evaluated(), model, attack, 6, "test", seed=1)
    assert sample.stands.tolist().count(True) == 3 and len(sample.labels) == 6
    for place, image, label in zip(sample.places, sample.images, sample.labels):
        assert torch.equal(images[place], image) and labels[place] == label
    again = draw_sample(Evaluated(), model, attack, 6, "test", seed=1)
    assert all(map(torch.equal, sample, again))
    other = draw_sample(Evaluated(), model, attack, 6, "test", seed=2)
    assert not torch.equal(other.places, sample.places)
    weak = find_attack("pgd-5", ThreatModel("linf", 0.01, 0.01, 5))
    assert draw_sample(Evaluated(), model, weak, 4, "test", seed=1).stands.all()


def test_of_a_runs_test_set(run_folder, show, tmp_path):
    out = tmp_path / "gallery.png"
    code, printed, _ = show(run_folder, "--attack", "pgd-3", "--eps", "4/255", "-o", out)
    assert code == 0 and printed.splitlines()[-1] == str(out)
    size = Image.open(out).size
    again = tmp_path / "again.png"
    assert show(run_folder, "--attack", "pgd-3", "--eps", 4, "-o", again)[0] == 0
    assert again.read_bytes() == out.read_bytes() and size[0] > 500


def test_of_images_of_ones_own(run_folder, show, tmp_path, tiny):
    saved = apd.load(run_folder).save(tmp_path / "saved")
    (tmp_path / "mine").mkdir()
    shutil.copy(f"{tiny.root}/shapes/test/star/0.png", tmp_path / "mine" / "photo.png")
    out = tmp_path / "gallery.svg"
    code, _, err = show(
        saved, tmp_path / "mine", f"{tiny.root}/shapes/test/*/1.png", "--eps", 1, "-o", out
    )
    assert (code, err) == (0, "") and out.exists()


def test_pictures_and_pytorch_are_imported_where_they_are_used():
    code = """
import sys
from apd.show.command import parse_args
parse_args(["run", "-o", "x.png"])
assert not {"torch", "matplotlib"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_words_nearest_to_a_vector(run_folder, show):
    model = apd.load(run_folder)
    ids = [2368, 1125]
    with torch.no_grad():
        context = model.model.prompt_learner.text[0]
        context.copy_(model.model.clip.token_embedding.weight[ids])
    found = nearest_words(model, 3)
    assert [(v.number, v.class_name) for v in found] == [(1, ""), (2, "")]
    vocabulary = model.model.clip.token_embedding.weight
    for vector, token in zip(found, ids):
        assert vector.words[0] == (word(token), pytest.approx(0, abs=1e-3))
        distances = (vocabulary - vocabulary[token]).norm(dim=1).sort()[0]
        expected = distances[:3].tolist()
        assert [d for _, d in vector.words] == pytest.approx(expected, abs=1e-2)
    code, out, _ = show("--words", run_folder, "--top", 2)
    assert code == 0 and "nearest words and their distances" in out and "Euclidean" in out


def test_words_of_class_specific_context(run, tmp_path, show):
    options = ("TRAINER.COOP.CSC", True, "OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", -1)
    assert run("CoOp", tmp_path / "csc", *options, "AT.TEST.EPS", None).code == 0
    found = nearest_words(apd.load(tmp_path / "csc"), 1)
    assert [v.class_name for v in found[::4]] == ["circle", "square", "star", "triangle"]
    _, out, _ = show("--words", tmp_path / "csc")
    assert out.splitlines()[1].split()[:2] == ["class", "vector"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["{run}"], "Give -o gallery.png"),
        (["{run}", "-o", "x.gif"], "no figure format gif"),
        (["{run}", "-o", "{image}/x.png"], "is no folder"),
        (["{run}", "-o", "{tmp}/x.png", "--attack", "pgdd-3"], "unknown attack"),
        (["{run}", "{tmp}/none.png", "-o", "{tmp}/x.png"], "there are no images"),
        (["{zero}", "-o", "{tmp}/x.png"], "has no test set"),
        (["{zero}", "{image}", "-o", "{tmp}/x.png"], "give --eps"),
        (["{run}", "{wide}", "{image}", "-o", "{tmp}/x.png"], "differ in resolution"),
        (["{zero}", "--words"], "learns no text vectors"),
    ],
)
def test_bad_input_is_one_line(run_folder, show, tmp_path, tiny, arguments, said):
    names = apd.load(run_folder).class_names
    places = {
        "run": run_folder,
        "tmp": tmp_path,
        "image": f"{tiny.root}/shapes/test/star/0.png",
        "zero": apd.zero_shot(tiny.clip, names).save(tmp_path / "zero"),
        "wide": apd.zero_shot(tiny.wide, names).save(tmp_path / "wide"),
    }
    code, out, err = show(*(text.format(**places) for text in arguments))
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert err.startswith("error: ") and said in err
    assert not (tmp_path / "x.png").exists()
