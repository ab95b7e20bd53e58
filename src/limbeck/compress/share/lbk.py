"""A module's weights in few bytes: codebooks, gaps between zeros, and Huffman codes of both.

Han, Mao and Dally, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman Coding", ICLR 2016, arXiv:1510.00149,
sections 2 to 4. The format: docs/compression/lbk.md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limbeck.compress._method import Packer
from limbeck.core.errors import ArtifactError, MismatchError, RecipeError
from limbeck.core.files import atomic_write

from ._decoder import DTYPES, STORED, records
from ._encode import Coded, container, dense_bytes, smallest

__all__ = ["Lbk"]

Precision = Literal["float32", "float16"]
_TORCH = {getattr(torch, name): name for name in DTYPES}
_WIDE = (torch.float32, torch.float64)


class Lbk(Packer):
    """Write weights as one `.lbk` file, each tensor in whichever form takes the fewest bytes.

    The forms: raw; a codebook and the Huffman codes of its indices; that for the values that are not zero, and the Huffman codes of the gaps between them.
    It makes small what has few distinct values (`share.kmeans`) or many zeros (`prune.weights`); what has neither stays as large as it was. What is read is to
    the bit what was written, unless a precision below says otherwise.

    Args:
        codebook: float16 rounds the values of every tensor that is written as codes.
        biases: float16 rounds every tensor of one dimension or none: biases, scales and running statistics.

    Raises:
        RecipeError: another precision.
        MismatchError: a state that is no tensor, a type that the format has not, a number beyond float16.
    """

    file = "model.lbk"

    def __init__(self, *, codebook: Precision = "float32", biases: Precision = "float32") -> None:
        for name, value in (("codebook", codebook), ("biases", biases)):
            if value not in ("float32", "float16"):
                raise RecipeError(f"{name} is {value!r}; it is float32 or float16")
        self.codebook, self.biases = codebook, biases

    def pack(self, model: nn.Module, path: Path) -> Mapping[str, Any]:
        """Write a plain module's weights to `path`; return the figures: `file_bytes`, of which `bytes` says what each is for, and a row for each tensor.

        `ratio` is to the bytes of the same tensors as they are in memory.
        """
        state = dict(sorted(model.state_dict().items()))  # by name: the same weights are the same bytes, in whatever order a model holds them
        coded, rows, rounding = [], [], 0.0
        for name, value in state.items():
            made, off = self._coded(name, _checked(name, value))
            coded.append(made)
            rounding = max(rounding, off)
            rows.append({"name": name, "values": value.numel(), "nonzero": int(value.count_nonzero()), "form": made.told, "bytes": len(made.payload)})
        data, counted = container(coded)
        atomic_write(path, data)
        whole = dense_bytes(coded)
        return {
            "file_bytes": len(data), "bytes": dict(counted), "source_bytes": whole, "ratio": whole / len(data), "codebook": self.codebook,
            "biases": self.biases, "largest_rounding": rounding, "layers": rows,
            "said": [f"of {len(data):,} bytes {', '.join(f'{kind} {count:,}' for kind, count in counted.items())}"],
        }  # fmt: skip

    def _coded(self, name: str, value: Tensor) -> tuple[Coded, float]:
        """Return a tensor's bytes, and by how much rounding moved a number of it at most."""
        made = smallest(name, _array(value), _TORCH[value.dtype])
        asked = self.biases if value.ndim < 2 else self.codebook if made.coded else "float32"
        if asked == "float32" or value.dtype not in _WIDE:
            return made, 0.0
        rounded = value.half().to(value.dtype)
        if bool((rounded.isinf() & ~value.isinf()).any()):
            raise MismatchError(f"{name} holds a number beyond float16 ({value.abs().max():g}): take {'biases' if value.ndim < 2 else 'codebook'}: float32")
        off = (rounded - value).nan_to_num().abs().max().item() if value.numel() else 0.0
        return smallest(name, _array(rounded), _TORCH[value.dtype]), off

    @staticmethod
    def unpack(path: Path) -> dict[str, Tensor]:
        """Return the state dict, to the bit as it was written.

        Raises:
            ArtifactError: a file that is missing, damaged, or none of this format and version.
        """
        try:
            found = records(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}): its artifact is damaged; delete it and run the recipe again") from None
        return {name: _tensor(dtype, array) for name, (dtype, array) in found.items()}


def _checked(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise MismatchError(f"the state {name!r} is a {type(value).__name__}, and an .lbk file holds tensors alone: leave it out of the module's state")
    if value.dtype not in _TORCH or value.layout is not torch.strided:
        told = str(value.dtype if value.layout is torch.strided else value.layout).removeprefix("torch.")
        raise MismatchError(f"{name} is {told}, which an .lbk file has not: it has {', '.join(DTYPES)}")
    return value.detach().cpu().contiguous()


def _array(value: Tensor) -> NDArray[np.generic]:
    """A tensor as the little-endian array that the format speaks of; bfloat16 and bool as bits."""
    bits = {torch.bfloat16: torch.int16, torch.bool: torch.uint8}.get(value.dtype)
    array = (value if bits is None else value.view(bits)).numpy()
    kind = np.dtype(STORED[DTYPES.index(_TORCH[value.dtype])])
    return array.view(kind) if bits is not None else array.astype(kind)


def _tensor(dtype: str, array: NDArray[np.generic]) -> Tensor:
    kind = getattr(torch, dtype)
    if kind is torch.bfloat16:
        return torch.from_numpy(array.astype(np.uint16).view(np.int16)).view(kind)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
