"""limbeck: turn a big model into a small one that ships, and prove what was kept and what was lost.

From the command line: `limbeck run digits`. From Python: `limbeck.run("digits")`, or `limbeck.distill(teacher, student, loader)` for any two modules.
In a loop of one's own: `kd = limbeck.Offline(student, teacher, [0.9 * limbeck.KD(temperature=4.0), 0.1 * limbeck.Supervised()])`, then `kd(batch).loss`.

Names are loaded when they are first used, so that `import limbeck` is quick and free of torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .core import VERSION

if TYPE_CHECKING:
    from .core.artifact import Artifact
    from .core.errors import LimbeckError
    from .models.cnn import CNN
    from .models.mlp import MLP
    from .models.resnet import ResNet
    from .models.vit import ViT
    from .models.wrn import WRN
    from .objectives.feature.fitnet import FitNet
    from .objectives.response.kd import KD
    from .objectives.response.logit_matching import LogitMatching
    from .objectives.response.soft_cross_entropy import SoftCrossEntropy
    from .objectives.supervised import Supervised
    from .pipeline.easy import Result, distill
    from .pipeline.modules import load
    from .pipeline.predict import predict
    from .pipeline.run import Run
    from .report.run import run
    from .schemes.offline import Offline
    from .tasks.classify import Classify
    from .tasks.image import Image
    from .tasks.multilabel import MultiLabel
    from .tasks.regression import Regression
    from .teachers.ensemble import Ensemble
    from .teachers.frozen import Frozen

__version__ = VERSION

_WHERE = {
    "Artifact": "core.artifact",
    "CNN": "models.cnn",
    "Classify": "tasks.classify",
    "Ensemble": "teachers.ensemble",
    "FitNet": "objectives.feature.fitnet",
    "Frozen": "teachers.frozen",
    "Image": "tasks.image",
    "KD": "objectives.response.kd",
    "LimbeckError": "core.errors",
    "LogitMatching": "objectives.response.logit_matching",
    "MLP": "models.mlp",
    "MultiLabel": "tasks.multilabel",
    "Offline": "schemes.offline",
    "Regression": "tasks.regression",
    "ResNet": "models.resnet",
    "Result": "pipeline.easy",
    "Run": "pipeline.run",
    "SoftCrossEntropy": "objectives.response.soft_cross_entropy",
    "Supervised": "objectives.supervised",
    "ViT": "models.vit",
    "WRN": "models.wrn",
    "distill": "pipeline.easy",
    "load": "pipeline.modules",
    "predict": "pipeline.predict",
    "run": "report.run",
}

__all__ = [
    "CNN", "KD", "MLP", "WRN", "Artifact", "Classify", "Ensemble", "FitNet", "Frozen", "Image", "LimbeckError", "LogitMatching", "MultiLabel", "Offline",
    "Regression", "ResNet", "Result", "Run", "SoftCrossEntropy", "Supervised", "ViT", "__version__", "distill", "load", "predict", "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
    return getattr(importlib.import_module(f"limbeck.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
