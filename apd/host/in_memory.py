"""Data loaders that read each image file once (DATALOADER.IN_MEMORY)."""

from __future__ import annotations

from torch.utils.data import DataLoader, Dataset

# values of INPUT.TRANSFORMS that are not random, so that transformed images may be cached
DETERMINISTIC_TRANSFORMS = {"center_crop", "instance_norm", "normalize"}


class CachedDataset(Dataset):
    """The items of another dataset, each read once and then held in memory.

    The other dataset must give the same item each time.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.items: list = [None] * len(dataset)  # type: ignore[arg-type]  # not every Dataset has a length

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        if self.items[index] is None:
            self.items[index] = self.dataset[index]
        return self.items[index]


def cached_loader(loader: DataLoader | None) -> DataLoader | None:
    """A loader of the same batches that draws the same random numbers; None for None.

    It has no worker processes, because each would hold a copy of the images.
    """
    if loader is None:
        return None
    return DataLoader(
        CachedDataset(loader.dataset),
        batch_size=loader.batch_size,
        sampler=loader.sampler,
        drop_last=loader.drop_last,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )
