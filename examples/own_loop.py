"""A training loop of your own: the structure is found while it trains, by two calls a step and an epoch.

python examples/own_loop.py
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import prunus


def main(epochs: int = 6) -> None:
    """Do it, and print what came of it."""
    torch.manual_seed(0)
    digits = prunus.load_data("digits")
    loader = DataLoader(TensorDataset(digits.train_images / 255, digits.train_labels), batch_size=64, shuffle=True)
    model = prunus.build_model("resnet8", num_classes=10, in_channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    pruner = prunus.SoftPruner(model, digits.train_images[:2] / 255, prunus.Budget(macs=0.5), ramp_epochs=2)

    result = None
    for epoch in range(epochs):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            if result is None:
                pruner.step(optimizer)
        schedule.step()
        if result is not None:
            continue
        choice = pruner.epoch_end()
        print(f"epoch {choice.epoch}: {choice.kept} of {choice.channels} channels, {choice.macs:,} MACs")
        if choice.stable or epoch == epochs - 3:  # the rest of the epochs train the small network
            result = pruner.remove()
            optimizer = prunus.migrate_optimizer(optimizer, model, result)
            model, schedule.optimizer = result.model, optimizer

    assert result is not None
    assert result.verification.passed
    with torch.inference_mode():
        right = (model.eval()(digits.test_images / 255).argmax(1) == digits.test_labels).float().mean().item()
    print(f"MACs: {result.plan.before.macs:,} → {result.plan.after.macs:,}")
    print(f"accuracy: {right:.3f}")


if __name__ == "__main__":
    main()
