"""Every method's logits and loss, written out plainly from the formulas.

Nothing comes from ``apd``: prompts are tensors under the names that they have in a checkpoint, and
CLIP's encoders are those of ``plain_clip``.
"""

import copy

import clip
import torch
from plain_clip import image_features, layout, text_features, tokens

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64).view(3, 1, 1)


class Plain:
    """CLIP with prompts.

    text: hand-written templates (several are an ensemble), or ``layout``'s arguments.
    prompts: context vectors and projections by name.
    """

    def __init__(self, model, names, text, prompts, coupling=""):
        self.model, self.names, self.prompts, self.coupling = model, names, prompts, coupling
        if isinstance(text, list):
            self.sentences = [[written(form, name) for name in names] for form in text]
        else:
            self.sentences = [[layout(name, **text) for name in names]]

    def contexts(self):
        """Of the text layers, of the visual layers."""
        if self.coupling == "mixtures":
            return self.mixtures("text"), self.mixtures("visual")
        text, visual = (
            [p for name, p in self.prompts.items() if name.startswith(part)]
            for part in ("text.", "visual.")
        )
        if self.coupling == "maple":  # P_v = W P_t + b in each layer
            visual = [self.project(i, context) for i, context in enumerate(text)]
        if self.coupling == "fap":  # so in the first layer, the other way round in all others
            visual = [self.project(0, text[0]), *visual]
            text += [self.project(i, visual[i]) for i in range(1, len(visual))]
        return text, visual

    def mixtures(self, part):
        layers = {name.split(".")[1] for name in self.prompts if name.startswith(part)}
        deeper = [Mixture(self.prompts, f"{part}.{i}") for i in range(1, len(layers))]
        return [self.prompts[f"{part}.0"], *deeper]

    def project(self, i, context):
        weight, bias = (self.prompts[f"projections.{i}.{name}"] for name in ("weight", "bias"))
        return torch.stack([weight @ vector + bias for vector in context])

    def text(self, seen=None):
        context, _ = self.contexts()
        return unit(sum(unit(text_features(self.model, s, context, seen)) for s in self.sentences))

    def embeddings(self, images, seen=None):
        _, context = self.contexts()
        return image_features(self.model.visual, (images - MEAN) / STD, context, seen)

    def image(self, images, seen=None):
        return unit(self.embeddings(images, seen))

    def logits(self, images):
        return self.logits_of(self.embeddings(images))

    def logits_of(self, embeddings):
        return self.model.logit_scale.exp() * unit(embeddings) @ self.text().t()

    def with_prompts(self, prompts):
        other = copy.copy(self)
        other.prompts = prompts
        return other


class Mixture:
    """MMoP's context of a layer: b + alpha (sum_e w_e p_e - b), for each sequence of tokens."""

    def __init__(self, prompts, name):
        parts = ("base", "experts", "gate.weight", "gate.bias", "tau", "alpha")
        self.base, self.experts, self.weight, self.bias, tau, alpha = (
            prompts[f"{name}.{part}"] for part in parts
        )
        self.tau, self.alpha = (1 + tau.exp()).log(), (1 + alpha.exp()).log()  # softplus
        self.shape = self.base.shape

    def __call__(self, sequences):
        contexts = []
        for sequence in sequences:
            scores = self.weight @ (sum(sequence) / len(sequence)) + self.bias
            weights = torch.exp(scores / self.tau)
            mixed = sum(w * expert for w, expert in zip(weights / weights.sum(), self.experts))
            contexts.append(self.base + self.alpha * (mixed - self.base))
        return torch.stack(contexts)


def written(template, name):
    start, end = clip.tokenize("")[0, :2].tolist()
    return [start, *tokens(template.format(name.replace("_", " "))), end]


def unit(x):
    return x / (x * x).sum(-1, keepdim=True).sqrt()


def ce(z, y):
    return -torch.stack([(row.softmax(0)[label]).log() for row, label in zip(z, y)]).mean()


def kl(z, other):
    """KL(softmax(z) || softmax(other)) of each image."""
    p, q = z.softmax(1), other.softmax(1)
    return (p * (p / q).log()).sum(1)


# -- attacks ----------------------------------------------------------------------------------


def pgd(images, gradient, eps, alpha, steps, generator=None):
    """x' from a random start, ``steps`` signed steps up ``gradient`` (x), each put back into the
    ball and into [0, 1]."""
    x = images + torch.empty_like(images).uniform_(-eps / 255, eps / 255, generator=generator)
    x = x.clamp(0, 1)
    for _ in range(steps):
        x = x + alpha / 255 * gradient(x).sign()
        x = x.clamp(images - eps / 255, images + eps / 255).clamp(0, 1)
    return x


def slope(loss):
    """The gradient of ``loss`` (x) at x."""

    def gradient(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(x), x)[0]

    return gradient


def up_ce(model, y):
    return slope(lambda x: ce(model.logits(x), y))


def up_ce_of_constant(model, y):
    """The loss of hand-written prompts (APT, "constant")."""
    return up_ce(Plain(model.model, model.names, ["a photo of a {}"], {}), y)


def up_ce_with_prompts(model, y, rate):
    """The prompts, a copy of them, go up the same loss (APT, "perturbed")."""
    model = model.with_prompts(
        {n: p.detach().clone().requires_grad_() for n, p in model.prompts.items()}
    )

    def gradient(x):
        x = x.detach().requires_grad_()
        names, contexts = zip(*model.prompts.items())
        first, *others = torch.autograd.grad(ce(model.logits(x), y), [x, *contexts])
        model.prompts = {
            n: (p + rate * g).detach().requires_grad_() for n, p, g in zip(names, contexts, others)
        }
        return first

    return gradient


# -- losses: {whose prompts go down it: loss} ---------------------------------------------------


def clean(student, x, y):
    return {"prompt_learner": ce(student.logits(x), y)}


def adversarial(student, x, y, up=up_ce, first=0, **threat):
    """CE(z(x'), y); the images before ``first`` stay clean."""
    attacked = pgd(x[first:], up(student, y[first:]), **threat)
    return clean(student, torch.cat([x[:first], attacked]), y)


def fap(student, x, y, weight, **threat):
    z, v = student.logits(x), student.image(x)
    attacked = pgd(x, slope(lambda a: kl(z.detach(), student.logits(a)).sum()), **threat)
    cosine = (v * student.image(attacked)).sum(1)
    consistency = (kl(z, student.logits(attacked)) * (cosine + 1)).mean()
    return {"prompt_learner": ce(z, y) + weight * consistency}


def cbafapt(student, x, y, weights, logit=True, **threat):
    adv = pgd(x, up_ce(student, y), **threat)
    image = text = 0
    for k, label in enumerate(y):
        (a_v, a_t), (b_v, b_t) = (
            attribution(student, images[k], label, logit) for images in (x, adv)
        )
        image += ((a_v - b_v) ** 2).sum().sqrt() / len(y)
        text += kl(a_t[None], b_t[None])[0] / len(y)
    terms = {"ADV": ce(student.logits(adv), y), "VAA": image, "TAA": text}
    return {
        "prompt_learner": ce(student.logits(x), y) + sum(w * terms[n] for n, w in weights.items())
    }


def attribution(student, x, label, logit):
    """The maps of an image's patches, and of its class's tokens between start and end."""
    sight, words, last = {}, {}, len(student.sentences[0][label]) - 1
    score = student.image(x[None], sight)[0] @ student.text(words)[label]
    if logit:
        score = student.model.logit_scale.exp() * score
    slopes = torch.autograd.grad(score, [sight["output"], words["output"]], create_graph=True)
    patches = len(student.model.visual.positional_embedding) - 1
    asked = ((sight, 0, 0, patches + 1), (words, label, last, last))
    maps = []
    for slope, (seen, row, read, end) in zip(slopes, asked):
        q, k, v = (seen[name][row] for name in ("queries", "keys", "values"))
        cosine = [unit(q[read]) @ unit(k[i]) for i in range(end)]
        maps.append(
            torch.stack([(slope[row, read] * cosine[i] * v[i]).sum() for i in range(1, end)])
        )
    return maps


def advpt_embeddings(student, x, generator, **threat):
    f = student.embeddings
    return f(pgd(x, slope(lambda a: kl(f(x), f(a)).sum()), generator=generator, **threat))


def apd(student, teacher, x, y, weights, online, tau=1, beta=0, attack="ce", **threat):
    z_t, v_t, t_t = teacher.logits(x), teacher.image(x), teacher.text()
    up = {
        "ce": up_ce(student, y),
        "kl": slope(lambda a: kl(z_t.detach(), student.logits(a)).sum()),
    }[attack]
    attacked = pgd(x, up, **threat)
    z_s, v_s, t_s = student.logits(attacked), student.image(attacked), student.text()
    terms = {
        "CE": lambda: ce(z_s, y),
        "KD": lambda: tau**2 * kl(z_t / tau, z_s / tau).mean(),
        "NAT": lambda: ce(student.logits(x), y),
        "KD_NAT": lambda: tau**2 * kl(z_t / tau, student.logits(x) / tau).mean(),
        "IMG": lambda: (1 - (v_s * v_t).sum(1)).mean(),
        "TXT": lambda: (1 - (t_s * t_t).sum(1)).mean(),
    }
    losses = {"prompt_learner": sum(w * terms[name]() for name, w in weights.items())}
    if online:
        losses["teacher"] = ce(z_t, y) + beta * tau**2 * kl(z_s / tau, z_t / tau).mean()
    return losses
