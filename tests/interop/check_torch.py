"""torch's DataLoader, and tensors as arguments, results and messages, with polyproc's processes (the alias is active)."""

import multiprocessing

import pytest
import torch
import torch.multiprocessing
from torch.utils.data import DataLoader, Dataset

METHODS = ["fork", "spawn", "forkserver"]


class Squares(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return torch.full((8,), float(index * index))


def total(tensor):
    return float(tensor.sum())


def ones(n):
    return torch.ones(n)


def relay(inbox, outbox):
    outbox.put(inbox.get() * 2)
    inbox.get()  # until the parent has read the tensor: its memory goes with this process


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_data_loader(method, persistent):
    loader = DataLoader(
        Squares(),
        batch_size=8,
        num_workers=2,
        multiprocessing_context=method,
        persistent_workers=persistent,
        timeout=60,
    )
    for _ in range(2):
        assert sum(total(batch) for batch in loader) == 8 * sum(i * i for i in range(64))


def test_data_loader_with_a_context():
    loader = DataLoader(
        Squares(), batch_size=8, num_workers=2, multiprocessing_context=multiprocessing.get_context("spawn")
    )
    assert sum(total(batch) for batch in loader) == 8 * sum(i * i for i in range(64))


@pytest.mark.parametrize("method", METHODS)
def test_tensors_through_a_pool(method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(total, [torch.ones(5), torch.ones(7)]) == [5.0, 7.0]
        assert [t.tolist() for t in pool.map(ones, [1, 2])] == [[1.0], [1.0, 1.0]]


@pytest.mark.parametrize("method", METHODS)
def test_tensors_through_a_queue(method):
    context = multiprocessing.get_context(method)
    inbox, outbox = context.Queue(), context.Queue()
    process = context.Process(target=relay, args=(inbox, outbox))
    process.start()
    inbox.put(torch.arange(4.0))
    assert outbox.get(timeout=60).tolist() == [0.0, 2.0, 4.0, 6.0]
    inbox.put(None)
    process.join(60)
    assert process.exitcode == 0
