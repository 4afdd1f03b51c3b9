"""Test-time defences, written out plainly from their published code, image by image.

What is random is given: noise, views. Nothing comes from ``apd``.
"""

import torch
from plain_clip import image_features
from plain_methods import MEAN, STD


def entropy(z):
    p = z.softmax(-1)
    return -(p * p.log()).sum(-1)


# -- TTC ------------------------------------------------------------------------------------------


def ttc(model, x, noise, eps, alpha, steps, tau, beta, clip):
    """Logits; ``clip`` is CLIP without prompts, whose embedding's drift decides."""
    rows = []
    for image, start in zip(x, noise):
        image, start = image[None], start[None]
        f = model.embeddings(image).detach()
        deltas = [(image + start).clamp(0, 1).detach() - image.detach()]
        original = clip.embeddings(image)
        drift = (clip.embeddings(image + deltas[0]) - original).norm() / original.norm()
        for _ in range(steps):
            delta = deltas[-1].clone().requires_grad_()
            distance = ((model.embeddings(image.detach() + delta) - f) ** 2).sum()
            (gradient,) = torch.autograd.grad(distance, delta)
            delta = (delta + alpha / 255 * gradient.sign()).detach()
            delta = delta.clamp(-eps / 255, eps / 255)
            deltas.append((image + delta).clamp(0, 1).detach() - image.detach())
        weights = torch.tensor([beta * t for t in range(steps + 1)], dtype=x.dtype).exp()
        added = sum(w / weights.sum() * d for w, d in zip(weights, deltas))
        if drift >= tau:
            added = deltas[0]
        rows.append(model.logits(image + added))
    return torch.cat(rows)


# -- tuning ---------------------------------------------------------------------------------------


def adamw(prompts, loss, steps, lr):
    """PyTorch's AdamW with its default numbers, through which gradients go."""
    m = {name: 0 for name in prompts}
    v = {name: 0 for name in prompts}
    for t in range(1, steps + 1):
        value = loss(prompts)
        gradients = torch.autograd.grad(value, list(prompts.values()), create_graph=True)
        new = {}
        for (name, p), g in zip(prompts.items(), gradients):
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g * g
            step = m[name] / (1 - 0.9**t) / ((v[name] / (1 - 0.999**t)).sqrt() + 1e-8)
            new[name] = p - lr * 0.01 * p - lr * step
        prompts = new
    return prompts


def leaves(model):
    return {name: p.detach().clone().requires_grad_() for name, p in model.prompts.items()}


def most_confident(model, views, share):
    order = entropy(model.logits(views)).argsort()
    return views[order[: int(share * len(views))]]


# -- R-TPT ----------------------------------------------------------------------------------------


def rtpt(model, views, steps, lr, share, neighbours, temperature):
    """Logits, from the views (V, 3, R, R) of each image."""
    rows = []
    for mine in views:
        chosen = most_confident(model, mine, share)
        tuned = adamw(
            leaves(model),
            lambda p, x=chosen: entropy(model.with_prompts(p).logits(x)).mean(),
            steps,
            lr,
        )
        z, v = model.with_prompts(tuned).logits(mine), model.image(mine)
        scores = []
        for i in range(len(v)):
            cosines = torch.stack([v[i] @ v[j] for j in range(len(v)) if j != i])
            scores.append(cosines.sort(descending=True)[0][:neighbours].mean())
        weights = (torch.stack(scores) / temperature).softmax(0)
        rows.append(sum(w * row for w, row in zip(weights, z)))
    return torch.stack(rows)


# -- TAPT -----------------------------------------------------------------------------------------


def tokens_of(model, images):
    """(layers, B, L + M, D): what each visual layer is given."""
    found = []
    _, context = model.contexts()
    image_features(model.model.visual, (images - MEAN) / STD, context, tokens=found)
    return torch.stack(found)


def moments(model, tokens, correction):
    """Mean and variance (layers, L + M, D), those of the layers' own context without rounding."""
    mean = tokens.mean(1)
    variance = ((tokens - mean[:, None]) ** 2).sum(1) / (tokens.shape[1] - correction)
    _, context = model.contexts()
    own = torch.zeros_like(mean, dtype=torch.bool)
    own[: len(context), -len(context[0]) :] = True
    return torch.where(own, tokens[:, 0], mean), variance.masked_fill(own, 0)


def tapt(model, x, views, statistics, steps, lr, share, distr_w, gamma, first, last):
    """Logits; ``statistics``: ``moments`` of attacked and of clean images."""
    rows = []
    for image, mine in zip(x, views):
        chosen = most_confident(model, mine, share)

        def loss(prompts, chosen=chosen):
            tuned = model.with_prompts(prompts)
            p = tuned.logits(chosen).softmax(1).mean(0)
            mean, variance = moments(tuned, tokens_of(tuned, chosen), correction=0)
            apart = 0
            for layer in range(first, last - 1):
                for weight, (means, variances) in zip((gamma, 1 - gamma), statistics):
                    distance = (mean[layer] - means[layer]).abs().mean()
                    distance = distance + (variance[layer] - variances[layer]).abs().mean()
                    apart = apart + weight * distance / 2
            return -(p * p.log()).sum() + distr_w / (last - first) * apart

        tuned = adamw(leaves(model), loss, steps, lr)
        rows.append(model.with_prompts(tuned).logits(image[None]))
    return torch.cat(rows)
