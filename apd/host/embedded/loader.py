"""Loaders over a dataset's splits."""

from __future__ import annotations

import torch
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from apd.errors import UserError
from apd.host.embedded.dataset import build_dataset
from apd.host.embedded.samplers import build_sampler
from apd.host.embedded.transforms import INTERPOLATION_MODES, build_transform
from apd.images import read_image


class DatasetWrapper(Dataset):
    """A list of ``Datum`` as a torch dataset of dicts.

    ``img`` (``img2``, ... if ``transform`` is a list), ``label``, ``domain``, ``impath``,
    ``index``; ``img0``, not augmented, with ``DATALOADER.RETURN_IMG0``. In training, with
    ``DATALOADER.K_TRANSFORMS`` above 1, an image is a list of that many draws.
    """

    def __init__(self, cfg, data_source, transform=None, is_train: bool = False) -> None:
        self.cfg, self.data_source, self.transform = cfg, data_source, transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise ValueError(f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but there is no transform")
        steps = [T.Resize(cfg.INPUT.SIZE, INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION])]
        steps += [T.ToTensor()]
        if "normalize" in cfg.INPUT.TRANSFORMS:
            steps += [T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)]
        self.to_tensor = T.Compose(steps)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict:
        item = self.data_source[idx]
        img0 = read_image(item.impath)
        output = {
            "label": item.label,
            "domain": item.domain,
            "impath": item.impath,
            "index": idx,
        }
        if self.transform is None:
            output["img"] = img0
        else:
            several = isinstance(self.transform, (list, tuple))
            for i, tfm in enumerate(self.transform if several else [self.transform], start=1):
                output["img" if i == 1 else f"img{i}"] = self._transform_image(tfm, img0)
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def _transform_image(self, tfm, img0):
        images = [tfm(img0) for _ in range(self.k_tfm)]
        return images[0] if self.k_tfm == 1 else images


def build_data_loader(
    cfg,
    sampler_type="SequentialSampler",
    data_source=None,
    batch_size=64,
    n_domain=0,
    n_ins=2,
    tfm=None,
    is_train=True,
    dataset_wrapper=None,
) -> DataLoader:
    """Build a loader over a list of ``Datum``; a training loader drops an incomplete last batch.

    Raises:
        UserError: there is not one batch.
    """
    sampler = build_sampler(
        sampler_type,
        cfg=cfg,
        data_source=data_source,
        batch_size=batch_size,
        n_domain=n_domain,
        n_ins=n_ins,
    )
    loader = DataLoader(
        (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )
    if not len(loader):
        raise UserError(
            f"{sampler_type} gives no batch of {batch_size} from {len(data_source)} images: "
            "reduce BATCH_SIZE"
        )
    return loader


class DataManager:
    """The dataset of a config and its loaders; ``train_loader_u``, ``val_loader`` may be None."""

    def __init__(self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None):
        self.dataset = dataset = build_dataset(cfg)
        tfm_train, tfm_test = custom_tfm_train, custom_tfm_test
        if tfm_train is None:
            tfm_train = build_transform(cfg, is_train=True)
        if tfm_test is None:
            tfm_test = build_transform(cfg, is_train=False)
        if cfg.VERBOSE:
            print(f"Training images: {tfm_train}\nTest images: {tfm_test}")

        def loader(items, options, tfm, is_train):
            return build_data_loader(
                cfg,
                sampler_type=options.SAMPLER,
                data_source=items,
                batch_size=options.BATCH_SIZE,
                n_domain=options.get("N_DOMAIN", 0),
                n_ins=options.get("N_INS", 2),
                tfm=tfm,
                is_train=is_train,
                dataset_wrapper=dataset_wrapper,
            )

        loaders = cfg.DATALOADER
        unlabeled = loaders.TRAIN_X if loaders.TRAIN_U.SAME_AS_X else loaders.TRAIN_U
        self.train_loader_x = loader(dataset.train_x, loaders.TRAIN_X, tfm_train, True)
        self.train_loader_u = self.val_loader = None
        if dataset.train_u:
            self.train_loader_u = loader(dataset.train_u, unlabeled, tfm_train, True)
        if dataset.val:
            self.val_loader = loader(dataset.val, loaders.TEST, tfm_test, False)
        self.test_loader = loader(dataset.test, loaders.TEST, tfm_test, False)
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    num_classes = property(lambda self: self.dataset.num_classes)
    lab2cname = property(lambda self: self.dataset.lab2cname)

    def show_dataset_summary(self, cfg) -> None:
        """Print the name, the domains, and the numbers of classes and images."""
        rows = [("dataset", cfg.DATASET.NAME)]
        rows += [("source", ", ".join(cfg.DATASET.SOURCE_DOMAINS))]
        rows += [("target", ", ".join(cfg.DATASET.TARGET_DOMAINS))]
        rows += [("classes", f"{self.num_classes:,}")]
        for name in ("train_x", "train_u", "val", "test"):
            rows += [(name, f"{len(getattr(self.dataset, name) or []):,}")]
        print(tabulate([(name, value) for name, value in rows if value not in ("", "0")]))
