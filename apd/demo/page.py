"""The page of ``apd-demo``."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torchvision.transforms.functional import to_pil_image

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads it when it is imported
import gradio as gr  # noqa: E402

from apd.errors import UserError, one_line  # noqa: E402
from apd.figures.gallery import Gallery, magnification, magnified  # noqa: E402
from apd.images import read_image  # noqa: E402
from apd.models.classifier import PromptedClassifier  # noqa: E402
from apd.results.words import attack_text  # noqa: E402
from apd.show.attack import attack_all, find_attack_on  # noqa: E402

HOST = "127.0.0.1"
NOT_KNOWN = "what each run says"
_MOST_STEPS = 200
_EPS = 16  # in 1/255: the slider's end, or twice the eps of the run's evaluation if that is more
_HOUR = 3600  # seconds after which uploaded and attacked pictures are deleted
_FONT = ["system-ui", "sans-serif"]  # gradio's default fonts would be fetched from the network
_THEME = gr.themes.Default(font=_FONT, font_mono=["ui-monospace", "monospace"])
_CSS = """
footer { display: none !important; }
.picture img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
"""


def build(models: Sequence[PromptedClassifier], names: Sequence[str]) -> gr.Blocks:
    """The page.

    Args:
        models: they have the same classes and resolution (``check_alike``).
        names: of the models.
    """
    own = models[0].threat_model["test"] or {}
    eps, steps = float(own.get("eps", 4)), min(own.get("steps", 20), _MOST_STEPS)

    def attack(path: str, eps: float, steps: float, label: str, runs: list[str]) -> list:
        try:
            gallery = attacked(models, names, path, eps, int(steps), label, runs)
        except UserError as error:
            raise gr.Error(
                one_line(error), title="Cannot attack it", print_exception=False
            ) from error
        shown = gallery.names
        updates = [heading(gallery)]
        for name, model in zip(names, models):
            updates += results(gallery, shown.index(name), model) if name in shown else hidden()
        return updates

    with gr.Blocks(
        title="apd-demo", fill_width=True, analytics_enabled=False, delete_cache=(_HOUR, _HOUR)
    ) as page:
        gr.Markdown("# What does an attack make of your picture?")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                picture = gr.Image(
                    label="Picture",
                    type="filepath",
                    image_mode=None,  # as it is in the file
                    sources=["upload"],
                    buttons=[],
                    elem_classes="picture",
                    height=260,
                )
                radius = gr.Slider(0, max(_EPS, 2 * eps), eps, step=0.25, label="eps (1/255)")
                count = gr.Slider(1, _MOST_STEPS, steps, step=1, label="Steps of PGD")
                truth = gr.Dropdown(
                    [NOT_KNOWN, *models[0].class_names],
                    value=NOT_KNOWN,
                    label="Class of the picture",
                )
                chosen = gr.CheckboxGroup(list(names), value=list(names), label="Runs")
                start = gr.Button("Attack", variant="primary")
            with gr.Column(scale=4):
                title = gr.Markdown("Drop a picture, then press *Attack*.")
                with gr.Row():
                    columns = [_column() for _ in names]
        start.click(
            attack,
            [picture, radius, count, truth, chosen],
            [title, *(component for column in columns for component in column)],
            api_name="attack",
        )
    return page


def _column() -> list[gr.blocks.Block]:
    """The components of one run's column, one for each value of ``results``."""
    with gr.Column(min_width=420, visible=False) as column:
        outcome = gr.Markdown()
        with gr.Row():
            images = [_image(), _image(), _image("download")]
        with gr.Row():
            labels = [gr.Label(label=f"{time} the attack") for time in ("Before", "After")]
    return [column, outcome, *images, *labels]


def _image(*buttons: str) -> gr.Image:
    return gr.Image(
        format="png",
        interactive=False,
        buttons=list(buttons),  # gradio's default has one that uploads the picture to its service
        elem_classes="picture",
        height=200,
        min_width=120,
    )


def attacked(
    models: Sequence[PromptedClassifier],
    names: Sequence[str],
    path: str | None,
    eps: float,
    steps: int,
    label: str,
    runs: Sequence[str],
) -> Gallery:
    """Attack the picture by PGD on each of the chosen runs.

    Args:
        models, names: of all runs of the page.
        path: of the picture.
        eps: radius in 1/255, in the norm of the first run's evaluation.
        label: the picture's class, or NOT_KNOWN.
        runs: names of the chosen runs.

    Raises:
        UserError: there is no picture or run, or the picture cannot be read.
    """
    if not path:
        raise UserError("there is no picture: drop one first")
    if not runs:
        raise UserError("no run is chosen: tick one")
    chosen = [(model, name) for model, name in zip(models, names) if name in runs]
    attack = find_attack_on(models[0], f"pgd-{steps}", eps)
    return attack_all(
        [model for model, _ in chosen],
        [name for _, name in chosen],
        attack,
        models[0].preprocess(read_image(path))[None],
        [None if label == NOT_KNOWN else label],
        captions=[""],
        title=attack_text(attack.name, attack.conditions),
    )


def heading(gallery: Gallery) -> str:
    """The text above the columns: the attack, and how perturbations are drawn."""
    return (
        f"**{gallery.title}.** Perturbations are magnified {magnification(gallery)} times; grey "
        "means no change."
    )


def hidden() -> list:
    """The values of the column of a run that was not chosen."""
    return [gr.Column(visible=False), *[None] * 6]


def results(gallery: Gallery, run: int, model: PromptedClassifier) -> list:
    """The values of the column of a run; ``run`` is its number in the gallery."""
    before, after = model.predict([gallery.clean[0], gallery.attacked[run].images[0]])
    images = {
        "Picture": gallery.clean[0],
        f"Change \N{MULTIPLICATION SIGN} {magnification(gallery)}": magnified(gallery, run, 0),
        "Attacked": gallery.attacked[run].images[0],
    }
    outcome = _outcome(before.label, after.label, gallery.labels[run][0])
    return [
        gr.Column(visible=True),
        f"### {gallery.names[run]}\n{outcome}",
        *(gr.Image(to_pil_image(image), label=label) for label, image in images.items()),
        dict(before.top),
        dict(after.top),
    ]


def _outcome(before: str, after: str, label: str) -> str:
    """The outcome in words, for those who do not see the colours."""
    if before != label:
        return f"\N{BALLOT X} wrong before the attack: {before}, not {label}"
    if after != label:
        return f"\N{BALLOT X} fooled: {before} became {after}"
    return f"\N{CHECK MARK} withstands: still {label}"


def serve(page: gr.Blocks, port: int | None) -> None:
    """Serve the page at 127.0.0.1 until Ctrl-C.

    Raises:
        UserError: the port is not free.
    """
    try:
        _, url, _ = page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            quiet=True,
            footer_links=[],
            max_file_size="50mb",
            theme=_THEME,
            css=_CSS,
            ssr_mode=False,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"--port {port}: {one_line(error)}") from error
    print(f"{url} (Ctrl-C ends it)", flush=True)
    page.block_thread()
