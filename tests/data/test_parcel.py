import torch

from xsam.data.parcel import pack, unpack
from xsam.structures import DecoderItems, Target


def test_what_is_unpacked_is_what_was_packed():
    ids = torch.arange(6, dtype=torch.int16).view(1, 2, 3)
    numbers = torch.arange(3)
    items = DecoderItems(
        numbers, numbers, numbers, torch.zeros(3, 0, dtype=torch.long), (Target(ids, numbers, ids[0, 0]),) * 2
    )
    scalar = torch.tensor(2.5, dtype=torch.float64)
    rest, packed = pack([items, ("a", scalar, ids.transpose(1, 2))])
    assert packed.numel() == 5 * 64  # numbers, ids, its row, the scalar and the transposed ids; nothing twice
    found, (name, number, transposed) = unpack((rest, packed))
    assert type(found) is DecoderItems
    assert name == "a"
    for got, given in (
        (found.image, numbers), (found.candidates, items.candidates), (found.targets[1].ids, ids),
        (found.targets[0].labels, ids[0, 0]), (number, scalar), (transposed, ids.transpose(1, 2)),
    ):  # fmt: skip
        assert got.dtype == given.dtype
        assert got.shape == given.shape
        assert got.equal(given)
    assert found.targets[0].ids.data_ptr() == found.targets[1].ids.data_ptr()
