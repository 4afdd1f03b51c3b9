"""A classifier's model card, in Hugging Face's format."""

from __future__ import annotations

import yaml
from tabulate import tabulate

from apd.errors import listed
from apd.models.description import LIBRARY
from apd.results.words import described, images_text, shots_text

_TAGS = ("clip", "prompt-learning", "adversarial-robustness", "image-classification")


def card(config: dict) -> str:
    """README.md for a folder with the config.json ``config``: front matter in YAML, then text."""
    front = yaml.safe_dump(_front_matter(config), sort_keys=False, allow_unicode=True)
    sections = (_introduction(config), _usage(config), _accuracies(config), _conditions(config))
    return f"---\n{front}---\n\n" + "\n".join(section for section in sections if section)


def title(config: dict) -> str:
    """The heading: method, data set, shots and CLIP."""
    results, backbone = config["results"], config["backbone"]["name"]
    data = ""
    if results:
        data = f" on {results['dataset']}, {shots_text(results['shots'])}"
    return f"{config['method']}{data} ({backbone})"


def _front_matter(config: dict) -> dict:
    results = config["results"]
    front: dict = {
        "library_name": LIBRARY,
        "pipeline_tag": "image-classification",
        "tags": [*_TAGS, config["method"]],
    }
    if config["backbone"]["name"].startswith("hf:"):
        front["base_model"] = config["backbone"]["name"].removeprefix("hf:")
    if results:
        front["datasets"] = [results["dataset"]]
        index = [_model_index(results["dataset"], record) for record in results["evaluations"]]
        front["model-index"] = [{"name": title(config), "results": index}]
    return front


def _model_index(dataset: str, record: dict) -> dict:
    """An entry of the hub's model-index: one accuracy, named after its threat model."""
    threat = record["threat_model"]
    name = f"robust accuracy, {described(record)}" if threat else "clean accuracy"
    metric = {"type": "accuracy", "name": name, "value": round(record["accuracy"], 2)}
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": dataset, "type": dataset.lower(), "split": record["split"]},
        "metrics": [metric],
    }


def _introduction(config: dict) -> str:
    names, modality = config["class_names"], config["modality"]
    prompts = "Hand-written prompts" if modality == "none" else f"Learned {modality} prompts"
    return (
        f"# {title(config)}\n\n"
        f"{prompts} of a frozen CLIP, for {len(names)} classes: {listed(names, 20)}. The file "
        "`prompts.safetensors` has the learned vectors alone; the weights of CLIP are not in it.\n"
    )


def _usage(config: dict) -> str:
    return (
        "```python\n"
        "import apd  # pip install 'apd-clip[hf]'\n\n"
        'model = apd.load("FOLDER")  # or "hf:USER/NAME"\n'
        'model.predict("image.jpg")  # label, probability, the most probable classes\n'
        "logits = model(images)  # (B, 3, {0}, {0}) in [0, 1]; normalisation is inside\n"
        "```\n".format(config["input"]["size"][0])
    )


def _accuracies(config: dict) -> str:
    rows, notes = [], []
    for record in config["results"].get("evaluations", ()):
        flags = record.get("flags", {})
        notes += [f"- {name}: {text}" for name, text in flags.items()]
        subset = isinstance(record.get("images"), dict) and images_text(record)
        rows.append(
            {
                "evaluation": described(record),
                "accuracy (%)": f"{record['accuracy']:.1f}",
                "images": f"{record['total']:,}" + (" (a subset)" if subset else ""),
                "flags": ", ".join(flags) or "none",
            }
        )
    if not rows:
        return ""
    table = tabulate(rows, "keys", tablefmt="github", disable_numparse=True)
    flags = "Flags of the evaluation:\n\n" + "\n".join(dict.fromkeys(notes)) if notes else ""
    return f"## Accuracy\n\n{table}\n\n{flags}\n"


def _conditions(config: dict) -> str:
    backbone, results = config["backbone"], config["results"]
    robust = f", image encoder from `{backbone['robust']}`" if backbone["robust"] else ""
    lines = [
        f"- CLIP: `{backbone['name']}`{robust}, SHA-256 `{backbone['sha256']}`; another one under "
        "this name is refused",
        f"- images: {' x '.join(map(str, config['input']['size']))} pixels, shorter edge resized "
        f"({config['input']['interpolation']}), centre cut out, in [0, 1]",
    ]
    for use, words in (("train", "attacked in training"), ("test", "attacked in evaluation")):
        text = "no"
        if threat := config["threat_model"].get(use):
            text = (
                f"{threat['norm']}, eps {threat['eps']:g}/255, steps of {threat['alpha']:g}/255, "
                f"{threat['steps']} steps, loss {threat['loss']}"
            )
        lines.append(f"- {words}: {text}")
    if results:
        lines.append(f"- seed {results['seed']}, classes: {results['subsample']}")
    return "## Conditions\n\n" + "\n".join(lines) + "\n"
