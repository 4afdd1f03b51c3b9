"""The order in which a loader reads a list of ``Datum``.

For one seed these draw the same images as Dassl's samplers do.
"""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from apd.errors import UserError
from apd.host.embedded.registry import check_availability


class _ListSampler(Sampler):
    """Draws a whole epoch as one list; its length is that of a first draw."""

    def __init__(self) -> None:
        self.length = len(self.draw())

    def draw(self) -> list[int]:
        raise NotImplementedError

    def __iter__(self):
        return iter(self.draw())

    def __len__(self) -> int:
        return self.length


class RandomClassSampler(_ListSampler):
    """Batches of ``batch_size // n_ins`` random classes with ``n_ins`` images each."""

    def __init__(self, data_source, batch_size: int, n_ins: int) -> None:
        if batch_size < n_ins:
            raise UserError(f"RandomClassSampler: N_INS {n_ins} exceeds BATCH_SIZE {batch_size}")
        self.n_ins, self.ncls_per_batch = n_ins, batch_size // n_ins
        self.index_dic = _indices_by(data_source, "label")
        if len(self.index_dic) < self.ncls_per_batch:
            raise UserError(
                f"RandomClassSampler: BATCH_SIZE {batch_size} with N_INS {n_ins} needs "
                f"{self.ncls_per_batch} classes, and there are {len(self.index_dic)}"
            )
        super().__init__()

    def draw(self) -> list[int]:
        groups = {}
        for label, indices in self.index_dic.items():
            indices = list(indices)
            if len(indices) < self.n_ins:
                indices = np.random.choice(indices, size=self.n_ins, replace=True).tolist()
            random.shuffle(indices)
            starts = range(0, len(indices) - self.n_ins + 1, self.n_ins)
            groups[label] = [indices[i : i + self.n_ins] for i in starts]
        labels, order = list(groups), []
        while len(labels) >= self.ncls_per_batch:
            for label in random.sample(labels, self.ncls_per_batch):
                order += groups[label].pop(0)
                if not groups[label]:
                    labels.remove(label)
        return order


class _DomainSampler(_ListSampler):
    """Batches with equally many images of each domain of ``batch_domains``."""

    def __init__(self, data_source, batch_size: int, n_domain: int) -> None:
        self.domain_dict = _indices_by(data_source, "domain")
        self.n_domain = n_domain if n_domain > 0 else len(self.domain_dict)
        if batch_size % self.n_domain:
            raise UserError(
                f"{type(self).__name__}: BATCH_SIZE {batch_size} is no multiple of the "
                f"{self.n_domain} domains in a batch"
            )
        self.n_img_per_domain = batch_size // self.n_domain
        super().__init__()

    def batch_domains(self) -> list[int]:
        raise NotImplementedError

    def draw(self) -> list[int]:
        left = {domain: list(indices) for domain, indices in self.domain_dict.items()}
        order, enough = [], True
        while enough:
            for domain in self.batch_domains():
                drawn = random.sample(left[domain], self.n_img_per_domain)
                order += drawn
                left[domain] = [index for index in left[domain] if index not in drawn]
                enough = enough and len(left[domain]) >= self.n_img_per_domain
        return order


class RandomDomainSampler(_DomainSampler):
    """Each batch draws ``n_domain`` domains (0: all)."""

    def batch_domains(self) -> list[int]:
        return random.sample(list(self.domain_dict), self.n_domain)


class SeqDomainSampler(_DomainSampler):
    """Each batch has all domains, in order."""

    def __init__(self, data_source, batch_size: int) -> None:
        super().__init__(data_source, batch_size, n_domain=0)

    def batch_domains(self) -> list[int]:
        return sorted(self.domain_dict)


def _indices_by(data_source, attribute: str) -> dict[int, list[int]]:
    indices = defaultdict(list)
    for index, item in enumerate(data_source):
        indices[getattr(item, attribute)].append(index)
    return indices


def build_sampler(
    sampler_type: str, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16
) -> Sampler:
    """Build the sampler of that name over ``data_source``, a list of ``Datum``."""
    choices = {
        "RandomSampler": lambda: RandomSampler(data_source),
        "SequentialSampler": lambda: SequentialSampler(data_source),
        "RandomDomainSampler": lambda: RandomDomainSampler(data_source, batch_size, n_domain),
        "SeqDomainSampler": lambda: SeqDomainSampler(data_source, batch_size),
        "RandomClassSampler": lambda: RandomClassSampler(data_source, batch_size, n_ins),
    }
    check_availability(sampler_type, choices)
    return choices[sampler_type]()
