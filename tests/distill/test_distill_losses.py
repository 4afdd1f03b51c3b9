"""The distillation losses against loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apd.distill import feature_alignment, kl_distillation, mean_probability

B, C = 5, 7


@pytest.fixture
def logits():
    return 3 * torch.randn(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def target():
    return 3 * torch.randn(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def softmax(row):
    exponentials = [math.exp(z) for z in row]
    return [e / sum(exponentials) for e in exponentials]


def kl_by_hand(logits, target, tau):
    total = 0.0
    for row, target_row in zip(logits.tolist(), target.tolist()):
        p = softmax([z / tau for z in row])
        q = softmax([z / tau for z in target_row])
        total += sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q))
    return tau * tau * total / len(logits)


def alignment_by_hand(features, target):
    total = 0.0
    for a, b in zip(features.tolist(), target.tolist()):
        dot = sum(x * y for x, y in zip(a, b))
        total += 1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return total / len(features)


@pytest.mark.parametrize("tau", [0.5, 1, 4])
def test_kl_equals_the_hand_computation(logits, target, tau):
    want = kl_by_hand(logits, target, tau)
    assert kl_distillation(logits, target, tau).item() == pytest.approx(want, rel=1e-12)
    single = kl_distillation(logits.float(), target.float(), tau)
    assert single.item() == pytest.approx(want, rel=1e-5)


def test_kl_has_temperature_1_by_default(logits, target):
    assert torch.equal(kl_distillation(logits, target), kl_distillation(logits, target, 1.0))


@pytest.mark.parametrize("tau", [0.5, 1, 4])
def test_kl_gradient_is_tau_times_the_difference_of_softened_probabilities(logits, target, tau):
    logits.requires_grad_()
    kl_distillation(logits, target, tau).backward()
    for row, target_row, gradient in zip(logits.tolist(), target.tolist(), logits.grad.tolist()):
        p = softmax([z / tau for z in row])
        q = softmax([z / tau for z in target_row])
        assert gradient == pytest.approx([tau * (a - b) / B for a, b in zip(p, q)], rel=1e-9)


def test_kl_gradient_keeps_its_size_at_high_temperature(logits, target):
    """tau^2 cancels the 1/tau^2 of softened gradients (Hinton 2015, section 2)."""

    def gradient(tau):
        z = logits.clone().requires_grad_()
        kl_distillation(z, target, tau).backward()
        return z.grad

    # the limit: difference of centred logits / C
    centred = (logits - logits.mean(-1, keepdim=True)) - (target - target.mean(-1, keepdim=True))
    assert torch.allclose(gradient(1e4), centred / C / B, atol=1e-3)


def test_kl_takes_the_target_as_the_first_argument_of_the_divergence(logits, target):
    """KL(target || logits): exchanging the roles is another loss."""
    p = torch.tensor([[0.9, 0.1]]).log()
    q = torch.tensor([[0.5, 0.5]]).log()
    one = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    other = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert kl_distillation(p, q).item() == pytest.approx(one, rel=1e-5)
    assert kl_distillation(q, p).item() == pytest.approx(other, rel=1e-5)
    want = kl_by_hand(target, logits, 2)
    assert kl_distillation(target, logits, 2).item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("tau", [0.5, 1, 4])
def test_kl_of_equal_distributions_is_zero_with_zero_gradient(logits, tau):
    shifted = logits + torch.arange(B)[:, None]  # softmax does not see a shift
    logits.requires_grad_()
    loss = kl_distillation(logits, shifted, tau)
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert logits.grad.abs().max() < 1e-12


@pytest.mark.parametrize("loss", [kl_distillation, feature_alignment])
def test_no_gradient_reaches_the_target(logits, target, loss):
    logits.requires_grad_(), target.requires_grad_()
    loss(logits, target).backward()
    assert target.grad is None
    assert logits.grad.abs().min() > 0


@pytest.mark.parametrize("loss", [kl_distillation, feature_alignment])
def test_losses_are_means_over_rows(logits, target, loss):
    rows = torch.stack([loss(logits[i : i + 1], target[i : i + 1]) for i in range(B)])
    assert loss(logits, target).item() == pytest.approx(rows.mean().item(), rel=1e-12)
    assert loss(logits, target).dim() == 0


@pytest.mark.parametrize("tau", [0.5, 1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_of_extreme_logits_is_finite(dtype, tau):
    logits = torch.tensor([[1e4, -1e4, 0], [0, 0, 0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[-1e4, 1e4, 0], [1e4, 0, -1e4]], dtype=dtype)
    loss = kl_distillation(logits, target, tau)
    loss.backward()
    assert loss.item() == pytest.approx(tau**2 * (2e4 / tau + math.log(3)) / 2, rel=1e-6)
    assert torch.isfinite(logits.grad).all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    tau=st.floats(0.1, 10),
    rows=st.lists(
        st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=4, max_size=4),
        min_size=1,
        max_size=3,
    ),
)
def test_kl_equals_the_hand_computation_for_any_logits(tau, rows):
    logits, target = torch.tensor(rows, dtype=torch.float64).unbind(-1)
    loss = kl_distillation(logits, target, tau).item()
    assert loss == pytest.approx(kl_by_hand(logits, target, tau), rel=1e-9, abs=1e-9)
    assert loss > -1e-12


def test_alignment_equals_the_hand_computation(logits, target):
    want = alignment_by_hand(logits, target)
    assert feature_alignment(logits, target).item() == pytest.approx(want, rel=1e-12)
    single = feature_alignment(logits.float(), target.float())
    assert single.item() == pytest.approx(want, rel=1e-5)


def test_alignment_depends_on_directions_only(logits, target):
    scale = torch.arange(1, B + 1)[:, None]
    want = feature_alignment(logits, target).item()
    assert feature_alignment(scale * logits, target / scale).item() == pytest.approx(want)


def test_alignment_runs_from_0_for_equal_to_2_for_opposite_features(logits):
    assert feature_alignment(logits, logits).item() == pytest.approx(0, abs=1e-12)
    assert feature_alignment(logits, -logits).item() == pytest.approx(2)


def test_alignment_gradient_turns_features_towards_the_target(logits, target):
    logits.requires_grad_()
    before = feature_alignment(logits, target)
    before.backward()
    with torch.no_grad():
        assert feature_alignment(logits - 0.1 * logits.grad, target) < before
        # moving along a feature changes nothing, so its gradient is at right angles
        assert (logits * logits.grad).sum(-1).abs().max() < 1e-12


def test_mean_probability_is_the_log_of_the_mean_of_softmaxes(logits, target):
    got = mean_probability(logits, 50 * target)  # as far apart as CLIP's logits can be
    for row, first, second in zip(got.tolist(), logits.tolist(), (50 * target).tolist()):
        wanted = [(a + b) / 2 for a, b in zip(softmax(first), softmax(second))]
        assert [math.exp(z) for z in row] == pytest.approx(wanted, rel=1e-12)
    torch.testing.assert_close(mean_probability(logits).softmax(1), logits.softmax(1))
