"""Every way to make a module smaller x every model: saved, made again in a fresh process, the same answers to the bit, the same bytes when saved again.

    python benchmarks/compress_load.py [--models cnn vit] [--methods prune.weights]

For each pair: the model with random weights is operated (or packed), its record goes through JSON and its weights through their file; a process of its own
builds it anew from builder and records, loads the weights, answers the same inputs and saves once more. A pair that the method refuses, in one line and with
the model left as it was, is told as such. Exit code 1 where a pair fails.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

METHODS: dict[str, dict[str, Any]] = {
    "factorize.cp": {"rank": {"kind": "fixed", "rank": 2}, "starts": 1},
    "factorize.svd": {},
    "factorize.tucker": {},
    "prune.blocks": {"target": {"ratio": 0.5}, "examples": 16},
    "prune.channels": {"target": {"ratio": 0.3}},
    "prune.finish": {},
    "prune.gradual": {"target": {"ratio": 0.5}},
    "prune.heads": {"target": {"ratio": 0.4}},
    "prune.layers": {"every": 2},
    "prune.neurons": {"target": {"ratio": 0.3}},
    "prune.nm": {},
    "prune.weights": {"target": {"ratio": 0.5}},
    "prune.width": {"neurons": 0.5},
    "quantize.convert": {},
    "quantize.correct": {},
    "quantize.equalize": {},
    "quantize.fold": {},
    "quantize.gptq": {},
    "quantize.prepare": {"weights": 4},
    "share.filters": {"target": {"share": 0.5}},
    "share.kmeans": {"bits": 3},
    "share.lbk": {},
}
"""Method -> options, as small as they come."""
BEFORE: dict[str, tuple[str, ...]] = {
    "prune.finish": ("prune.gradual",),
    "quantize.correct": ("quantize.prepare",),
    "quantize.convert": ("quantize.prepare",),
    "quantize.equalize": ("quantize.fold",),
    "quantize.gptq": ("quantize.prepare",),
    "share.lbk": ("share.kmeans",),
}
"""Method -> what must have been done before it."""
MODELS: dict[str, dict[str, Any]] = {"exits": {"of": {"kind": "mlp", "widths": [8, 8]}, "at": ["layer1"]}}
"""Model -> options, where it needs some."""
SHAPE, CLASSES = (1, 8, 8), 7

LOADER = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from limbeck.core.lookup import find
from limbeck.pipeline.resolve import make_model
for folder in map(Path, sys.argv[1:]):
    spec = json.loads((folder / "spec.json").read_text())
    model = make_model(spec)
    packed = spec.get("packed")
    weights = find("compress", packed).unpack(folder / "model.lbk") if packed else load_file(folder / "model.safetensors")
    model.load_state_dict(weights)
    golden = load_file(folder / "golden.safetensors")
    with torch.no_grad():
        said = model.eval()(golden["inputs"])
    said = said["main"] if isinstance(said, dict) else said
    assert torch.equal(said, golden["outputs"]), f"{folder.name}: other answers, by {(said - golden['outputs']).abs().max():.3g}"
    if packed:
        from limbeck.core.lookup import build
        build("compress", packed, {}).pack(model, folder / "again.lbk")
        same = (folder / "again.lbk").read_bytes() == (folder / "model.lbk").read_bytes()
    else:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "again.safetensors")
        same = (folder / "again.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert same, f"{folder.name}: other bytes"
    print(folder.name)
"""


def models() -> list[str]:
    """The models that take one input of real numbers: graph networks are asked with edges, language models with tokens."""
    import inspect

    from limbeck.core.lookup import find, names

    return [kind for kind in names("models") if next(iter(inspect.signature(find("models", kind).forward).parameters.values())).name != "_" and _plain(kind)]


def _plain(kind: str) -> bool:
    import inspect

    from limbeck.core.lookup import find

    asked = inspect.signature(find("models", kind).forward).parameters
    return "edge_index" not in asked and "segment" not in asked and "attention" not in asked


def make(kind: str, method: str, folder: Path) -> str | None:
    """Write a model that a method has made smaller into `folder`; return why it refused, None where it did not."""
    import torch
    from safetensors.torch import save_file

    from limbeck.compress import Packer, Surgery, plain
    from limbeck.core.errors import LimbeckError
    from limbeck.core.lookup import build, find
    from limbeck.engine.runtime import Runtime
    from limbeck.pipeline.compressed import bench_of

    torch.manual_seed(0)
    x, y = torch.randn(64, *SHAPE), torch.arange(64) % CLASSES
    task = build("tasks", "classify", {"classes": CLASSES}, {"train": [(x[:32], y[:32]), (x[32:], y[32:])], "validation": [(x, y)]})
    model = build("models", kind, MODELS.get(kind, {}), in_shape=SHAPE, classes=CLASSES).eval()
    spec: dict[str, Any] = {"builder": kind, "options": MODELS.get(kind, {}), "in_shape": list(SHAPE), "classes": CLASSES, "changes": []}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folder.mkdir(parents=True)
    for step in (*BEFORE.get(method, ()), method):
        part = build("compress", step, METHODS[step])
        try:
            if isinstance(part, Surgery):
                done = part.operate(model, bench_of(task, Runtime(), 0))
                model = _trained(done.model, x) if step == "prune.gradual" and method == "prune.finish" else done.model.eval()
                spec["changes"].append({"surgery": step, "record": json.loads(json.dumps(dict(done.record)))})
            else:
                assert isinstance(part, Packer)
                model = plain(model)
                spec["changes"] = [one for one in spec["changes"] if find("compress", one["surgery"]).lasts]
                part.pack(model, folder / part.file)
                spec["packed"] = step
        except LimbeckError as error:
            same = step != method or all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name in before)
            assert "\n" not in str(error) and (same or step in BEFORE), f"{method} on {kind} refused and changed the model: {error}"
            return str(error)
    if "packed" not in spec:
        save_file({name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    with torch.no_grad():
        said: Any = model(x[:8])
    save_file({"inputs": x[:8], "outputs": (said["main"] if isinstance(said, dict) else said).contiguous()}, folder / "golden.safetensors")
    (folder / "spec.json").write_text(json.dumps(spec))
    return None


def _trained(model: Any, x: Any) -> Any:
    """A model whose masks have followed their schedule to its end."""
    import torch

    from limbeck.core.objective import Clocked
    from limbeck.core.schedule import Clock

    with torch.no_grad():
        for step in range(101):
            for module in model.modules():
                if isinstance(module, Clocked):
                    module.clock = Clock(step / 100, 1.0)
            model.train()(x)
    return model.eval()


def load(folders: Iterable[Path]) -> subprocess.CompletedProcess[str]:
    """Make every folder's model again, in one fresh process."""
    return subprocess.run([sys.executable, "-c", LOADER, *map(str, folders)], capture_output=True, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=models())
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    arguments = parser.parse_args()
    same, refused, failed = 0, {}, {}
    with tempfile.TemporaryDirectory(prefix="limbeck-") as place:
        for kind in arguments.models:
            for method in arguments.methods:
                pair, folder = f"{method} on {kind}", Path(place, kind, method)
                if (why := make(kind, method, folder)) is not None:
                    refused[pair] = why
                elif (done := load([folder])).returncode:
                    failed[pair] = done.stderr.strip().splitlines()[-1]
                else:
                    same += 1
                print(pair, "refused" if pair in refused else failed.get(pair, "same"), file=sys.stderr, flush=True)
    print(json.dumps({"benchmark": "compress_load", "pairs": same + len(refused) + len(failed), "same": same, "refused": refused, "failed": failed}, indent=1))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
