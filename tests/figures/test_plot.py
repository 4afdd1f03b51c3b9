"""apd-plot: what stands on the axes, and what the files hold."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.transforms import Bbox
from PIL import Image
from sample_results import THREAT, keep_verdicts, record

from apd.errors import UserError
from apd.figures.command import OVER_TASKS, main
from apd.figures.draw import crowd, draw_points, label_points
from apd.figures.kinds import KINDS, eps_curves, few_shot, scatter, training
from apd.figures.style import panels, rendered, styles
from apd.results.runs import load_runs

ZERO = {"trainable_parameters": 0, "modality": "none"}


@pytest.fixture
def runs(tmp_path):
    return lambda: load_runs([tmp_path])


@pytest.fixture
def sweep(save):
    """Two methods, three shots, two seeds, and zero-shot; on a data set that is ``lower``."""

    def sweep(dataset="Digits", lower=0):
        for method, gain in (("CoOp", 0), ("APD", 10)):
            for shots in (1, 4, 16):
                for seed in (1, 2):
                    save(
                        f"{dataset}/{method}/{shots}/{seed}",
                        method=method,
                        dataset=dataset,
                        shots=shots,
                        seed=seed,
                        clean=60 + gain + shots + 2 * seed - lower,
                        robust=20 + gain + shots - lower,
                        threat={"seed": seed},
                    )
        save(f"{dataset}/zero", method="ZeroshotCLIP", dataset=dataset, clean=50, robust=5, **ZERO)

    return sweep


def drawn(axes):
    """Label -> (x, y) of the lines."""
    lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    return {line.get_label(): tuple(map(list, line.get_data())) for line in lines}


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# -- few-shot --------------------------------------------------------------------------------------


def test_few_shot_curves_are_means_with_bands_of_one_deviation(sweep, runs):
    sweep()
    ((stem, figure),) = few_shot(runs()).items()
    assert stem == "few-shot_Digits_mini_embedded"
    clean, robust = figure.axes
    assert clean.get_title() == "clean" and robust.get_title() == "PGD-100, linf eps 2/255"
    assert drawn(clean)["APD"] == ([1, 4, 16], [74, 77, 89])
    assert drawn(robust)["CoOp"] == ([1, 4, 16], [21, 24, 36])
    assert set(drawn(clean)["ZeroshotCLIP"][1]) == {50}  # from side to side
    # CoOp's two seeds are 2 points apart in clean accuracy: a deviation of sqrt(2)
    path = clean.collections[0].get_paths()[0].vertices
    at_one = sorted(set(path[path[:, 0] == 1][:, 1].round(3)))
    assert at_one == [round(64 - 2**0.5, 3), round(64 + 2**0.5, 3)]


def test_few_shot_axes_and_title_say_what_they_show(sweep, runs):
    sweep()
    (figure,) = few_shot(runs()).values()
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "16"]
    assert axes.get_xlabel() == "shots (images per class)" and axes.get_ylabel() == "accuracy (%)"
    title = figure.get_suptitle()
    assert title == "Digits, mini, embedded\naccuracy by shots, mean ± std of 2 seeds"
    assert legend_of(figure) == ["ZeroshotCLIP", "CoOp", "APD"]


def test_all_images_stand_after_the_numbers(save, runs):
    for shots in (-1, 1, 4):
        save(f"{shots}", shots=shots, clean=50 if shots == -1 else 10)
    (figure,) = few_shot(runs()).values()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "4", "all"]
    assert drawn(figure.axes[0])["APD"] == ([1, 4, 8], [10, 10, 50])


def test_the_average_over_data_sets_is_by_seed_and_has_no_partial_points(sweep, save, runs):
    sweep("Digits")
    sweep("Letters", lower=10)
    save("more", dataset="Digits", shots=2)  # on one data set only
    figures = few_shot(runs())
    assert [stem.split("_")[1] for stem in figures] == ["average", "Digits", "Letters"]
    average = figures["few-shot_average_mini_embedded"]
    assert drawn(average.axes[0])["APD"] == ([1, 4, 16], [69, 72, 84])
    assert "Average of 2 data sets" in average.get_suptitle()
    assert drawn(figures["few-shot_Digits_mini_embedded"].axes[0])["APD"][0] == [1, 2, 4, 16]


def test_base_and_new_classes_backbones_and_hosts_are_figures_of_their_own(save, runs):
    changes = ({}, {"subsample": "new"}, {"backbone": "ViT-B/32"}, {"host": "dassl 0.6.3"})
    for i, change in enumerate(changes):
        for shots in (1, 2, 4):
            save(f"{i}/{shots}", shots=shots, **change)
    assert set(few_shot(runs())) == {
        "few-shot_Digits_mini_embedded",
        "few-shot_Digits_new_mini_embedded",
        "few-shot_Digits_ViT-B-32_embedded",
        "few-shot_Digits_mini_dassl",
    }


def test_configs_of_one_method_are_lines_of_their_own(save, runs):
    for tau in (1.0, 4.0):
        for shots in (1, 2, 4):
            config = {"SEED": 1, "TRAINER": {"APD": {"TAU": tau}}, "OUTPUT_DIR": f"{tau}{shots}"}
            save(f"{tau}/{shots}", shots=shots, clean=80 + tau, config=config)
    (figure,) = few_shot(runs()).values()
    assert legend_of(figure) == ["APD (TAU 1.0)", "APD (TAU 4.0)"]
    assert drawn(figure.axes[0])["APD (TAU 4.0)"][1] == [84, 84, 84]


def test_two_threat_models_of_one_name_are_refused(save, runs):
    one, other = save(), save(method="APT", threat={"alpha": 0.5})
    with pytest.raises(UserError, match="two threat models") as error:
        few_shot(runs())
    assert str(one) in str(error.value) and str(other) in str(error.value)


def test_one_run_twice_is_refused(save, runs):
    one, other = save("one"), save("other")
    with pytest.raises(UserError, match="seed 1 twice") as error:
        few_shot(runs())
    assert str(one) in str(error.value) and str(other) in str(error.value)


# -- scatter ---------------------------------------------------------------------------------------


def test_scatter_has_a_labelled_point_a_method(sweep, runs):
    sweep()
    figures = scatter(runs())
    assert [stem.rsplit("_", 1)[1] for stem in figures] == ["16shots", "4shots", "1shots"]
    (axes,) = figures["scatter_Digits_mini_embedded_4shots"].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("clean accuracy (%)", "robust accuracy (%)")
    assert labels(axes) == {"ZeroshotCLIP": (50, 5), "CoOp": (67, 24), "APD": (77, 34)}
    assert not figures["scatter_Digits_mini_embedded_4shots"].legends  # labels say it already


def test_scatter_of_several_data_sets_is_their_average(sweep, runs):
    sweep("Digits")
    sweep("Letters", lower=10)
    figures = scatter(runs())
    assert {stem.split("_")[1] for stem in figures} == {"average"}
    (axes,) = figures["scatter_average_mini_embedded_4shots"].axes
    assert labels(axes)["APD"] == (72, 29)


def test_scatter_leaves_out_attacks_that_few_methods_met(save, runs):
    rare = record("autoattack", 30.0, THREAT)
    for method in ("CoOp", "APT", "APD"):
        save(method=method)
    usual = [record("clean", 80.0), record("pgd-100", 40.0, THREAT)]
    save("more", method="FAP", evaluations=[*usual, rare])
    (figure,) = scatter(runs()).values()
    assert [axes.get_title() for axes in figure.axes] == ["PGD-100, linf eps 2/255"]
    assert len(labels(figure.axes[0])) == 4


def labels(axes):
    """Label -> the point that it is of."""
    return {text.get_text(): text.xy for text in axes.texts if text.get_text()}


def bars(axes):
    """Method -> half lengths of its bars, in x and y."""
    halves = {}
    for container in axes.containers:
        across, up = (bar.get_segments()[0] for bar in container.lines[2])
        halves[container.get_label()] = (np.ptp(across[:, 0]) / 2, np.ptp(up[:, 1]) / 2)
    return halves


def test_scatter_has_bars_over_images_where_there_is_one_seed(save, runs):
    for dataset in ("Digits", "Letters"):
        for method, robust in (("CoOp", 20.0), ("APD", 50.0)):
            save(f"{dataset}/{method}", dataset=dataset, method=method, clean=80.0, robust=robust)
    ((_, figure),) = scatter(runs()).items()
    assert figure.get_suptitle().endswith("1 seed; bars: standard error over test images")
    over_images = {p: (p * (1 - p) / 500 / 2) ** 0.5 * 100 for p in (0.2, 0.5, 0.8)}  # 2 data sets
    expected = {"CoOp": (over_images[0.8], over_images[0.2])}
    expected["APD"] = over_images[0.8], over_images[0.5]
    assert bars(figure.axes[0]) == {name: pytest.approx(both) for name, both in expected.items()}


def test_scatter_has_bars_of_one_deviation_over_seeds(save, runs):
    for method, gain in (("CoOp", 0), ("APD", 10)):
        for seed in (1, 2):
            fields = {"clean": 60.0 + 2 * seed, "robust": 30.0 + gain + 4 * seed}
            save(f"{method}/{seed}", method=method, seed=seed, threat={"seed": seed}, **fields)
    (figure,) = scatter(runs()).values()
    assert "mean ± std of 2 seeds" in figure.get_suptitle()
    deviation = pytest.approx((2**0.5, 2 * 2**0.5))
    assert bars(figure.axes[0]) == {"CoOp": deviation, "APD": deviation}


def test_scatter_of_a_part_of_large_sets_and_all_of_small_ones_is_one_average(save, runs):
    for dataset, total in (("Digits", 500), ("Pets", 360)):
        part = {"images": {"count": 500, "seed": 0}} if dataset == "Digits" else {}
        for method, robust in (("CoOp", 20.0), ("APD", 50.0)):
            fields = {"total": total, **part}
            evaluations = [record("clean", 80.0, **fields)]
            evaluations.append(record("pgd-100", robust, THREAT, **fields))
            save(f"{dataset}/{method}", dataset=dataset, method=method, evaluations=evaluations)
    ((stem, figure),) = scatter(runs()).items()
    assert "average" in stem
    assert figure.axes[0].get_title() == "PGD-100, linf eps 2/255, at most 500 images"
    assert labels(figure.axes[0]) == {"CoOp": (80, 20), "APD": (80, 50)}


def test_small_differences_do_not_fill_the_axes(save, runs):
    for method, gain in (("CoOp", 0.0), ("APD", 0.8)):
        save(method=method, clean=99.0 + gain, robust=40.0 + gain)
    (figure,) = scatter(runs()).values()
    for low, high in (figure.axes[0].get_xlim(), figure.axes[0].get_ylim()):
        assert high - low == pytest.approx(10) and 0 <= low and high <= 100


def test_what_an_outlier_squeezes_is_drawn_larger_in_a_corner(save, runs):
    near = dict(zip(("CoOp", "APT", "AdvVPT", "AdvIVLP", "APD"), (80.0, 81.0, 82.0, 83.0, 84.0)))
    for method, clean in near.items():
        save(method=method, clean=clean, robust=clean - 40)
    save(method="FAP", clean=40.0, robust=5.0)
    (figure,) = scatter(runs()).values()
    (axes,) = figure.axes
    (inset,) = (child for child in axes.child_axes if child.containers)
    assert labels(inset) == {name: (clean, clean - 40) for name, clean in near.items()}
    assert labels(axes) == {"FAP": (40, 5)}
    low, high = inset.get_xlim()
    assert 78 < low < 80 and 84 < high < 86
    at = axes.transAxes.inverted().transform(
        axes.transData.transform([(c, c - 40) for c in near.values()] + [(40, 5)])
    )
    corner = axes.transAxes.inverted().transform(inset.bbox.corners())
    assert not Bbox([corner.min(axis=0), corner.max(axis=0)]).count_contains(at)


@pytest.mark.parametrize(
    ("values", "squeezed"),
    [
        ([1, 2, 3, 50], [1, 2, 3]),  # one outlier of four
        ([1, 50, 51, 52, 53, 54, 55, 99], []),  # one at either side: neither gap tells
        ([1, 2, 50, 51], []),  # as many on either side
        ([1, 20, 40, 60], []),
        ([7, 7, 7], []),
        ([5], []),
    ],
)
def test_outliers_are_few_and_far(values, squeezed):
    points = {str(value) + "x" * i: (float(value), 0.0) for i, value in enumerate(values)}
    assert [points[name][0] for name in crowd(points)] == squeezed


def test_labels_neither_overlap_nor_leave_the_axes():
    _, (axes,) = panels(1, "", 5.0, 3.8)
    names = ["AdvIVLP", "AdvMaPLe", "AdvVPT", "APT", "APD", "ZeroshotCLIP"]
    points = [(50, 20), (50.2, 20.1), (50.1, 19.8), (49.9, 20.3), (70, 40), (70, 20)]
    draw_points(axes, {name: [point] for name, point in zip(names, points)}, styles(names))
    axes.margins(0.12)
    label_points(axes)
    for text in axes.texts:
        box = text.get_window_extent()
        assert axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
    # texts without a word are pale lines to labels that are far away; they may cross other labels
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:i])


# -- eps -------------------------------------------------------------------------------------------


def test_eps_curves_take_what_apd_eval_added_and_begin_at_the_clean_accuracy(save, runs):
    images = {"images": {"count": 4, "seed": 0}, "total": 4}
    for seed, wrong in ((1, 1), (2, 2)):
        run = save(seed=seed, fingerprint="m", threat={"seed": seed})
        for eps, robust in ((1, 50.0), (2, 25.0)):
            threat = {**THREAT, "eps": eps, "alpha": eps / 4, "steps": 20, "seed": seed}
            key = f"{seed}-{eps}"
            counts = images | {"correct": round(robust / 25)}
            one = record("pgd-20", robust, threat, key=key, flags={}) | counts
            keep_verdicts(run, one, [-1] * wrong + [0] * (4 - wrong))
    ((stem, figure),) = eps_curves(runs()).items()
    (axes,) = figure.axes  # PGD-100 has one radius only
    assert axes.get_title() == "PGD-20, linf, 4 images"
    # of these 4 images, 75 % and 50 % were right when clean; the 85 % are of all images
    assert drawn(axes)["APD"] == ([0, 1, 2], [62.5, 50, 25])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("eps (1/255)", "robust accuracy (%)")
    assert stem == "eps_Digits_mini_embedded_16shots" and "2 seeds" in figure.get_suptitle()


def test_two_points_are_no_curve(save, runs):
    for shots in (1, 2):  # one radius, and the clean accuracy at eps 0
        write_history(save(f"{shots}", shots=shots), [3, 2])
    assert eps_curves(runs()) == few_shot(runs()) == training(runs()) == {}


# -- training --------------------------------------------------------------------------------------


def write_history(run, losses, **columns):
    columns = {"lr": 0.1, "seconds": 1.5, **columns}
    lines = [",".join(["epoch", *columns, "loss"])]
    for epoch, loss in enumerate(losses, start=1):
        lines.append(",".join(map(str, [epoch, *columns.values(), loss])))
    (run / "history.csv").write_text("\n".join(lines) + "\n")


def test_training_curves_are_means_over_seeds_of_all_logged_terms(save, runs):
    write_history(save(seed=1), [3, 2, 1], kd=1)
    write_history(save(seed=2, threat={"seed": 2}), [5, "", 2], kd=2)
    write_history(save(method="CoOp"), [4, 3, 2])
    save(method="ZeroshotCLIP", **ZERO)
    ((stem, figure),) = training(runs()).items()
    assert stem == "training_Digits_mini_embedded_16shots"
    panels = {axes.get_ylabel(): axes for axes in figure.axes}
    assert set(panels) == {"loss", "loss term kd", "learning rate"}
    assert figure.axes[-1] is panels["learning rate"]
    epochs = [1, 2, 3]
    assert drawn(panels["loss"]) == {"CoOp": (epochs, [4, 3, 2]), "APD": (epochs, [4, 2, 1.5])}
    assert drawn(panels["loss term kd"]) == {"APD": (epochs, [1.5, 1.5, 1.5])}
    assert {axes.get_xlabel() for axes in figure.axes} == {"epochs"}
    assert "1 to 2 seeds" in figure.get_suptitle()


@pytest.mark.parametrize("text", ["", "epoch,loss\n1\n", "epoch,loss\n1,x\n", "loss\n1\n"])
def test_a_damaged_history_is_named(save, runs, text):
    path = save() / "history.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="damaged") as error:
        training(runs())
    assert str(path) in str(error.value)


# -- style -----------------------------------------------------------------------------------------


def test_a_method_looks_the_same_in_every_figure_and_unlike_the_others(sweep, runs):
    sweep()
    found = runs()
    (curves,) = few_shot(found).values()
    points, *_ = scatter(found).values()
    line = next(line for line in curves.axes[0].get_lines() if line.get_label() == "APD")
    point = next(one for one in points.axes[0].containers if one.get_label() == "APD").lines[0]
    for handle in (line, point):
        assert (to_hex(handle.get_color()), handle.get_marker()) == ("#d55e00", "o")
    methods = [f"New{i}" for i in range(12)]
    methods += ["ZeroshotCLIP", "ZeroshotCLIP2", "CoOp", "VPT", "IVLP", "MaPLe", "APT", "AdvPT"]
    methods += [
        "AdvVPT",
        "AdvIVLP",
        "AdvMaPLe",
        "FAP",
        "CBAFAPT",
        "MMoP",
        "TTC",
        "RTPT",
        "TAPT",
        "APD",
    ]
    found = styles(methods)
    assert len({(s["color"], s["marker"], s["linestyle"]) for s in found.values()}) == 30
    known = [found[method] for method in methods[12:]]
    assert len({(s["marker"], s["linestyle"]) for s in known}) == 18  # without colour
    assert styles(["APD", "Other"])["APD"] == found["APD"]


@pytest.mark.parametrize("form", ["svg", "pdf", "png"])
def test_the_same_runs_give_the_same_bytes(sweep, runs, form):
    sweep()
    once, again = (rendered(*few_shot(runs()).values(), form) for _ in range(2))
    assert once == again


def test_a_name_that_looks_like_a_formula_is_drawn_as_it_is(save, runs):
    for shots in (1, 2, 4):
        save(f"{shots}", method=r"$\frac$ <b>", shots=shots)
    (figure,) = few_shot(runs()).values()
    assert legend_of(figure) == [r"$\frac$ <b>"]
    assert b"<b>" not in rendered(figure, "svg")


# -- command ---------------------------------------------------------------------------------------


def test_command_writes_every_kind_that_suits(sweep, tmp_path, capsys):
    sweep()
    assert main([str(tmp_path), "-o", str(tmp_path / "out"), "--format", "png", "svg"]) == 0
    written = capsys.readouterr().out.split()
    assert sorted(written) == sorted(map(str, (tmp_path / "out").iterdir()))
    kinds = Counter(Path(path).name.partition("_")[0] for path in written)
    assert (kinds["few-shot"], kinds["scatter"]) == (2 * 1, 2 * 3)  # at three numbers of shots
    assert not kinds.keys() & {"eps", "training"}
    with Image.open(tmp_path / "out" / "few-shot_Digits_mini_embedded.png") as image:
        assert image.format == "PNG" and min(image.size) > 400
    assert "<svg" in (tmp_path / "out" / "few-shot_Digits_mini_embedded.svg").read_text()


def test_every_kind_has_its_row_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "figures.md").read_text()
    assert all(f"\n| `{kind}` | " in text for kind in KINDS)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--kind", "pie"], f"no kind pie: use {', '.join([*KINDS, *OVER_TASKS])}"),
        (["--format", "jpg"], "no format jpg: use png, pdf, svg"),
        (["--kind", "few-shot"], "nothing to draw"),
        (["--kind", "scatter", "eps", "training"], "nothing to draw"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(save, tmp_path, capsys, options, told):
    save()
    assert main([str(tmp_path), "-o", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
