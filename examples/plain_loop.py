"""An ordinary PyTorch loop, and the four lines that make it distil: soft targets, a hint through a learnt projector, and the labels.

Model, loader, optimizer and steps stay the loop's own; limbeck says what a batch costs. Run it: `python examples/plain_loop.py`.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from limbeck import KD, FitNet, Offline, Supervised  # limbeck 1


def cnn(width: int) -> nn.Sequential:
    first, second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.Flatten(), nn.Linear(2 * width * 16, 10))


def digits() -> DataLoader:
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return DataLoader(TensorDataset(pixels, torch.tensor(labels)), batch_size=64, shuffle=True)


def trained(model: nn.Module, loader: DataLoader, epochs: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def main(epochs: int = 5) -> list[float]:
    """Return the mean loss of each epoch."""
    torch.manual_seed(0)
    data = digits()
    teacher, student, history = trained(cnn(16), data, epochs=4), cnn(4), []
    kd = Offline(student, teacher, [0.9 * KD(), FitNet(layers={"3": "3"}, reduction="mean"), 0.1 * Supervised()], example=next(iter(data)))  # limbeck 2
    optimizer = torch.optim.SGD(kd.parameters(), lr=0.05, momentum=0.9)  # limbeck 3, was student.parameters()
    for epoch in range(epochs):
        total = 0.0
        for batch in data:
            optimizer.zero_grad()
            loss = kd(batch).loss  # limbeck 4, was cross_entropy(student(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
        history.append(total / len(data))
        print(f"epoch {epoch + 1}: loss {history[-1]:.3f}")
    return history


if __name__ == "__main__":
    main()
