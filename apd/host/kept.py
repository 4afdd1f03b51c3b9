"""Images that are read once."""

from __future__ import annotations

from torch.utils.data import DataLoader, Dataset

CHANCELESS = {"center_crop", "instance_norm", "normalize"}  # of INPUT.TRANSFORMS


class Kept(Dataset):
    """The items of another dataset, without chance in it, each read once and kept in memory."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.items: list = [None] * len(dataset)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        if self.items[index] is None:
            self.items[index] = self.dataset[index]
        return self.items[index]


def keeping(loader: DataLoader | None) -> DataLoader | None:
    """The same batches, and the same random numbers, from images in memory.

    In this process: workers would each keep images of their own.
    """
    if loader is None:
        return None
    return DataLoader(
        Kept(loader.dataset),
        batch_size=loader.batch_size,
        sampler=loader.sampler,
        drop_last=loader.drop_last,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )
