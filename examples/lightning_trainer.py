"""The same four lines under Lightning's Trainer: the optimizer gets the projector too, and no checkpoint holds the teacher.

Needs `pip install "limbeck[lightning]"`. Run it: `python examples/lightning_trainer.py`.
"""

import pytorch_lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from limbeck import KD, FitNet, Offline, Supervised  # limbeck 1


def cnn(width: int) -> nn.Sequential:
    first, second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.Flatten(), nn.Linear(2 * width * 16, 10))


def digits() -> DataLoader:
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return DataLoader(TensorDataset(pixels, torch.tensor(labels)), batch_size=64, shuffle=True)


def trained(model: nn.Module, data: DataLoader) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y in (batch for _ in range(4) for batch in data):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


class Distilled(pytorch_lightning.LightningModule):
    def __init__(self, student: nn.Module, teacher: nn.Module, batch: list[Tensor]) -> None:
        super().__init__()
        self.kd = Offline(student, teacher, [0.9 * KD(), FitNet(layers={"3": "3"}, reduction="mean"), 0.1 * Supervised()], example=batch)  # limbeck 2

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        loss = self.kd(batch).loss  # limbeck 3
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.kd.parameters(), lr=0.05, momentum=0.9)  # limbeck 4


def main(epochs: int = 3) -> pytorch_lightning.Trainer:
    """Return the trainer, its student trained."""
    torch.manual_seed(0)
    data = digits()
    trainer = pytorch_lightning.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(Distilled(cnn(4), trained(cnn(16), data), next(iter(data))), data)
    print(f"loss of the last epoch: {trainer.callback_metrics['loss_epoch']:.3f}")
    return trainer


if __name__ == "__main__":
    main()
