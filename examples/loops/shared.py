"""What the loops of this folder share: a tiny model, its pairs, and the line that ends them."""

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkit.data import ReadOptions, prepare_pairs
from prefkit.train.checkpointing.leaving import leave_group

DEMO = Path(__file__).parents[2] / "prefkit/demo/assets"
PAIRS, BATCH = 24, 8  # three steps, each of eight pairs over all processes


def tiny_model():
    return AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32)


def pairs():
    """Tokenised pairs: `.chosen` and `.rejected`, each with `.ids` and `.scored` of (L,)."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    options = ReadOptions(level="step")
    return prepare_pairs(str(DEMO / "pairs.jsonl"), tokenizer, reading=options).pairs[:PAIRS]


def collate(rows):
    """An ordinary padded batch, as many collators make it: chosen and rejected rows in turn."""
    sides = [side for pair in rows for side in (pair.chosen, pair.rejected)]
    ids = [torch.from_numpy(side.ids).long() for side in sides]
    scored = [torch.from_numpy(side.scored) for side in sides]
    labels = [torch.where(s, i, -100) for s, i in zip(scored, ids, strict=True)]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def join():
    """(rank, processes) under torchrun; started with python alone, a group of one."""
    alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("gloo", **({} if "RANK" in os.environ else alone))
    return dist.get_rank(), dist.get_world_size()


def report(loss, parameters):
    """Prints the mean loss over processes and the sum of this process's |weights|, and leaves."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    loss = loss.detach() / world
    if world > 1:
        dist.all_reduce(loss)
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]
    checksum = sum(p.detach().double().abs().sum().item() for p in whole)
    print(json.dumps({"rank": rank, "loss": loss.item(), "checksum": checksum}), flush=True)
    leave_group()
