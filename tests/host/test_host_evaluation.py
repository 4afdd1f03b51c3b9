import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from apd.host import HOST, build_evaluator, compute_accuracy, get_cfg_default

CLASSES = {0: "ant", 1: "bee", 2: "cat", 3: "dog"}


@pytest.fixture
def predictions():
    """Scores (1500, 4) and labels (1500,); class 3 is predicted but never true."""
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (1500,))
    return torch.randn(1500, 4) + 2 * torch.nn.functional.one_hot(labels, 4), labels


def evaluate(predictions, tmp_path, **options):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    for key, value in options.items():
        cfg.TEST[key] = value
    evaluator = build_evaluator(cfg, lab2cname=CLASSES)
    scores, labels = predictions
    evaluator.process(scores[:3], labels[:3])
    evaluator.reset()  # forgets these
    for part in range(0, 1500, 400):
        evaluator.process(scores[part : part + 400], labels[part : part + 400])
    return evaluator.evaluate()


def test_figures(predictions, tmp_path):
    results = evaluate(predictions, tmp_path)
    true, predicted = predictions[1].numpy(), predictions[0].argmax(1).numpy()
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    assert results["accuracy"] == pytest.approx(100 * accuracy_score(true, predicted))
    assert results["error_rate"] == pytest.approx(100 - 100 * accuracy_score(true, predicted))
    macro = f1_score(true, predicted, average="macro", labels=[0, 1, 2])
    assert results["macro_f1"] == pytest.approx(100 * macro)


def test_printed_block_is_what_coops_parser_reads(predictions, tmp_path, capsys):
    results = evaluate(predictions, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    correct = int((predictions[0].argmax(1) == predictions[1]).sum())
    assert lines[lines.index("=> result") :] == [
        "=> result",
        "* total: 1,500",
        f"* correct: {correct:,}",
        f"* accuracy: {results['accuracy']:.1f}%",
        f"* error: {results['error_rate']:.1f}%",
        f"* macro_f1: {results['macro_f1']:.1f}%",
    ]


def test_per_class_figures(predictions, tmp_path, capsys):
    results = evaluate(predictions, tmp_path, PER_CLASS_RESULT=True)
    true, predicted = predictions[1].numpy(), predictions[0].argmax(1).numpy()
    recalls = 100 * recall_score(true, predicted, average=None, labels=[0, 1, 2])
    assert results["perclass_accuracy"] == pytest.approx(recalls.mean())
    out = capsys.readouterr().out
    total, correct = (true == 1).sum(), ((true == 1) & (predicted == 1)).sum()
    assert "=> per-class result\n* class: 0 (ant)\t" in out
    assert (
        f"* class: 1 (bee)\ttotal: {total:,}\tcorrect: {correct:,}\tacc: {recalls[1]:.1f}%\n" in out
    )
    assert f"* average: {recalls.mean():.1f}%" in out


def test_confusion_matrix_file(predictions, tmp_path):
    evaluate(predictions, tmp_path, COMPUTE_CMAT=True)
    # upstream pickles a numpy array, which weights_only refuses
    matrix = torch.load(tmp_path / "cmat.pt", weights_only=HOST != "dassl")
    true, predicted = predictions[1].numpy(), predictions[0].argmax(1).numpy()
    expected = confusion_matrix(true, predicted, normalize="true")
    assert np.allclose(np.asarray(matrix), expected)


def top_k(scores, labels, k):
    best = scores.argsort(1, descending=True)[:, :k]
    return 100 * (best == labels[:, None]).any(1).double().mean().item()


def test_accuracy_of_a_batch(predictions):
    scores, labels = predictions
    (accuracy,) = compute_accuracy(scores, labels)
    assert accuracy.shape == (1,)
    assert accuracy.item() == pytest.approx(top_k(scores, labels, 1), rel=1e-5)
    assert compute_accuracy((scores, None), labels)[0].item() == accuracy.item()


@pytest.mark.skipif(HOST == "dassl", reason="upstream views a tensor that is not contiguous")
def test_top_k_accuracy_of_a_batch(predictions):
    scores, labels = predictions
    found = [accuracy.item() for accuracy in compute_accuracy(scores, labels, topk=(1, 2, 3))]
    assert found == pytest.approx([top_k(scores, labels, k) for k in (1, 2, 3)], rel=1e-5)
