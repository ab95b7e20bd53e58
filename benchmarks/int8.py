"""Quantized files against the float files they were made of: latency, bytes, accuracy, and whether the gate's probe had foretold it.

    LIMBECK_DATA=... python benchmarks/int8.py [cnn] [vit] [--train 6000] [--epochs 3] [--test 10000] [--rounds 25] [--seconds 20]
        [--parts forms,choices,refused,latency]

`cnn`   models.cnn, width 64 (224,010 parameters), and `vit`, a transformer encoder of 6 layers (models.vit, patch 7, dim 256, 4 heads; 4,758,538),
        trained for a few epochs on part of Fashion-MNIST's training images and exported once; the files stay under `runs/benchmark-int8/`.
`forms` each method's file: bytes, bytes over the float file's, accuracy on the test images, points lost against the float file on the same images with
        Student's 95% interval over images, the share of images on which the two agree with Wilson's, and the signal over the noise in the logits.
        Calibrated on 256 training images.
`latency_ratio`  how many times faster than the float file, batch 1, one pinned thread, one process that times all in shuffled rounds
        (`limbeck.measure.latency.measure_files`): (median of float) / (median), bootstrap interval over paired rounds. `foretold` is what the probe said.
`quickest_ratio` the same of the quickest of three runs or more in each slot, median over slots: on a busy machine runs are interrupted, long ones most.
`refused`  what the gate refuses, and with which figures: dynamic INT8 on convolutions, signed activations, half of zeros in a dense product.
`calibration`, `mixed`, `bias`  choices: static INT8 with other ranges, with the most sensitive layers in float, with biases corrected: accuracy, agreement and
        signal over noise on 2,000 test images.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.bridges.onnx_runtime import run
from limbeck.compress import Compressor
from limbeck.compress.quantize._gate import _paired, dense_zeros, refuse
from limbeck.compress.quantize._sensitivity import sqnr_db
from limbeck.compress.quantize.dynamic_int8 import DynamicInt8
from limbeck.compress.quantize.static_int8 import StaticInt8
from limbeck.compress.quantize.weight_only import WeightOnly
from limbeck.core.errors import MismatchError
from limbeck.export.onnx import Onnx
from limbeck.measure.latency import ModelFile, measure_files
from limbeck.measure.statistics import paired_t, wilson
from limbeck.models.cnn import CNN
from limbeck.models.vit import ViT
from limbeck.tasks._idx import read_idx
from records import tell

PLACE = Path("runs") / "benchmark-int8"
SHAPE, CLASSES = (1, 28, 28), 10
MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "cnn": lambda: CNN(SHAPE, CLASSES, width=64),
    "vit": lambda: ViT(SHAPE, CLASSES, patch=7, dim=256, depth=6, heads=4, pool="mean"),
}
PARTS = ("forms", "choices", "refused", "latency")
RATES = {"cnn": 3e-3, "vit": 1e-3}


def forms(name: str) -> dict[str, Compressor]:
    """The methods that are compared by the clock; dynamic INT8 on convolutions is forced."""
    cnn = name == "cnn"
    return {
        "static": StaticInt8(aim="latency", force=True),
        "static_signed": StaticInt8(activations="int8", aim="latency", force=True),
        "dynamic": DynamicInt8(convolutions=cnn, force=cnn),
        "weights8": WeightOnly(bits=8, block_size=128),
        "weights4": WeightOnly(bits=4, block_size=128),
        **({} if cnn else {"weights8_int8": WeightOnly(bits=8, block_size=128, compute="int8"), "weights4_int8": WeightOnly(block_size=128, compute="int8")}),
    }


def others() -> dict[str, dict[str, StaticInt8]]:
    """Choices within static INT8, compared by what they say."""
    return {
        "calibration": {
            "minmax": StaticInt8(), "percentile 99.999": StaticInt8(calibration="percentile"),
            "percentile 99.9": StaticInt8(calibration="percentile", percentile=99.9), "mse": StaticInt8(calibration="mse"),
            "entropy": StaticInt8(calibration="entropy"),
        },
        "mixed": {f"{count} layers float": StaticInt8(float_layers=count) for count in (0, 1, 3)},
        "bias": {
            "one scale per tensor": StaticInt8(per_channel=False), "one scale per tensor, corrected": StaticInt8(per_channel=False, correct_bias=True),
            "one per channel": StaticInt8(), "one per channel, corrected": StaticInt8(correct_bias=True),
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL", help=", ".join(MODELS))
    for option, default in (("train", 6000), ("epochs", 3), ("test", 10_000), ("rounds", 25)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--parts", default=",".join(PARTS), help="what is measured beside `forms`, by commas")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts.split(",")
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: {', '.join(PARTS)}")
    if unknown := set(arguments.models) - set(MODELS):
        parser.error(f"no model {', '.join(sorted(unknown))}: {', '.join(MODELS)}")
    if "LIMBECK_DATA" not in os.environ:
        parser.error("set LIMBECK_DATA to the folder that holds fashion-mnist/")
    data = read(Path(os.environ["LIMBECK_DATA"]) / "fashion-mnist")
    print(json.dumps({"benchmark": "int8", "torch": torch.__version__, **{name: measured(name, data, arguments) for name in arguments.models}}))


def read(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Images `[N, 1, 28, 28]`, standardized as training data are, and labels."""
    found = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = torch.tensor(read_idx(folder / f"{stem}-images-idx3-ubyte.gz", 3)[:, None] / 255, dtype=torch.float32)
        found[split] = (images - 0.286) / 0.353, torch.tensor(read_idx(folder / f"{stem}-labels-idx1-ubyte.gz", 1).astype(np.int64))
    return found


def trained(name: str, images: Tensor, labels: Tensor, epochs: int) -> Path:
    """The float file: the one that stands, or one trained and exported now."""
    path = PLACE / f"{name}-{len(images)}x{epochs}.onnx"
    if path.is_file():
        return path
    torch.manual_seed(0)
    model = MODELS[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[name], weight_decay=0.05)
    steps = epochs * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATES[name], total_steps=steps)
    for epoch in range(epochs):
        for batch in torch.randperm(len(images))[: len(images) // 64 * 64].split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
        tell(f"{name}: epoch {epoch + 1}, last loss {loss.item():.3f}")
    PLACE.mkdir(parents=True, exist_ok=True)
    Onnx().export(model, images[:2], path)
    return path


def measured(name: str, data: Mapping[str, tuple[Tensor, Tensor]], arguments: argparse.Namespace) -> dict[str, Any]:
    source = trained(name, *(part[: arguments.train] for part in data["train"]), arguments.epochs)
    images, labels = (part[: arguments.test] for part in data["test"])
    calibration = data["train"][0][:1024]
    reference = run(source, images)
    size = source.stat().st_size
    found: dict[str, Any] = {"test_images": len(images), "float": {"bytes": size, "accuracy": share(reference.argmax(1) == labels)}, "forms": {}}
    files = {"float": source}
    for form, compressor in forms(name).items():
        files[form] = PLACE / f"{name}-{form}.onnx"
        told = compressor.compress(source, files[form], calibration)
        row = answers(files[form], images, labels, reference)
        foretold = {one["method"]: one["predicted_ratio"] for one in told.get("probe", ())}
        found["forms"][form] = {"bytes": told["file_bytes"], "bytes_over_float": told["file_bytes"] / size, **row, "foretold": foretold}
        tell(f"{name} {form}: {told['file_bytes']:,} bytes, {row['lost_points']['mean']:+.2f} points lost, foretold {foretold}")
    for kind, choices in others().items() if "choices" in arguments.parts else ():
        found[kind] = {}
        for choice, compressor in choices.items():
            told = compressor.compress(source, PLACE / f"{name}-other.onnx", calibration)
            found[kind][choice] = answers(PLACE / f"{name}-other.onnx", images[:2000], labels[:2000], reference[:2000])
            tell(f"{name} {kind}, {choice}: {found[kind][choice]['sqnr_db']:.2f} dB")
            if kind == "mixed" and "sensitivity" in told:
                found["sensitivity"] = [{"layer": row["layer"], "sqnr_db": row["sqnr_db"]} for row in told["sensitivity"]]
    if "refused" in arguments.parts:
        found["refused"] = refusals(name, source, calibration)
    if "latency" in arguments.parts:
        measurement = measure_files(
            {form: ModelFile(path, SHAPE) for form, path in files.items()}, rounds=arguments.rounds, seconds=arguments.seconds, batch=8
        )  # fmt: skip
        found["latency_ms"] = {form: model["latency_ms_p50"] for form, model in measurement["models"].items()}
        for ratio in measurement["ratios"]:
            found["forms"][ratio["b"]]["latency_ratio"] = {key: ratio[key] for key in ("ratio", "low", "high", "n")}
        found |= {"notes": measurement["notes"], "busy": measurement["busy"]}
        for form in forms(name):
            pair = (path.read_bytes() for path in (source, files[form]))
            before, after = _paired(*pair, {"input": images[:1].numpy()}, arguments.seconds / len(files))
            found["forms"][form]["quickest_ratio"] = before / after
    found["bars"] = bars(name, found)
    return found


def answers(path: Path, images: Tensor, labels: Tensor, reference: Tensor) -> dict[str, Any]:
    """What a file says beside what the float file says `[N, C]`."""
    said = run(path, images)
    before, after = (logits.argmax(1) == labels for logits in (reference, said))
    return {
        "accuracy": share(after),
        "lost_points": asdict(paired_t(100 * (before.double() - after.double()).numpy())),
        "agreement": share(said.argmax(1) == reference.argmax(1)),
        "sqnr_db": sqnr_db(reference, said),
    }


def share(right: Tensor) -> dict[str, Any]:
    return {"share": right.double().mean().item(), "wilson_95": wilson(int(right.sum()), len(right)), "n": len(right)}


def refusals(name: str, source: Path, calibration: Tensor) -> dict[str, str | None]:
    """What the gate has to say of what cannot pay; None where it lets it pass."""
    tried = {
        "dynamic INT8": DynamicInt8(),
        "dynamic INT8, convolutions too": DynamicInt8(convolutions=True),
        "signed activations": StaticInt8(activations="int8"),
    }
    found: dict[str, str | None] = {}
    for what, compressor in tried.items():
        try:
            compressor.compress(source, PLACE / f"{name}-other.onnx", calibration)
            found[what] = None
        except MismatchError as error:
            found[what] = str(error)
    try:
        refuse(dense_zeros(256, 1024, examples=16), source.name, "prune whole rows")
        found["half of zeros"] = None
    except MismatchError as error:
        found["half of zeros"] = str(error)
    return found


def bars(name: str, found: Mapping[str, Any]) -> dict[str, bool]:
    made = found["forms"]
    lost = {form: made[form]["lost_points"]["mean"] < 0.5 for form in (("static",) if name == "cnn" else ("static", "dynamic"))}
    held = {f"{form} loses less than half a point": well for form, well in lost.items()}
    held["4-bit weights take half the bytes of 8-bit ones (0.54 or less)"] = made["weights4"]["bytes"] <= 0.54 * made["weights8"]["bytes"]
    if "latency_ratio" in made["static"]:
        held["INT8 is 2x faster or more, whole interval"] = max(made[form]["latency_ratio"]["low"] for form in lost) >= 2
        held["INT8 is 2x faster or more by the quickest runs"] = max(made[form]["quickest_ratio"] for form in lost) >= 2
    return held


if __name__ == "__main__":
    main()
