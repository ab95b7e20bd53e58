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
    from .models.encoder import Encoder
    from .models.gpt import GPT
    from .models.mlp import MLP
    from .models.resnet import ResNet
    from .models.vit import ViT
    from .models.wrn import WRN
    from .objectives.feature.fitnet import FitNet
    from .objectives.response.divergence import DivergenceKD
    from .objectives.response.kd import KD
    from .objectives.response.logit_matching import LogitMatching
    from .objectives.response.soft_cross_entropy import SoftCrossEntropy
    from .objectives.sequence.aligned import Aligned
    from .objectives.sequence.uld import ULD
    from .objectives.supervised import Supervised
    from .pipeline.compressed import shrink
    from .pipeline.easy import Result, distill
    from .pipeline.modules import load
    from .pipeline.predict import predict
    from .pipeline.recorded import record
    from .pipeline.run import Run
    from .report.run import run
    from .schemes.minillm import MiniLLM
    from .schemes.mutual import Mutual
    from .schemes.offline import Offline
    from .schemes.on_policy import OnPolicy
    from .schemes.one import ONE
    from .tasks.classify import Classify
    from .tasks.control import Control
    from .tasks.image import Image
    from .tasks.language import Language
    from .tasks.masked import Masked
    from .tasks.multilabel import MultiLabel
    from .tasks.regression import Regression
    from .tasks.speech import Speech
    from .tasks.table import Table
    from .tasks.text import Text
    from .teachers.blackbox import BlackBox
    from .teachers.cached import Cached
    from .teachers.ema import EMA
    from .teachers.ensemble import Ensemble
    from .teachers.frozen import Frozen
    from .teachers.peer import Peer
    from .teachers.server import Server
    from .teachers.snapshot import Snapshot
    from .teachers.virtual import Virtual
    from .transfer.paired import Paired
    from .transfer.written import Written

__version__ = VERSION

_WHERE = {
    "Aligned": "objectives.sequence.aligned",
    "Artifact": "core.artifact",
    "BlackBox": "teachers.blackbox",
    "CNN": "models.cnn",
    "Cached": "teachers.cached",
    "Classify": "tasks.classify",
    "Control": "tasks.control",
    "DivergenceKD": "objectives.response.divergence",
    "EMA": "teachers.ema",
    "Encoder": "models.encoder",
    "Ensemble": "teachers.ensemble",
    "FitNet": "objectives.feature.fitnet",
    "Frozen": "teachers.frozen",
    "GMDHClassifier": "compress.grow._classifier",
    "GMDHRegressor": "compress.grow._regressor",
    "GPT": "models.gpt",
    "Image": "tasks.image",
    "KD": "objectives.response.kd",
    "Language": "tasks.language",
    "LimbeckError": "core.errors",
    "LogitMatching": "objectives.response.logit_matching",
    "MLP": "models.mlp",
    "Masked": "tasks.masked",
    "MiniLLM": "schemes.minillm",
    "MultiLabel": "tasks.multilabel",
    "Mutual": "schemes.mutual",
    "ONE": "schemes.one",
    "Offline": "schemes.offline",
    "OnPolicy": "schemes.on_policy",
    "Paired": "transfer.paired",
    "Peer": "teachers.peer",
    "Regression": "tasks.regression",
    "ResNet": "models.resnet",
    "Result": "pipeline.easy",
    "Run": "pipeline.run",
    "Server": "teachers.server",
    "Snapshot": "teachers.snapshot",
    "SoftCrossEntropy": "objectives.response.soft_cross_entropy",
    "Speech": "tasks.speech",
    "Supervised": "objectives.supervised",
    "Table": "tasks.table",
    "Text": "tasks.text",
    "ULD": "objectives.sequence.uld",
    "ViT": "models.vit",
    "Virtual": "teachers.virtual",
    "WRN": "models.wrn",
    "Written": "transfer.written",
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
    "GPT",
    "KD",
    "MLP",
    "ONE",
    "ULD",
    "WRN",
    "Aligned",
    "Artifact",
    "BlackBox",
    "Cached",
    "Classify",
    "Control",
    "DivergenceKD",
    "Encoder",
    "Ensemble",
    "FitNet",
    "Frozen",
    "GMDHClassifier",
    "GMDHRegressor",
    "Image",
    "Language",
    "LimbeckError",
    "LogitMatching",
    "Masked",
    "MiniLLM",
    "MultiLabel",
    "Mutual",
    "Offline",
    "OnPolicy",
    "Paired",
    "Peer",
    "Regression",
    "ResNet",
    "Result",
    "Run",
    "Server",
    "Snapshot",
    "SoftCrossEntropy",
    "Speech",
    "Supervised",
    "Table",
    "Text",
    "ViT",
    "Virtual",
    "Written",
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
