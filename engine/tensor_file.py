"""Tensors in safetensors files: tied ones once, whatever their layout, and a digest that says what they are.

Loads torch only inside functions.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from .errors import CheckpointError
from .storage import atomic_write, make_folder, read_bytes
from .text import printable

if TYPE_CHECKING:
    from torch import Tensor, device

FILE = "tensors.safetensors"
VERSION = 1
_MOST = 1 << 40
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "bool", "complex64"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
)


def pack(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Return a safetensors file as bytes; `about` and the names of tied tensors lie in its header.

    Tied means the same storage, offset, shape and strides. Views that share only part of a storage are saved apart.
    """
    from safetensors.torch import save

    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name in sorted(tensors):
        tensor = _checked(name, tensors[name])
        mark = _storage_mark(tensor)
        if mark is not None and first.setdefault(mark, name) != name:
            aliases[name] = first[mark]
        else:
            kept[name] = tensor
    header = orjson.dumps({"version": VERSION, "aliases": aliases, **about}, option=orjson.OPT_SORT_KEYS)
    return save(_apart(kept), {"ctr": header.decode()})


def _checked(name: str, tensor: Tensor) -> Tensor:
    """Refuse what would not come back as it went."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise CheckpointError(f"tensor {printable(name, 200)}: is a {type(tensor).__name__}, not a tensor")
    if name == "__metadata__" or tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        what = "this name is reserved" if name == "__metadata__" else "only dense tensors with data can be saved"
        raise CheckpointError(f"tensor {printable(name, 200)}: {what}")
    if str(tensor.dtype).removeprefix("torch.") not in _DTYPES:
        raise CheckpointError(f"tensor {printable(name, 200)}: {tensor.dtype} cannot be saved in a safetensors file")
    return tensor.detach()


def _storage_mark(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return what two tied tensors have in common; None for a tensor without elements, which shares nothing."""
    if not tensor.numel():
        return None
    place = (str(tensor.device), tensor.untyped_storage().data_ptr(), tensor.storage_offset())
    return (*place, tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg())


def _plain(tensor: Tensor) -> Tensor:
    """Return the values on the host in the order of the indices."""
    return tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return host tensors of which each owns the whole of its storage, as safetensors demands."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = _plain(tensor)
        storage = plain.untyped_storage()
        if storage.nbytes() != plain.numel() * plain.element_size() or storage.data_ptr() in seen:
            plain = plain.clone()
        if plain.numel():
            seen.add(plain.untyped_storage().data_ptr())
        apart[name] = plain
    return apart


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors on the host, tied ones joined again, and what `pack` was told; raises `ValueError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    about = _header(data)
    try:
        tensors = dict(load(data))
        for name, original in about.pop("aliases").items():
            tensors[name] = tensors[original]
    except (SafetensorError, LookupError, TypeError, AttributeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"is no safetensors file of ctr: {printable(error, 200)}") from error
    return tensors, about


def move(tensors: Mapping[str, Tensor], device: str | device) -> dict[str, Tensor]:
    """Return the tensors on `device`, those that are one staying one."""
    moved = {id(tensor): tensor.to(device) for tensor in tensors.values()}
    return {name: moved[id(tensor)] for name, tensor in tensors.items()}


def _header(data: bytes) -> dict[str, Any]:
    try:
        (size,) = struct.unpack_from("<Q", data)
        about = orjson.loads(orjson.loads(data[8 : 8 + size])["__metadata__"]["ctr"])
        version = about["version"]
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ValueError("is cut short, or no safetensors file of ctr") from error
    if version != VERSION:
        raise ValueError(f"has version {printable(version, 40)}; this ctr reads {VERSION}")
    return dict(about)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a sha256 over names, dtypes, shapes and values; the same on every device and in every order."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = _plain(tensors[name])
        told = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        head = orjson.dumps(told)
        whole.update(struct.pack("<Q", len(head)) + head)
        if tensor.numel():
            whole.update(_bytes(tensor))
    return whole.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.reshape(-1).view(torch.uint8).numpy().data


def save_tensors(folder: Path, tensors: Mapping[str, Tensor], extra: Mapping[str, Any] | None = None) -> str:
    """Put tensors into `folder`, in place of those that stood there, and return their digest.

    It is one file that is replaced as a whole, so a reader or a crash sees the old tensors or the new ones.
    """
    told = digest(tensors)
    data = pack(tensors, {"digest": told, "extra": dict(extra or {})})
    make_folder(folder)
    atomic_write(folder / FILE, data)
    return told


def load_tensors(folder: Path, device: str | device = "cpu") -> dict[str, Tensor]:
    """Return the tensors that `save_tensors` put there; raises `CheckpointError` where they are not whole."""
    return move(_load(folder)[0], device)


def load_extra(folder: Path) -> dict[str, Any]:
    """Return the `extra` that was saved beside the tensors."""
    return dict(_load(folder)[1]["extra"])


def _load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = folder / FILE
    try:
        tensors, about = unpack(read_bytes(path, _MOST))
    except OSError as error:
        raise CheckpointError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{printable(path)}: {error}") from error
    if digest(tensors) != about.get("digest"):
        raise CheckpointError(f"{printable(path)}: its tensors do not match their sha256; the file was damaged")
    return tensors, about
