"""Tensors in and out of safetensors files: streamed, sharded, checked."""

import os
import zlib

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from plumbing.distributed import RANK, progress, whole
from plumbing.errors import InputError, require
from plumbing.files import read_json, write_json


def checksum(tensor):
    return str(zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy()))


def read_tensors(folder, stem, expected, dtype=None, device="cpu", spare=()):
    """Yield (name, tensor) of folder/stem.safetensors, or of the files in its index, which must together hold exactly
    `expected`, {name: parameter}; each as sharded as its parameter. dtype None: as stored. spare: names that may be absent.
    Every header is checked first, then tensors are converted one by one: host memory holds one copy and a tensor more."""
    files, places = [os.path.join(folder, f"{stem}.safetensors")], {}
    index = files[0] + ".index.json"
    if not os.path.exists(files[0]) and os.path.exists(index):
        names = read_json(index).get("weight_map")
        good = isinstance(names, dict) and names and all(isinstance(v, str) for v in names.values())
        require(good, f"{index}: no weight_map from tensors to files; copy it again")
        files = [os.path.join(folder, name) for name in sorted(set(names.values()))]
    for path in files:
        try:
            f = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            size = f"{os.path.getsize(path):,} bytes" if os.path.exists(path) else "no such file"
            raise InputError(
                f"{path}: {size}; expected a whole safetensors file ({error}); copy it again"
            ) from None
        stated = {
            k: v for k, v in (f.metadata() or {}).items() if "crc32" in k
        }  # where write_tensors wrote the file
        for name in f.keys():
            if name.endswith("rotary_emb.inv_freq"):  # a constant that older conversions store
                continue
            shape, kind = tuple(f.get_slice(name).get_shape()), f.get_slice(name).get_dtype()
            wanted = (
                tuple(expected[name].shape)
                if name in expected and name not in places
                else "no such tensor"
            )
            require(
                shape == wanted and kind in ("F64", "F32", "F16", "BF16"),
                f"{path}: tensor {name} has shape {shape}, "
                f"expected {wanted}, of floats, not {kind}; config and weights do not belong together",
            )
            places[name] = path, stated and stated.get(f"crc32 {name}", "none")
    for name in [n for n in expected if n not in places and n not in spare]:
        raise InputError(
            f"{files[0]}: tensor {name} of shape {tuple(expected[name].shape)} is missing in {len(files)} files"
        )
    for name, (path, crc) in progress(
        places.items(), desc="loading", unit="tensor", leave=False, delay=3
    ):
        with safe_open(
            path, framework="pt"
        ) as f:  # anew for each tensor, or every page of the file stays mapped
            tensor, like = f.get_tensor(name), expected[name]
        good = (not crc or crc == checksum(tensor)) and all(map(torch.isfinite, tensor.aminmax()))
        require(good, f"{path}: tensor {name} is damaged (wrong checksum, or NaN); copy it again")
        tensor = tensor.to(device, dtype, copy=True)
        if isinstance(like, DTensor):  # every process reads the file and keeps its part
            tensor = distribute_tensor(
                tensor, like.device_mesh, like.placements, src_data_rank=None
            )
        yield name, tensor


def write_tensors(folder, stem, tensors, limit=5e9):
    """Write {name: tensor} as safetensors with checksums, in files of about `limit` bytes, with an index if there are several.
    All processes gather, the first one writes; memory holds one file's tensors."""
    os.makedirs(folder, exist_ok=True)
    total, parts, index = 0, {}, {}
    for name, p in tensors.items():
        parts.setdefault(total // limit, {})[name] = p
        total += p.nbytes
    for i, part in enumerate(parts.values(), start=1):
        file = stem + f"-{i:05}-of-{len(parts):05}" * (len(parts) > 1) + ".safetensors"
        for name in part:
            p = whole(part[name].detach())
            part[name] = p.cpu().contiguous() if RANK == 0 else p.new_empty(0)
        if RANK == 0:
            save_file(
                part,
                os.path.join(folder, file),
                {"format": "pt"} | {f"crc32 {n}": checksum(p) for n, p in part.items()},
            )
        index |= dict.fromkeys(part, file)
    if RANK == 0 and len(parts) > 1:
        write_json(
            f"{folder}/{stem}.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": index},
        )
