"""A dataset: lists of images with labels, and the few-shot draw."""

from __future__ import annotations

import random
from collections import defaultdict

from apd.host.embedded.registry import Registry, check_availability
from apd.host.embedded.utils import check_isfile

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg) -> DatasetBase:
    """Build the dataset that ``cfg.DATASET.NAME`` names."""
    check_availability(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names())
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)


class Datum:
    """One image: its path, class label, domain label and class name; read-only."""

    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = ""):
        assert isinstance(impath, str), "impath must be a str"
        assert check_isfile(impath)
        self._impath, self._label = impath, label
        self._domain, self._classname = domain, classname

    impath = property(lambda self: self._impath)
    label = property(lambda self: self._label)
    domain = property(lambda self: self._domain)
    classname = property(lambda self: self._classname)


class DatasetBase:
    """The splits of a dataset, each a list of ``Datum``; ``train_u`` and ``val`` may be None.

    Labels count from 0; ``num_classes`` is the largest one of ``train_x`` plus 1.
    """

    dataset_dir = ""
    domains: list[str] = []

    def __init__(self, train_x=None, train_u=None, val=None, test=None) -> None:
        self._train_x, self._train_u, self._val, self._test = train_x, train_u, val, test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    train_x = property(lambda self: self._train_x)
    train_u = property(lambda self: self._train_u)
    val = property(lambda self: self._val)
    test = property(lambda self: self._test)
    lab2cname = property(lambda self: self._lab2cname)
    classnames = property(lambda self: self._classnames)
    num_classes = property(lambda self: self._num_classes)

    @staticmethod
    def get_num_classes(data_source) -> int:
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source) -> tuple[dict[int, str], list[str]]:
        """Return label to class name, and the class names in the order of their labels."""
        mapping = dict(sorted({(item.label, item.classname) for item in data_source}))
        return mapping, list(mapping.values())

    def check_input_domains(self, source_domains, target_domains) -> None:
        """Raise ValueError for a domain that is not in ``domains``."""
        for domains in (source_domains, target_domains):
            assert len(domains) > 0, "source and target domains must be given"
            self.is_input_domain_valid(domains)

    def is_input_domain_valid(self, input_domains) -> None:
        for domain in input_domains:
            check_availability(domain, self.domains)

    def generate_fewshot_dataset(self, *data_sources, num_shots: int = -1, repeat: bool = False):
        """Draw ``num_shots`` images per class from each list, with python's ``random``.

        A class with fewer gives all it has, or, with ``repeat``, draws with replacement. Below 1
        the lists come back as they are. Returns one list for one list, else several.
        """
        drawn = list(data_sources)
        if num_shots >= 1:
            drawn = [self._draw(source, num_shots, repeat) for source in data_sources]
        return drawn[0] if len(drawn) == 1 else drawn

    def _draw(self, data_source, num_shots: int, repeat: bool) -> list[Datum]:
        drawn = []
        for items in self.split_dataset_by_label(data_source).values():
            if len(items) >= num_shots:
                items = random.sample(items, num_shots)
            elif repeat:
                items = random.choices(items, k=num_shots)
            drawn += items
        return drawn

    def split_dataset_by_label(self, data_source) -> dict[int, list[Datum]]:
        return _group(data_source, "label")

    def split_dataset_by_domain(self, data_source) -> dict[int, list[Datum]]:
        return _group(data_source, "domain")


def _group(data_source, attribute: str) -> dict[int, list[Datum]]:
    groups = defaultdict(list)
    for item in data_source:
        groups[getattr(item, attribute)].append(item)
    return groups
