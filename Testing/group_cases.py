"""Groups of spots, as a data set of groups gives them."""

from __future__ import annotations

import torch

from Testing.training_cases import blob

SHAPE = (16, 16)


class Spots:
    """Groups of spots at places that differ, as `Members` give them."""

    spacing = (2.0, 1.0)

    def __init__(self, count=6, labels=True):
        self.count, self.labels = count, labels

    def __len__(self):
        return self.count

    def group(self, index, count, draw):
        count = min(count, 5)
        centres = [(6 + draw.random() * 3, 6 + draw.random() * 3) for _ in range(count)]
        images = torch.stack([blob(c, SHAPE, 3.0) for c in centres])
        item = {"images": images, "names": tuple(f"spot {index}-{k}" for k in range(count))}
        if self.labels:
            item["labels"] = (images > 0.5).long()
            item["points"] = tuple(torch.tensor([c], dtype=torch.float32) for c in centres)
        return item
