"""Upstream Dassl's names, gathered in one place, and a remedy for its warm-up."""

import torch
from dassl import __version__ as HOST_VERSION
from dassl.config import clean_cfg, get_cfg_default
from dassl.data import DataManager
from dassl.data import DatasetWrapper as _DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from dassl.data.samplers import build_sampler
from dassl.data.transforms import INTERPOLATION_MODES, build_transform
from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, TrainerBase, build_trainer
from dassl.engine import TrainerX as _TrainerX
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, EvaluatorBase, build_evaluator
from dassl.metrics import compute_accuracy
from dassl.optim import build_optimizer, lr_scheduler
from dassl.utils import (
    AverageMeter,
    Logger,
    MetricMeter,
    Registry,
    check_availability,
    check_isfile,
    collect_env_info,
    count_num_param,
    listdir_nohidden,
    mkdir_if_missing,
    read_image,
    read_json,
    set_random_seed,
    setup_logger,
    tolist_if_not,
    write_json,
)

from apd.images import read_image as _read_image


class DatasetWrapper(_DatasetWrapper):
    """Dassl's; what the embedded host refuses to read is refused here too."""

    def __getitem__(self, idx):
        path = self.data_source[idx].impath
        _read_image(path, decode=False)
        try:
            return super().__getitem__(idx)
        except Exception:
            _read_image(path)  # says so, if it is the image
            raise


class TrainerX(_TrainerX):
    """Dassl's, whose loaders are of ``DatasetWrapper``."""

    def build_data_loader(self):
        self.dm = DataManager(self.cfg, dataset_wrapper=DatasetWrapper)
        for name in (
            *("train_loader_x", "train_loader_u", "val_loader", "test_loader", "num_classes"),
            *("num_source_domains", "lab2cname"),
        ):
            setattr(self, name, getattr(self.dm, name))


def mend_warm_up() -> None:
    """See ``apd.host.mend``. The class is mended, so it does not matter who has imported it."""
    schedule = lr_scheduler._BaseWarmupScheduler
    schedule.__init__ = _init
    schedule.state_dict = _state_dict
    schedule.load_state_dict = _load_state_dict


def _init(self, optimizer, successor, warmup_epoch, last_epoch=-1, verbose=False) -> None:
    self.successor = successor
    self.warmup_epoch = warmup_epoch
    torch.optim.lr_scheduler.LRScheduler.__init__(self, optimizer, last_epoch)


def _state_dict(self) -> dict:
    state = torch.optim.lr_scheduler.LRScheduler.state_dict(self)
    return {**state, "successor": self.successor.state_dict()}


def _load_state_dict(self, state_dict: dict) -> None:
    own = {key: value for key, value in state_dict.items() if key != "successor"}
    torch.optim.lr_scheduler.LRScheduler.load_state_dict(self, own)
    self.successor.load_state_dict(state_dict["successor"])
