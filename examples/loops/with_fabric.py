"""Lightning Fabric (pip install lightning).

torchrun --nproc_per_node 2 examples/loops/with_fabric.py
"""

import copy
import os

import torch
from lightning.fabric import Fabric
from shared import BATCH, collate, pairs, report, tiny_model
from torch.utils.data import DataLoader

from prefkit import TDPO, preference_loss, stream_of


def main():
    devices = int(os.environ.get("WORLD_SIZE", 1))
    fabric = Fabric(accelerator="auto", devices=devices, strategy="ddp")
    fabric.launch()
    policy = tiny_model()
    reference = copy.deepcopy(policy).requires_grad_(False).to(fabric.device)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    model, optimizer = fabric.setup(policy, optimizer)
    loader = DataLoader(pairs(), BATCH // fabric.world_size, collate_fn=collate)
    loader = fabric.setup_dataloaders(loader)

    for padded in loader:
        batch = stream_of(padded, order="interleaved")
        out = preference_loss(model, batch, TDPO(beta=0.1, alpha=0.5), reference)
        fabric.backward(out.loss)
        optimizer.step()
        optimizer.zero_grad()
    report(out.loss, model.parameters())


if __name__ == "__main__":
    main()
