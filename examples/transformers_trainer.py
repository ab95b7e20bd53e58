"""The same four lines under transformers' Trainer, for two small vision transformers: the scheme is the model that the Trainer trains.

The projector is among its parameters, so the Trainer's own optimizer and schedule hold it; the student stays an ordinary model, for `save_pretrained`.
Needs `pip install "limbeck[transformers]"`; nothing is downloaded. Run it: `python examples/transformers_trainer.py`.
"""

import tempfile
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, default_data_collator

from limbeck import KD, FitNet, Offline, Supervised  # limbeck 1


def vit(width: int) -> ViTForImageClassification:
    config = ViTConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        image_size=8, patch_size=4, num_channels=1, id2label={digit: str(digit) for digit in range(10)},
    )  # fmt: skip
    return ViTForImageClassification(config)


def digits() -> list[dict[str, Any]]:
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, labels, strict=True)]


class OwnLoss(Trainer):
    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        return model(inputs).loss  # limbeck 2, was cross_entropy(model(**inputs).logits, inputs["labels"])


def main(epochs: int = 3) -> Trainer:
    """Return the trainer, its student trained."""
    torch.manual_seed(0)
    data, teacher, student = digits(), vit(32), vit(16)
    few = default_data_collator(data[:8])
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=5e-3, use_cpu=True, seed=0,
            remove_unused_columns=False, save_strategy="no", logging_strategy="epoch", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        Trainer(teacher, args, train_dataset=data).train()
        layer = "vit.layers.1"
        kd = Offline(student, teacher, [0.9 * KD(), FitNet(layers={layer: layer}, reduction="mean"), 0.1 * Supervised()], example=few)  # limbeck 3
        trainer = OwnLoss(kd, args, train_dataset=data)  # limbeck 4, was OwnLoss(student, ...)
        trainer.train()
    return trainer


if __name__ == "__main__":
    main()
