"""Tensors in and out of safetensors files: all headers checked first, then tensor by tensor."""

import glob
import os
import re
import zlib
from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from plumbing.base.errors import InputError, require
from plumbing.base.files import read_json, require_file, write_json
from plumbing.base.processes import RANK, progress_bar, shard_like, whole

UMASK = os.umask(0o022)  # reading it is setting it
os.umask(UMASK)
FLOATS = ("F64", "F32", "F16", "BF16")


class Place(NamedTuple):
    """Where a tensor lies on the disk."""

    path: str
    name: str  # in the file


def checksum_of(paths: list[str], crc: int = 0) -> int:
    """CRC-32 of the contents of files; crc: that of what comes before them."""
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                crc = zlib.crc32(block, crc)
    return crc


def find_files(folder: str, stem: str) -> list[str]:
    """folder/stem.safetensors, or the files that its index names. Raises InputError."""
    single = os.path.join(folder, f"{stem}.safetensors")
    index = single + ".index.json"
    if os.path.exists(single) or not os.path.exists(index):
        pickled = glob.glob(os.path.join(glob.escape(folder), "*.bin"))
        sentence = (
            f"{folder} has pickled weights alone ({pickled and os.path.basename(pickled[0])})"
        )
        hint = "expected safetensors: load it once with transformers and save_pretrained it"
        require(os.path.exists(single) or not pickled, f"{sentence}; {hint}")
        return [single]
    names = read_json(index).get("weight_map")
    fits = isinstance(names, dict) and names and all(map(is_file_name, names.values()))
    require(fits, f"{index}: no weight_map from tensors to files beside it; copy it again")
    return [os.path.join(folder, name) for name in sorted(set(names.values()))]


def is_file_name(value: object) -> bool:
    """Whether it names a file of the same folder."""
    return isinstance(value, str) and bool(re.fullmatch(r"[\w-][\w.-]*", value, re.ASCII))


def open_file(path: str):
    """A safetensors file, opened. Raises InputError with its size."""
    require_file(path, "a whole safetensors file; copy it again")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        size = f"{os.path.getsize(path):,} bytes"
        sentence = f"{path}: {size}; expected a whole safetensors file ({error}); copy it again"
        raise InputError(sentence) from None


def locate_tensors(
    folder: str,
    stem: str,
    expected: dict[str, torch.Tensor],
    optional: Collection[str] = (),
    prefix: str = "",
) -> dict[str, Place]:
    """{name: its Place} in folder/stem.safetensors, or in the files of its index. Only headers are
    read. Together the files must hold exactly `expected`, {name: tensor of the right shape}, each
    name with `prefix` before it, and perhaps the optional names (PEFT puts "base_layer" into those
    of a base's weights). Raises InputError."""
    files, places = find_files(folder, stem), {}
    for path in files:
        f = open_file(path)
        for stored in f.keys():
            if stored.endswith("rotary_emb.inv_freq"):  # a constant that older conversions store
                continue
            name, header = stored.removeprefix(prefix), f.get_slice(stored)
            if name not in expected:
                name = name.replace(".base_layer.", ".")
            shape, kind = tuple(header.get_shape()), header.get_dtype()
            known = stored.startswith(prefix) and name in expected and name not in places
            wanted = tuple(expected[name].shape) if known else "no such tensor"
            together = "config and weights do not belong together"
            sentence = f"{path}: tensor {stored} has shape {shape}, expected {wanted}; {together}"
            require(shape == wanted, sentence)
            require(kind in FLOATS, f"{path}: tensor {stored} holds {kind}, expected floats")
            places[name] = Place(path, stored)
    for name in expected:
        shape = tuple(expected[name].shape)
        require(
            name in places or name in optional,
            f"{files[0]}: tensor {prefix}{name} of shape {shape} is missing in {len(files)} files",
        )
    return places


def read_tensors(
    places: dict[str, Place],
    parameters: dict[str, torch.Tensor],
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of every place, split as its parameter is; dtype None: as stored. Memory
    of the host holds one copy of what is kept and a tensor more. Raises InputError for a tensor
    that holds a number which is not finite."""
    bar = progress_bar(places.items(), desc="loading", unit="tensor", leave=False, delay=3)
    for name, (path, stored) in bar:
        with open_file(path) as f:  # anew for each, or every page of the file stays mapped
            tensor = f.get_tensor(stored)
        finite = all(map(torch.isfinite, tensor.aminmax()))
        sentence = f"{path}: tensor {stored} is damaged: it holds NaN or infinity; copy it again"
        require(finite, sentence)
        yield name, shard_like(tensor.to(device, dtype, copy=True), parameters[name])


def split_by_size(tensors: dict[str, torch.Tensor], limit: float) -> list[dict]:
    """The tensors, in order, as files of about `limit` bytes."""
    total, parts = 0, {}
    for name, tensor in tensors.items():
        parts.setdefault(total // limit, {})[name] = tensor
        total += tensor.nbytes
    return list(parts.values())


def write_tensors(
    folder: str, stem: str, tensors: dict[str, torch.Tensor], limit: float = 5e9
) -> None:
    """Write {name: tensor} as safetensors, with an index if there are several files. All processes
    gather, the first one writes; memory holds one file's tensors."""
    if RANK == 0:  # the disk of another node may be another one
        os.makedirs(folder, exist_ok=True)
    parts, weight_map = split_by_size(tensors, limit), {}
    for i, part in enumerate(parts, start=1):
        number = f"-{i:05}-of-{len(parts):05}" if len(parts) > 1 else ""
        file = f"{stem}{number}.safetensors"
        gathered = {}
        for name, tensor in part.items():
            tensor = whole(tensor.detach())
            if RANK == 0:
                gathered[name] = tensor.cpu().contiguous()
        if RANK == 0:
            save_file(gathered, os.path.join(folder, file), {"format": "pt"})
            os.chmod(os.path.join(folder, file), 0o666 & ~UMASK)  # safetensors: for its user alone
        weight_map |= dict.fromkeys(part, file)
    if RANK == 0 and len(parts) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(os.path.join(folder, f"{stem}.safetensors.index.json"), index)
