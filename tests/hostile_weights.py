# ruff: noqa: B008
"""Damaged, hostile and foreign files of weights, by name: each a function that writes one."""

import io
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch_files import one, value

Write = Callable[[Path], None]

NAMES = [
    "time_embed.0.weight",
    "input_blocks.0.0.weight",
    "input_blocks.1.0.in_layers.0.weight",
    "middle_block.0.in_layers.0.weight",
    "output_blocks.0.0.in_layers.0.weight",
    "out.2.weight",
]
MARK, TUPLE, DICT, SETITEM, END = b"(", b"t", b"}", b"s", b"."
PROTO = b"\x80\x02"


def zipped(content, entries=(), top="x", **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as file:
        file.writestr(f"{top}/data.pkl", content)
        for name, numbers in dict(entries).items():
            file.writestr(f"{top}/data/{name}", numbers)
    return buffer.getvalue()


def pt(content, entries=()) -> Write:
    return lambda path: path.write_bytes(zipped(content, entries))


def raw(content) -> Write:
    return lambda path: path.write_bytes(content)


def state(tensors: bytes) -> bytes:
    return PROTO + DICT + tensors + END


def tensor(**settings) -> bytes:
    return one(**settings) + SETITEM


def named(names, shape=(1,), key="0"):
    """A `.pt` of tensors that share one number."""
    return pt(
        state(b"".join(tensor(name=n, key=key, size=1, shape=shape, strides=(0,) * len(shape)) for n in names)),
        {"0": bytes(4)},
    )


def safetensors(header, data=b"", *, length=None) -> Write:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda path: path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(start, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def rebuild(offset=b"K\x00", shape=value((2,)), strides=value((1,)), size=b"K\x02", key=value("0")):
    """A tensor {"a": ...} with parts as raw opcodes."""
    storage = b"(" + value("storage") + b"ctorch\nFloatStorage\n" + key + value("cpu") + size + b"tQ"
    rest = offset + shape + strides + b"\x89ccollections\nOrderedDict\n)R"
    return state(value("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tRs")


def long4(digits):
    return b"\x8b" + struct.pack("<i", digits) + b"\x7f" * digits


class Evil:
    def __reduce__(self):
        return (os.system, ("touch /tmp/hostile_weights_ran",))


def valid_zip():
    return zipped(state(tensor()), {"0": np.float32([1, 2]).tobytes()})


def central(content, name, at, form, number):
    """An archive with one number of a directory entry changed."""
    position = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") if name == "first" else 0)
    if name == "last":
        position = content.rindex(b"PK\x01\x02")
    return content[: position + at] + struct.pack(form, number) + content[position + at + struct.calcsize(form) :]


def twice():
    buffer = io.BytesIO(valid_zip())
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "a") as file:
        warnings.simplefilter("ignore")
        file.writestr("x/data/0", bytes(8))
    return buffer.getvalue()


def bomb():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", bytes(200 * 2**20))
    return buffer.getvalue()


def many_entries():
    """An archive whose directory has a million entries."""
    record = struct.pack("<4s4B4H3L5H2L", b"PK\x01\x02", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    start = b"PK\x03\x04" + bytes(26)
    directory = record * 1_000_000
    return start + directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(directory), len(start), 0)


def zip64(directory, offset):
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, directory, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 64, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    return b"PK\x03\x04" + bytes(60) + record + locator + end


LAUGHS = state(
    value("a")
    + b"]q\x00"
    + b"".join(b"](" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1]) for i in range(60))
    + SETITEM
)
HUGE = 2**62
ONE = entry(0, 4)

PT: dict[str, Write] = {
    "number of 4 MB, LONG4": pt(rebuild(size=long4(4_000_000))),
    "number of 255 bytes, LONG1": pt(rebuild(offset=b"\x8a\xff" + b"\x7f" * 255)),
    "number of 4000 digits, INT": pt(rebuild(size=b"I" + b"9" * 4000 + b"\n")),
    "number of a million digits, LONG": pt(rebuild(size=b"L" + b"9" * 1_000_000 + b"L\n")),
    "LONG4 that claims 2 GB": pt(rebuild(size=b"\x8b\xff\xff\xff\x7f12")),
    "LONG4 of negative size": pt(rebuild(size=b"\x8b\xff\xff\xff\xff12")),
    "shape that is a list of lists": pt(rebuild(shape=b"](]]]e")),
    "shape that is a text": pt(rebuild(shape=value("x" * 1000))),
    "strides that are a text": pt(rebuild(strides=value("x"))),
    "shape times a text": pt(rebuild(shape=value((10**9, 10**9)), strides=value("ab"), size=value("abc"))),
    "storage of a text": pt(rebuild(size=value("2"))),
    "storage of a fraction": pt(rebuild(size=value(2.0))),
    "storage of a truth": pt(rebuild(size=b"\x88")),
    "key of a number": pt(rebuild(key=b"K\x00"), {"0": bytes(8)}),
    "key that leaves the archive": pt(rebuild(key=value("../../../etc/passwd"))),
    "billion laughs": pt(LAUGHS),
    "billion laughs as shape": pt(rebuild(shape=LAUGHS[4:-2])),
    "billion laughs as key": pt(PROTO + DICT + LAUGHS[4:-2] + b"Ns."),
    "tuples 300,000 deep": pt(PROTO + b")" + b"\x85" * 300_000 + END),
    "tuples 300,000 deep as key": pt(PROTO + DICT + b")" + b"\x85" * 300_000 + b"Ns."),
    "tuples 300,000 deep as name of a storage": pt(rebuild(key=b")" + b"\x85" * 300_000)),
    "lists 300,000 deep": pt(PROTO + b"]" * 300_000 + b"a" * 299_999 + END),
    "dicts 200,000 deep": pt(PROTO + b"}" + b"K\x00}" * 200_000 + b"s" * 200_000 + END),
    "a list in itself": pt(PROTO + b"]q\x00h\x00a."),
    "a dict in itself": pt(PROTO + b"}q\x00X\x01\x00\x00\x00ah\x00s."),
    "marks 2 million": pt(PROTO + MARK * 2_000_000 + END),
    "memo index 2^29": pt(PROTO + b"}r\x00\x00\x00\x20."),
    "memo index 2^32 - 1": pt(PROTO + b"}r\xff\xff\xff\xff."),
    "memo index of text": pt(PROTO + b"}p99999999999999999999\n."),
    "memo that is missing": pt(PROTO + b"h\x07."),
    "text that claims 4 GB": pt(PROTO + b"X\xff\xff\xff\xffabc."),
    "text that claims 2^63": pt(b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fabc."),
    "bytes that claim 2^62": pt(b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b"abc."),
    "bytearray that claims 2^40": pt(b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"."),
    "8 million operations": pt(PROTO + b"N0" * 4_000_000 + END),
    "7 million Nones": pt(PROTO + DICT + b"N" * 7_000_000 + END),
    "a pickle of 60 MB": pt(PROTO + value("x" * 60_000_000) + END),
    "a name of 5 MB": pt(state(tensor(name="x" * 5_000_000)), {"0": bytes(8)}),
    "a name of control characters": pt(state(tensor(name="\x1b[2J\x07\x00\r\n" * 30)), {"0": bytes(8)}),
    "a name of surrogates and marks": pt(state(tensor(name="\u202e\u200b\U000e0001a" * 30)), {"0": bytes(8)}),
    "a module of 1 MB": pt(PROTO + b"c" + b"m" * 1_000_000 + b"\n\x1b[31mname\n."),
    "calls os.system": lambda path: path.write_bytes(zipped(pickle.dumps(Evil(), 2))),
    "calls os.system, protocol 4": lambda path: path.write_bytes(zipped(pickle.dumps(Evil(), 4))),
    "calls through INST": pt(PROTO + b"(X\x01\x00\x00\x00ai__builtin__\neval\n."),
    "calls through OBJ": pt(PROTO + b"(c__builtin__\neval\nX\x01\x00\x00\x00ao."),
    "calls through NEWOBJ": pt(PROTO + b"c__builtin__\nlist\n)\x81."),
    "calls an extension": pt(PROTO + b"\x82\x01."),
    "calls what is no function": pt(PROTO + b"ctorch\nFloatStorage\n)R."),
    "sets attributes of a function": pt(PROTO + b"ctorch._utils\n_rebuild_tensor_v2\n}b."),
    "an OrderedDict of a thousand pairs": pt(PROTO + b"ccollections\nOrderedDict\n(K\x01tR."),
    "a pickle after the pickle": pt(state(b"") + state(b"")),
    "bytes after the pickle": pt(state(b"") + b"\x00" * 100 + b"."),
    "an empty dict": pt(state(b"")),
    "an empty pickle": pt(b""),
    "an empty OrderedDict": pt(PROTO + b"ccollections\nOrderedDict\n)R."),
    "a name that comes twice": pt(state(tensor() + tensor()), {"0": bytes(8)}),
    "values left on the stack": pt(PROTO + b"NNN}."),
    "stack underflow": pt(PROTO + b"sssss."),
    "strides beyond the storage": pt(state(tensor(strides=(2,))), {"0": bytes(8)}),
    "strides of 2^62": pt(state(tensor(strides=(HUGE,))), {"0": bytes(8)}),
    "strides below zero": pt(state(tensor(strides=(-1,))), {"0": bytes(8)}),
    "an offset beyond the storage": pt(state(tensor(offset=HUGE, shape=(0,))), {"0": bytes(8)}),
    "an offset below zero": pt(state(tensor(offset=-1)), {"0": bytes(8)}),
    "stride 0 and 10^12 numbers": pt(state(tensor(shape=(10**6, 10**6), strides=(0, 0))), {"0": bytes(8)}),
    "a shape of 2^62 x 2^62": pt(state(tensor(shape=(HUGE, HUGE), strides=(0, 0))), {"0": bytes(8)}),
    "a shape of 0 x 2^62": pt(state(tensor(shape=(0, HUGE), strides=(0, 0))), {"0": bytes(8)}),
    "a shape of 1000 dimensions": pt(state(tensor(shape=(1,) * 1000, strides=(1,) * 1000)), {"0": bytes(8)}),
    "a storage of 2^62": pt(state(tensor(size=HUGE)), {"0": bytes(8)}),
    "storages of two sizes": pt(state(tensor() + tensor(name="b", size=4)), {"0": bytes(8)}),
    "complex numbers": pt(state(tensor(storage="ComplexFloatStorage")), {"0": bytes(16)}),
    "quantized numbers": pt(state(tensor(storage="QInt8Storage")), {"0": bytes(2)}),
    "ADM's names, one shared number": named(NAMES),
    "ADM's names, scalars": named(NAMES, shape=()),
    "ADM's names, shapes of millions": named(NAMES, shape=(10**6, 10**6, 3, 3)),
    "ADM's names, empty shapes": named(NAMES, shape=(0, HUGE, 0, 1)),
    "block number 999999999": named([*NAMES, "input_blocks.999999999.0.weight"]),
    "block number of 4000 digits": named(
        [*NAMES, f"input_blocks.{'9' * 4000}.0.weight", f"output_blocks.{'9' * 4000}.1.a"]
    ),
    "block numbers of other scripts": named([*NAMES, "input_blocks.\u0663.0.weight", "input_blocks.\u00b2.0.weight"]),
    "100 blocks": named([*NAMES, *(f"input_blocks.{i}.0.a" for i in range(100)), "input_blocks.9.0.op.weight"]),
    "20,000 blocks": named([*NAMES, *(f"input_blocks.{i}.0.a" for i in range(20_000))]),
    "a down-sampler that is the first block": named([*NAMES, "input_blocks.0.0.op.weight"]),
    "integers as weights": pt(
        state(b"".join(tensor(name=n, storage="LongStorage", key=str(i)) for i, n in enumerate(NAMES))),
        {str(i): bytes(16) for i in range(6)},
    ),
    "an entry that comes twice": lambda path: path.write_bytes(twice()),
    "a zip bomb": lambda path: path.write_bytes(bomb()),
    "a million entries": lambda path: path.write_bytes(many_entries()),
    "an entry that claims 4 GB": lambda path: path.write_bytes(
        central(valid_zip(), "last", 20, "<Q", (2**32 - 2) * (2**32 + 1))
    ),
    "an entry that claims more than it stores": lambda path: path.write_bytes(
        central(valid_zip(), "last", 24, "<L", 9)
    ),
    "an entry at another's place": lambda path: path.write_bytes(central(valid_zip(), "last", 42, "<L", 0)),
    "an entry beyond the file": lambda path: path.write_bytes(central(valid_zip(), "last", 42, "<L", 2**31)),
    "an encrypted entry": lambda path: path.write_bytes(central(valid_zip(), "first", 8, "<H", 1)),
    "an unknown compression": lambda path: path.write_bytes(central(valid_zip(), "first", 10, "<H", 99)),
    "a descriptor that is missing": lambda path: path.write_bytes(central(valid_zip(), "first", 8, "<H", 8)),
    "a wrong checksum": lambda path: path.write_bytes(central(valid_zip(), "first", 16, "<L", 1)),
    "a directory of 2^60 bytes, zip64": raw(zip64(2**60, 64)),
    "a directory at 2^63, zip64": raw(zip64(46, 2**63)),
    "a directory of 2^64 - 1 bytes, zip64": raw(zip64(2**64 - 1, 2**64 - 1)),
    "bytes before the archive": lambda path: path.write_bytes(b"#!/bin/sh\n" + valid_zip()),
    "a comment of 60 kB": lambda path: path.write_bytes(valid_zip()[:-2] + b"\xff\xea" + b"x" * 0xEAFF),
    "entries without a top": lambda path: zipfile.ZipFile(path, "w").writestr("data.pkl", state(b"")),
    "two tops": lambda path: path.write_bytes(zipped(state(b""), {"../y/data.pkl": state(b"")}, top="x/../y")),
    "big-endian": lambda path: path.write_bytes(ordered(b"big")),
    "a byte order of 30 MB": lambda path: path.write_bytes(ordered(b"little" * 5_000_000)),
    "an empty file": raw(b""),
    "zeros": raw(bytes(100_000)),
    "half a file": lambda path: path.write_bytes(valid_zip()[:-40]),
    "the first four bytes": raw(b"PK\x03\x04"),
    "only the end of an archive": raw(b"PK\x05\x06" + bytes(18)),
}


def ordered(text):
    buffer = io.BytesIO(valid_zip())
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr("x/byteorder", text)
    return buffer.getvalue()


SAFETENSORS: dict[str, Write] = {
    "an empty header {}": safetensors({}),
    "only metadata": safetensors({"__metadata__": {"format": "pt"}}),
    "a header of 99 MB": safetensors(b'{"a":' + b" " * 99_000_000 + b"}"),
    "a header of 12 MB of names": safetensors(
        {f"{'x' * 1000}{i}": entry(4 * i, 4 * i + 4) for i in range(12_000)}, bytes(48_000)
    ),
    "a header that claims 2^63": safetensors({"a": ONE}, bytes(4), length=2**63),
    "a header that claims 2^64 - 1": safetensors({"a": ONE}, bytes(4), length=2**64 - 1),
    "a header of no bytes": safetensors(b""),
    "tensors that overlap": safetensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "tensors in one place": safetensors({"a": ONE, "b": ONE}, bytes(4)),
    "a gap": safetensors({"a": ONE, "b": entry(8, 12)}, bytes(12)),
    "bytes after the last": safetensors({"a": ONE}, bytes(400)),
    "numbers that are missing": safetensors({"a": entry(0, 4000)}, bytes(4)),
    "a name that comes twice": safetensors(
        b'{"a":' + json.dumps(ONE).encode() + b',"a":' + json.dumps(ONE).encode() + b"}", bytes(4)
    ),
    "a field that comes twice": safetensors(
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)
    ),
    "metadata that comes twice": safetensors(
        b'{"__metadata__":{},"__metadata__":{},"a":' + json.dumps(ONE).encode() + b"}", bytes(4)
    ),
    "another dtype": safetensors({"a": entry(0, 4, dtype="F99")}, bytes(4)),
    "8-bit floats": safetensors({n: entry(4 * i, 4 * i + 4, [4], "F8_E4M3") for i, n in enumerate(NAMES)}, bytes(24)),
    "complex numbers": safetensors({n: entry(8 * i, 8 * i + 8, [1], "C64") for i, n in enumerate(NAMES)}, bytes(48)),
    "a shape of another size": safetensors({"a": entry(0, 4, [2])}, bytes(4)),
    "a shape that overflows": safetensors({"a": entry(0, 4, [2**32, 2**32, 4])}, bytes(4)),
    "a shape below zero": safetensors({"a": entry(0, 4, [-1])}, bytes(4)),
    "a shape of fractions": safetensors({"a": entry(0, 4, [1.0])}, bytes(4)),
    "a shape of 100,000 dimensions": safetensors({"a": entry(0, 4, [1] * 100_000)}, bytes(4)),
    "offsets backwards": safetensors({"a": {**ONE, "data_offsets": [4, 0]}}, bytes(4)),
    "offsets of 5000 digits": safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,' + b"9" * 5000 + b"]}}", bytes(4)
    ),
    "100,000 open lists": safetensors(b"[" * 100_000),
    "a list": safetensors(b"[]"),
    "no JSON": safetensors(b"?" * 50),
    "a name of 7 MB": safetensors({"x" * 7_000_000: ONE}, bytes(4)),
    "names of control characters": safetensors({"\x1b[2J\x07\u202e" * 40: ONE}, bytes(4)),
    "ADM's names, scalars": safetensors({n: entry(4 * i, 4 * i + 4, []) for i, n in enumerate(NAMES)}, bytes(24)),
    "ADM's names, empty": safetensors({n: entry(0, 0, [0, 2**40]) for n in NAMES}),
    "block number 999999999": safetensors(
        {n: entry(4 * i, 4 * i + 4, [1, 1, 1, 1]) for i, n in enumerate([*NAMES, "input_blocks.999999999.0.weight"])},
        bytes(28),
    ),
    "not numbers (NaN)": safetensors(
        {n: entry(4 * i, 4 * i + 4, [1]) for i, n in enumerate(NAMES)}, np.full(6, np.nan, np.float32).tobytes()
    ),
    "an empty file": raw(b""),
    "seven bytes": raw(b"1234567"),
    "a zip": lambda path: path.write_bytes(valid_zip()),
}


def foreign(names) -> Write:
    return safetensors({n: entry(4 * i, 4 * i + 4) for i, n in enumerate(names)}, bytes(4 * len(names)))


FOREIGN: dict[str, tuple[str, str, Write]] = {
    "a diffusers U-Net": (
        ".safetensors",
        "diffusers U-Net",
        foreign(["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"]),
    ),
    "Stable Diffusion": (
        ".safetensors",
        "single file of Stable Diffusion",
        foreign(["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.a"]),
    ),
    "LoRA of kohya": (
        ".safetensors",
        "LoRA",
        foreign(["lora_unet_down_blocks_0_attentions_0.lora_up.weight", "lora_te_text_model.alpha"]),
    ),
    "LoRA of PEFT": (".safetensors", "LoRA", foreign(["base_model.model.down_blocks.0.attn.to_q.lora_A.weight"])),
    "LoRA of diffusers": (".safetensors", "LoRA", foreign(["unet.down_blocks.0.attn.processor.to_q_lora.down.weight"])),
    "ControlNet": (
        ".safetensors",
        "ControlNet",
        foreign(["control_model.input_blocks.0.0.weight", "control_model.middle_block.0.in_layers.0.weight"]),
    ),
    "ControlNet of diffusers": (
        ".safetensors",
        "ControlNet",
        foreign(["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.a"]),
    ),
    "an autoencoder": (".safetensors", "autoencoder", foreign(["encoder.conv_in.weight", "post_quant_conv.weight"])),
    "FLUX": (".safetensors", "diffusion transformer", foreign(["double_blocks.0.img_attn.qkv.weight"])),
    "CLIP": (".safetensors", "CLIP", foreign(["text_model.encoder.layers.0.mlp.fc1.bias"])),
    "a ResNet": (".safetensors", "image classification", foreign(["layer1.0.conv1.weight", "fc.weight"])),
    "anything": (".safetensors", "its tensors are fc.weight", foreign(["fc.weight"])),
    "Lightning": (
        ".ckpt",
        "PyTorch Lightning checkpoint",
        pt(
            PROTO
            + b"}("
            + value("epoch")
            + b"K\x01"
            + value("pytorch-lightning_version")
            + value("2.0")
            + value("state_dict")
            + b"}u."
        ),
    ),
    "Lightning with classes": (
        ".ckpt",
        "PyTorch Lightning checkpoint",
        pt(
            PROTO
            + b"}("
            + value("pytorch-lightning_version")
            + value("2.0")
            + value("state_dict")
            + b"}"
            + value("h")
            + b"cargparse\nNamespace\n)Ru."
        ),
    ),
    "a training checkpoint": (
        ".pt",
        "a checkpoint of a training with its optimizer",
        pt(PROTO + b"}(" + value("model") + b"}" + value("optimizer") + b"}u."),
    ),
    "an optimizer": (
        ".pt",
        "state of an optimizer",
        pt(PROTO + b"}(" + value("state") + b"}" + value("param_groups") + b"]u."),
    ),
    "an EMA": (".pt", "averaged parameters", pt(PROTO + b"}(" + value("ema") + b"}" + value("step") + b"K\x01u.")),
    "a module": (
        ".pt",
        "asks for torch.nn.modules.linear.Linear",
        pt(PROTO + b"ctorch.nn.modules.linear\nLinear\n)\x81}b."),
    ),
    "TorchScript": (".pt", "TorchScript", lambda path: path.write_bytes(script())),
    "Git LFS": (".safetensors", "Git LFS", raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")),
    "Git LFS as .pt": (".pt", "Git LFS", raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")),
    "a web page": (".pt", "web page", raw(b"\n<!DOCTYPE html><html><body>404</body></html>")),
    "a web page as .safetensors": (".safetensors", "web page", raw(b"<html><body>Sign in</body></html>")),
    "HDF5": (".h5", "HDF5", raw(b"\x89HDF\r\n\x1a\n" + bytes(100))),
    "Keras as .pt": (".pt", "HDF5", raw(b"\x89HDF\r\n\x1a\n" + bytes(100))),
    "ONNX": (".onnx", "ONNX", raw(b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\x90\x01")),
    "GGUF": (".gguf", "GGUF", raw(b"GGUF\x03\x00\x00\x00" + bytes(100))),
    "NumPy": (".npz", "zip archive", lambda path: np.savez(path, a=np.zeros(3))),
    "NumPy as .pt": (".pt", "NumPy's arrays", lambda path: path.write_bytes(npz())),
    "an array": (".npy", "array of NumPy", lambda path: np.save(path, np.zeros(3))),
    "torch before 1.6": (".pt", "before 1.6", raw(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02")),
    "a pickle": (".pkl", "bare pickle", raw(pickle.dumps([1]))),
    "gzip": (".pt", "compressed", raw(b"\x1f\x8b\x08" + bytes(20))),
    "an image": (".pt", "image", raw(b"\x89PNG\r\n\x1a\n")),
    "safetensors as .pt": (".pt", "safetensors file", safetensors({"a": ONE}, bytes(4))),
    "torch as .safetensors": (".safetensors", "zip archive", lambda path: path.write_bytes(valid_zip())),
}


def script():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in ("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"):
            file.writestr(name, state(b""))
    return buffer.getvalue()


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def pipe(path):
    os.mkfifo(path)


SPECIAL: dict[str, Write] = {
    "a named pipe": pipe,
    "a folder": lambda path: path.mkdir(),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to(path.parent / "gone"),
}


def mutated(content: bytes, seed: int) -> bytes:
    """A file with a few bits flipped, bytes cut out, doubled or put in another place."""
    draw, changed = random.Random(seed), bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(changed)), draw.randint(1, 64)
        kind = draw.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length]
        elif kind == 3:
            changed[at : at + length] = draw.randbytes(length)
        else:
            to = draw.randrange(len(changed))
            changed[to:to] = changed[at : at + length]
    return bytes(changed[: draw.randrange(len(changed))] if draw.random() < 0.2 else changed)


def files(folder: Path):
    """All of the above, written one at a time: (name, path)."""
    for ending, table in ((".pt", PT), (".safetensors", SAFETENSORS), (".pt", SPECIAL)):
        for number, (name, write) in enumerate(table.items()):
            path = folder / f"{'special' if table is SPECIAL else 'file'}{number}{ending}"
            write(path)
            yield f"{ending} {name}", path
    for number, (name, (ending, _, write)) in enumerate(FOREIGN.items()):
        path = folder / f"foreign{number}{ending}"
        write(path)
        yield f"foreign: {name}", path


def write_safetensors(path, arrays):
    """A valid file of float32 arrays."""
    header, data = {}, b""
    for name, array in arrays.items():
        numbers = np.ascontiguousarray(array).tobytes()
        header[name] = entry(len(data), len(data) + len(numbers), list(array.shape))
        data += numbers
    safetensors(header, data)(path)
