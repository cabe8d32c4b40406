"""A training script as people have them: it knows timm and torch, and nothing of this package. See test_runner.py.

Prints one line of JSON for each process: what it was started with and what its model's parameters were.
"""

import argparse
import hashlib
import json
import os
import sys

import timm
import torch
from torch.utils.data import DataLoader, Dataset


def fingerprint(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


class Images(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index)), index


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    torch.manual_seed(rank)
    model = timm.create_model(args.model, pretrained=args.pretrained)
    start, trained = fingerprint(model), model
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
        trained = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for images, labels in [*DataLoader(Images(), batch_size=2)] * (args.steps // 2):
        loss = torch.nn.functional.cross_entropy(trained(images + rank), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if ranks > 1:
        torch.distributed.destroy_process_group()

    facts = {
        "argv": sys.argv,
        "source": model.pretrained_cfg["source"],
        "start": start,
        "end": fingerprint(model),
        "losses": losses,
    }
    sys.stdout.write(json.dumps(facts) + "\n")  # one write: ranks share the output
    sys.stdout.flush()


if __name__ == "__main__":
    main()
