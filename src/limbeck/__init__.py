"""limbeck: turn a big model into a small one that ships, and prove what was kept and what was lost.

From the command line: `limbeck run digits`. From Python: `limbeck.run("digits")`, or `limbeck.distill(teacher, student, loader)` for any two modules.
In a loop of one's own: `kd = limbeck.Offline(student, teacher, [0.9 * limbeck.KD(temperature=4.0), 0.1 * limbeck.Supervised()])`, then `kd(batch).loss`.

Names are loaded when they are first used, so that `import limbeck` is quick and free of torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .core import VERSION

if TYPE_CHECKING:
    from .compress.grow._classifier import GMDHClassifier
    from .compress.grow._regressor import GMDHRegressor
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
    from .pipeline.compressed import shrink
    from .pipeline.easy import Result, distill
    from .pipeline.modules import load
    from .pipeline.predict import predict
    from .pipeline.recorded import record
    from .pipeline.run import Run
    from .report.run import run
    from .schemes.mutual import Mutual
    from .schemes.offline import Offline
    from .schemes.one import ONE
    from .tasks.classify import Classify
    from .tasks.control import Control
    from .tasks.image import Image
    from .tasks.multilabel import MultiLabel
    from .tasks.regression import Regression
    from .tasks.speech import Speech
    from .tasks.table import Table
    from .teachers.blackbox import BlackBox
    from .teachers.cached import Cached
    from .teachers.ema import EMA
    from .teachers.ensemble import Ensemble
    from .teachers.frozen import Frozen
    from .teachers.peer import Peer
    from .teachers.snapshot import Snapshot
    from .teachers.virtual import Virtual
    from .transfer.paired import Paired

__version__ = VERSION

_WHERE = {
    "Artifact": "core.artifact",
    "BlackBox": "teachers.blackbox",
    "CNN": "models.cnn",
    "Cached": "teachers.cached",
    "Classify": "tasks.classify",
    "Control": "tasks.control",
    "EMA": "teachers.ema",
    "Ensemble": "teachers.ensemble",
    "FitNet": "objectives.feature.fitnet",
    "Frozen": "teachers.frozen",
    "GMDHClassifier": "compress.grow._classifier",
    "GMDHRegressor": "compress.grow._regressor",
    "Image": "tasks.image",
    "KD": "objectives.response.kd",
    "LimbeckError": "core.errors",
    "LogitMatching": "objectives.response.logit_matching",
    "MLP": "models.mlp",
    "MultiLabel": "tasks.multilabel",
    "Mutual": "schemes.mutual",
    "ONE": "schemes.one",
    "Offline": "schemes.offline",
    "Paired": "transfer.paired",
    "Peer": "teachers.peer",
    "Regression": "tasks.regression",
    "ResNet": "models.resnet",
    "Result": "pipeline.easy",
    "Run": "pipeline.run",
    "Snapshot": "teachers.snapshot",
    "SoftCrossEntropy": "objectives.response.soft_cross_entropy",
    "Speech": "tasks.speech",
    "Supervised": "objectives.supervised",
    "Table": "tasks.table",
    "ViT": "models.vit",
    "Virtual": "teachers.virtual",
    "WRN": "models.wrn",
    "distill": "pipeline.easy",
    "load": "pipeline.modules",
    "predict": "pipeline.predict",
    "record": "pipeline.recorded",
    "run": "report.run",
    "shrink": "pipeline.compressed",
}

__all__ = [
    "CNN",
    "EMA",
    "KD",
    "MLP",
    "ONE",
    "WRN",
    "Artifact",
    "BlackBox",
    "Cached",
    "Classify",
    "Control",
    "Ensemble",
    "FitNet",
    "Frozen",
    "GMDHClassifier",
    "GMDHRegressor",
    "Image",
    "LimbeckError",
    "LogitMatching",
    "MultiLabel",
    "Mutual",
    "Offline",
    "Paired",
    "Peer",
    "Regression",
    "ResNet",
    "Result",
    "Run",
    "Snapshot",
    "SoftCrossEntropy",
    "Speech",
    "Supervised",
    "Table",
    "ViT",
    "Virtual",
    "__version__",
    "distill",
    "load",
    "predict",
    "record",
    "run",
    "shrink",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
    return getattr(importlib.import_module(f"limbeck.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
