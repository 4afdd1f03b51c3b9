"""The embedded host: Dassl's interface, as far as CoOp-style trainers and datasets use it.

Written from the interface alone. Names, config keys and their values, the order of hooks, random
draws and the layout of the output folder are Dassl's (github.com/KaiyangZhou/Dassl.pytorch,
c61a1b5). Domain adaptation, semi-supervised learning and the model zoo are left out.
"""

from apd.about import VERSION as HOST_VERSION
from apd.files import read_json
from apd.host.embedded.config import clean_cfg, get_cfg_default
from apd.host.embedded.dataset import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from apd.host.embedded.evaluation import (
    EVALUATOR_REGISTRY,
    Classification,
    EvaluatorBase,
    build_evaluator,
    compute_accuracy,
)
from apd.host.embedded.loader import DataManager, DatasetWrapper, build_data_loader
from apd.host.embedded.optim import build_optimizer
from apd.host.embedded.registry import Registry, check_availability
from apd.host.embedded.samplers import build_sampler
from apd.host.embedded.trainer import (
    TRAINER_REGISTRY,
    SimpleTrainer,
    TrainerBase,
    TrainerX,
    build_trainer,
)
from apd.host.embedded.transforms import INTERPOLATION_MODES, build_transform
from apd.host.embedded.utils import (
    AverageMeter,
    Logger,
    MetricMeter,
    check_isfile,
    collect_env_info,
    count_num_param,
    listdir_nohidden,
    mkdir_if_missing,
    set_random_seed,
    setup_logger,
    tolist_if_not,
    write_json,
)
from apd.images import read_image
