"""Files of weights: what is read, what is written, and what is refused, each with one line that names the entry."""

import base64
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files
from adm_arguments import MODULES
from conftest import GOLDEN
from etils import epath
from safetensors.numpy import load_file, save_file
from torch_files import one

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.interop import adm, files, infer
from guided_diffusion_jax.models.classifier import Classifier
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.models.unet import UNet

# Written by torch 2.13: a state_dict() of Linear(2, 3) called fc, with the tensors of KINDS and a Parameter beside.
TORCH_FILE = zlib.decompress(base64.b85decode(
    "c-pO3O>k3H6u$XsnuZoy<fmu_M8y<oc=>IDl(r9iq7Nl~hz3N{m*lkxq<J~XEk7zwM{I=|7dXy1jths4GcK8Nq2su4+~C3uE?BW}hJ`;HH!f"
    "Xx?z=DH-PclR%bT9Q^!0w<`OdlLp7WAbeSSiML9*ytPd1UWm0GE}ucT8wQa@W&<X&>hb<KH;MYCEpinL<ZnxSKjlF=|qhbu)I0y3z9C!Fg-v"
    "Z-R^yiu7hQ}7n4*(jDH`B_@2HbeP_QJAe%OL=P4nr0(^E*1h`IGpQ5P!m_`(+2oCB&1YLogU{8L(q});2H@6IUnAO^;zgt0~CT2Dp7r^cLBO"
    "ouj*NV(A6>%vW`Nx20a!rswq_TCaf=`tFph$siLr<+^PB~^jZ}2(5HIlVIzk>Mq!f%n{y#tNE>>sSvQ+T3AP9fG1!U>{S^8cLqPQ}z&6#R1{"
    "UCP&hi9>0S%taVaiEeZ&29Y!k2C2jtMo0x>5d4B*5EK9J!0a(;7TuA<KGo3ZCUiJ2gk}Q9CocEirL;j)xPr!x?1Z?BR6JQ`oD)P>$_;VT$E7"
    "nu3TxDJ%SOn|7Z?n*fQ^Ms3;{qm6Ug1cjsqsayvxtkh^K0mB04QL{GP=1W_ANyu=%{WjkVjPC&F8=-JegHbE$f@xM^Oq7U^+H~U<T?%AQcgU"
    "tY%;;X^bP9!+G&qtAu;MD}RlNZ(3mZ5LuOQk(K}Gc7AV(dg@Tvx{SwR^yb$Stw37|A&5kx3VFqi0b0W_>YEWP8L;B^WoG<d^GwsE1Z*GgD9Z"
    "wee4$Z^>x8Hbl~oWc*t@fPPeP2p_~-mwl7R*pVnP@@6)`y8hBiV#e;{dif8OQ548FNK2TXda3zKPB$OpfIJu^cCxm^2boo;LPkLIBR*$BcaY"
    "(0aUI3&xCWVO+f7unAWK}XEd7F1fZ^ZnwGPvBEThRl-YyXW+9SQJA)^OZhyHKx06}+zP)EN>9c!JWXf#J=rnJWD{_z6f})J{yMOLnW?5u*f6"
    "{)EX_4BUC9hX2)3q6+Min`^sI@)Rl}a!Hqvzo-7O{6(0UOA;Eue6b8YXL%iafG9zpblUp|ol+4f7*+x3R(wEUTfLj5)gcK1q=etVsZ8og2kp"
    "WB7wMhjx98DcXANk5Bup#4oQX;#3q><UM3{{+ZAEkH1LW7VGjp_d9*Y6gfp6ZTy7%g!VfcZaV2j+leNjjiF`HCei9>b7)u4uAzN_b{*{-v>R"
    "yOkF%IQ9KTbWM54(D#I)NPQ(TdEk%!WMfM@RJf9BsSuAju(>j!gZ`TzRgddG_WCm&7y^43A@6HF`xoxxvEe{yWa^_yB*{d$Opx%&3<M_1Wvj"
    "PC)i4mn*7EAr^tx(ADYr<MK44+B55DeG?wAWI66odVK|d~l5dmJ4=^(^p23H<Cwn{(IV^fcG3})&0NapZVT#=H{P4J8{eT9<hD5XIf_UNsNb"
    ">=UZP*pLp>686b()0JOqx8jT80z;|`_?w+rd6j@rakmztGl}^Nx>2xfSlH$okCLWWdgcOb9=VUAzO-Qk{6wfe~cg^>P!l)x`sq|P!t)<iXUa"
    ")?Va`AhJ8|xhZn+4qaezNp?gqy-S!21P?TlXjyy*0R5oFjOHz@l{!_vm+nozt>g0N?H)!pwFfoi#5a%K-rybt9dVMMT~akuf*YIW0uwjZOg>"
    "cO#vBUPNvQ3dn>T>FmcM@^cZHbR(VZRYZon1Z2vMboNCN`I(3uZXuWMo6c)fNI<3^en00#WX6qjcAy?{KSgA8Q4u*?hzQNCBVxmHL!IY(K!E"
    "<%hA!Q4vT7i(*Iv8bH`K=Ux$Xf!zhCHXP3Hjn#z8*ly*ItHs#R8q>9f}Jwf_U0(5lS"
))  # fmt: skip
# The same in torch's format from before 1.6.
LEGACY_FILE = zlib.decompress(base64.b85decode(
    "c-n=O$#>gS6vj0;PNLEh=9Dqa4ugqpd4fWnQbIu;5|u#=MU~~3NJWu!rRPF9$LDwxH?U&Kf<>2IvSi7h!j?aQb6D_cs85{A;N#DhuAYA1efQ"
    "n>#?nuU_s_3ef3MxRyM4MkmM;Az<99?t#aIypA&deZ*nwx>WKrw}K8YA$oWv8)<=kT?^9QcwlXPe(2=ZGYGh_D$7Lz=pQpH$6Fm{57(}E@$G"
    "VWZTQ&}q+rGydqd$g#PhC_JTu<@A9;SwuXq5+H8;Jj;dg@kpT#EP+uH+Jpncg)>$I7v1SBHO8&L+*O9Vn(b#biIMenI8v{d9$vNT&Wm~Ndg#"
    "Y?J+84uP9qyVDYP2P@x6m6vlMb+D4;Z?=~ClPF<yPnyVcSkzV;Sr==ZD&}2=T(6T0J;)IkRog}RjoF35WWNL%l`mPnzDF?<*$vFaU)S8`6v)"
    "fVWL1$5u0bEIe2lS989?-)X>=90n>hxGv$;k5KFo@ZJ9>1T5MAb%j1BpHX-YR&j2@iFh&}mK7$`g7rV?M>{X`P-)%N<%+hiCtb_FPU|+tHRV"
    "PfYiDK=JoNMthOdOFF%r(j3d%rB^aqUf2r=P3!vVY+c*6dbdTDeERG8^j}M+|9S?0gVUQjRgERQ*56ImsMeylW(>}4W#OsG#xaw6z1gB#Zc@"
    ")p8i|RTnKU`IbZV!KiB@c>)R}R(h?bnvyR&q)(dl&P?VSEjPCt{--_7XnaXPD0FRf2M2t3-HO&_5t{M@m=YqV9B-p}FZbNB}dd@F;0$mxPk9"
    "~tGOrESZzBKo*+F`Er!s*(nl2-Zcg*4Hz}B~F)hx{^+x?T7ppZO=ipYe4J(ApoH#=^&vAUBxay`+t(*KIQb8PM@bs#=Z|Ne}H~9<`Gp??~8n"
    "bUnWE;A%2Am5Wmid*EoHnlbLRI^sBYcIE(1|oXtKRp^!Ca*QKs~xJq!fQ`Z9;BxPlp<1VK?ot(q;#=T89bozEUA}>wB1l<}~+@k&TxnD656("
    "|@{m~Q%e=OSrhY)I)TK+%X|CkYJWJ`T2P$zfWs*~Fp-kcw7PE?S#XQF-SaW(94$ShPKtinh~o(K)6RmH7m#t_nv#<Fokb;R}tSJJ27{pOCOA"
    "2rJMUv;p;?ZRk1_LSyI<`WgBKx&z&XeuIABlye7B5XGt8TJPSKT#!cje^Q%$CqZW)>3-%J;mBx^dPRQHvDm-O*}P8"
))  # fmt: skip
GRID = np.arange(24, dtype=np.float32).reshape(4, 6)
KINDS = {
    "transposed": GRID.T,
    "part": GRID[1:3, 2:5:2],
    "half": np.arange(3, dtype=np.float16),
    "bfloat16": np.arange(3).astype(jnp.bfloat16),
    "int64": np.arange(3),
    "bool": np.array([True, False, True]),
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "expanded": np.broadcast_to(np.arange(3, dtype=np.float32), (2, 3)),
    "parameter": np.arange(2, dtype=np.float32),
    "fc.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
    "fc.bias": np.arange(3, dtype=np.float32),
}
WRITERS = {".pt": torch_files.write, ".safetensors": files.write}


@pytest.fixture
def torch_file(tmp_path):
    path = tmp_path / "kinds.pt"
    path.write_bytes(TORCH_FILE)
    return path


def assert_kinds(tensors):
    assert set(tensors) == set(KINDS)
    for name, expected in KINDS.items():
        array = np.asarray(tensors[name])
        assert tensors[name].shape == expected.shape, name
        np.testing.assert_array_equal(array, expected, strict=True)


def archive(path, value, entries=(), top="x"):
    """A zip like torch's around any pickled value (or the bytes of a pickle)."""
    content = value if isinstance(value, bytes) else pickle.dumps(value, protocol=2)
    with zipfile.ZipFile(path, "w") as file:
        for name, numbers in {f"{top}/data.pkl": content, **dict(entries)}.items():
            file.writestr(name, numbers)
    return path


def rewritten(source, target, drop=(), change=None, compression=zipfile.ZIP_STORED):
    """A copy of an archive without some entries, or with others' content."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            if name not in drop:
                new.writestr(name, (change or {}).get(name, old.read(name)))
    return target


def refusal(path):
    """The one line with which a file is refused, which begins with its name."""
    with pytest.raises(InputError) as error, files.opened(path) as tensors:
        for tensor in tensors.values():
            np.asarray(tensor)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_torchs_own_files_are_read_whatever_the_strides_and_types(torch_file):
    with files.opened(torch_file) as tensors:
        assert_kinds(tensors)


@pytest.mark.parametrize("ending", WRITERS)
def test_what_is_written_is_read_again_bfloat16_too(tmp_path, ending):
    path = tmp_path / f"some name{ending}"
    WRITERS[ending](path, KINDS)
    with files.opened(path) as tensors:
        assert_kinds(tensors)
        assert np.asarray(tensors["bfloat16"]).dtype == jnp.bfloat16
    assert os.listdir(tmp_path) == [path.name]


def test_torch_reads_what_is_written_and_we_what_it_writes(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors_torch = pytest.importorskip("safetensors.torch")
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.pt"
    files.write(ours, KINDS)
    loaded = safetensors_torch.load_file(ours)
    assert set(loaded) == set(KINDS)
    torch.save(loaded, theirs)
    with files.opened(theirs) as tensors:
        assert_kinds(tensors)


def test_the_safetensors_package_reads_what_is_written_and_we_what_it_writes(tmp_path):
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    files.write(ours, KINDS)
    for name, array in load_file(ours).items():
        np.testing.assert_array_equal(array, KINDS[name], strict=True)
    save_file({name: np.asarray(array, order="C") for name, array in KINDS.items()}, theirs)
    with files.opened(theirs) as tensors:
        assert_kinds(tensors)


def test_a_remote_file_is_copied_and_the_copy_removed(tmp_path, monkeypatch):
    path, copies = tmp_path / "a.safetensors", []
    files.write(path, KINDS)
    isfile, copy = os.path.isfile, type(epath.Path(path)).copy
    monkeypatch.setattr(os.path, "isfile", lambda p: os.fspath(p) != os.fspath(path) and isfile(p))
    monkeypatch.setattr(
        type(epath.Path(path)), "copy", lambda self, to, **how: copies.append(to) or copy(self, to, **how)
    )
    with files.opened(path) as tensors:
        assert_kinds(tensors)
    assert len(copies) == 1 and not copies[0].exists()


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.ckpt", "a"])
def test_other_formats_than_safetensors_are_not_written(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name}: weights are written as .safetensors only; use a.safetensors"):
        files.write(tmp_path / name, KINDS)
    assert not os.listdir(tmp_path)


# --- what is refused


class Evil:
    """Pickled, it asks for a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Evil(os.system, "touch /tmp/never"), f"{os.name}.system"),
        (Evil(eval, "1"), "__builtin__.eval"),
        ({"a": Evil(getattr, "a", "b")}, "__builtin__.getattr"),
        (b"\x80\x02cguided_diffusion_jax.interop.pickled\nload\n.", "guided_diffusion_jax.interop.pickled.load"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.", "builtins.exec"),
        (b"\x80\x02ccollections\nOrderedDict.__init__\n.", "collections.OrderedDict.__init__"),
    ],
)
def test_a_pickle_that_asks_for_anything_else_is_refused_by_its_name(tmp_path, value, name):
    line = refusal(archive(tmp_path / "a.pt", value))
    assert f"entry x/data.pkl asks for {name}, which is not among" in line


def tensor(**settings):
    """The pickle of a state dict {"a": tensor}."""
    return b"\x80\x02}" + one(**settings) + b"s."


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "entry x/data.pkl holds a list instead of a state dict"),
        ({"model": {}}, "'model' in entry x/data.pkl is a dict instead of a tensor; in torch, save"),
        ({"epoch": 3}, "'epoch' in entry x/data.pkl is a int instead of a tensor"),
        (b"", "entry x/data.pkl is damaged: EOFError"),
        (b"\x80\x02}q", "entry x/data.pkl is damaged"),
        (tensor()[:-20], "entry x/data.pkl is damaged"),
        # A pickle may set what an object lets it set: our stand-ins let it set nothing.
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.", "entry x/data.pkl is damaged"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x01\x00\x00\x00aK\x01s\x86b.", "entry x/data.pkl is damaged"),
        (tensor(storage="ComplexFloatStorage"), "asks for torch.ComplexFloatStorage"),
        (tensor(shape=(2, 2)), "entry x/data.pkl is damaged: ValueError: a tensor of shape (2, 2)"),
        (tensor(strides=(-1,)), "entry x/data.pkl is damaged: ValueError: a tensor of shape (2,), strides (-1,)"),
        (tensor(offset=1), "entry x/data/0: a reaches to element 3, but there are 2"),
        (tensor(strides=(2,)), "entry x/data/0: a reaches to element 3, but there are 2"),
        (tensor(size=3), "entry x/data/0, the numbers of a, has 8 bytes instead of 12"),
        (tensor(key="7"), "entry x/data/7, the numbers of a, is missing"),
    ],
)
def test_a_pickle_of_no_plain_state_dict_is_refused_with_the_entrys_name(tmp_path, value, message):
    line = refusal(archive(tmp_path / "a.pt", value, {"x/data/0": bytes(8)}))
    assert message in line


def test_a_tensor_written_by_its_opcodes_is_read(tmp_path):
    path = archive(tmp_path / "a.pt", tensor(shape=(2, 1)[:1]), {"x/data/0": np.float32([3, 4]).tobytes()})
    with files.opened(path) as tensors:
        np.testing.assert_array_equal(np.asarray(tensors["a"]), [3, 4])


def test_a_truncated_file_is_refused(tmp_path, torch_file):
    with zipfile.ZipFile(torch_file) as file:
        entries = [info for info in file.infolist() if "/data/" in info.filename]
    short = tmp_path / "short.pt"
    for info in (entries[0], entries[3], entries[-1]):
        short.write_bytes(TORCH_FILE[: info.header_offset + 30 + len(info.filename) + 1])
        assert "is truncated: it ends without the directory of a zip archive; download it again" in refusal(short)
    short.write_bytes(TORCH_FILE[:-5])
    assert "is truncated" in refusal(short)
    short.write_bytes(TORCH_FILE[:3])
    assert "is no zip archive" in refusal(short)


def test_a_damaged_file_names_the_entry(tmp_path, torch_file):
    bad = tmp_path / "bad.pt"
    with zipfile.ZipFile(torch_file) as file:
        number = next(name for name in file.namelist() if "/data/" in name)
    assert f"entry {number}, the numbers of fc.weight, is missing" in refusal(rewritten(torch_file, bad, drop=[number]))
    short = rewritten(torch_file, bad, change={number: b"1234"})
    assert f"entry {number}, the numbers of fc.weight, has 4 bytes instead of 24" in refusal(short)
    position = TORCH_FILE.index(np.arange(6, dtype=np.float32).tobytes())
    bad.write_bytes(TORCH_FILE[:position] + b"\x01" + TORCH_FILE[position + 1 :])
    assert f"entry {number} is damaged: Bad CRC-32" in refusal(bad)
    assert "is compressed" in refusal(rewritten(torch_file, bad, compression=zipfile.ZIP_DEFLATED))
    assert "holds no entry NAME/data.pkl" in refusal(rewritten(torch_file, bad, drop=["kinds/data.pkl"]))
    swapped = rewritten(torch_file, bad, change={"kinds/byteorder": b"big"})
    assert "entry kinds/byteorder: only little-endian" in refusal(swapped)


@pytest.mark.parametrize("content", [LEGACY_FILE, LEGACY_FILE[:20]])
def test_a_file_of_the_format_before_torch_1_6_is_to_be_saved_again(tmp_path, content):
    path = tmp_path / "old.pt"
    path.write_bytes(content)
    assert "it has torch's format from before 1.6; re-save it with a newer torch" in refusal(path)


def test_tensors_that_disagree_on_their_storage_cannot_read_past_the_file(tmp_path):
    small, large = one("a") + b"s", one("b", size=9, shape=(9,)) + b"s"
    for tensors in (small + large, large + small):
        path = archive(tmp_path / "a.pt", b"\x80\x02}" + tensors + b".", {"x/data/0": bytes(8)})
        assert "entry x/data/0, the numbers of b, has 8 bytes instead of 36" in refusal(path)


def test_files_that_are_not_there_or_of_another_kind_are_refused(tmp_path):
    assert "is no file" in refusal(tmp_path / "absent.pt")
    assert "is no file" in refusal(tmp_path / "absent.safetensors")
    path = tmp_path / "a.ckp"
    with pytest.raises(InputError, match=r"the ending of .*a.ckp='.ckp' is not one of .safetensors, .pt, .pth"):
        adm.load(path)


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    files.write(path, {"first": np.zeros(3, np.float32), "second": np.zeros(5, np.float32)})
    complete = path.read_bytes()
    for content, message in {
        complete[:-4]: "file not fully covered",
        complete[:30]: "invalid header length",
        b"": "header too small",
        complete.replace(b"[3]", b"[4]"): "invalid shape, data type, or offset for tensor",
        complete.replace(b"F32", b"F31"): "unknown variant `F31`",
        complete[:8] + b"?" * (len(complete) - 8): "invalid JSON in header",
    }.items():
        path.write_bytes(content)
        line = refusal(path)
        assert "it is truncated, damaged or no .safetensors file: " in line and message in line


# --- whole networks

NETWORKS = sorted(path.stem for path in GOLDEN.glob("net*.npz"))


def heads(args, classifier):
    """What the tensors do not tell of one of the golden networks."""
    key, value = ("num_heads", args["num_heads"])
    if args["num_head_channels"] != -1:
        key, value = "head_width", args["num_head_channels"]
    told = {"num_res_blocks": args["num_res_blocks"]} if classifier else {}
    return {key: value, "attention_order": "new" if args["use_new_attention_order"] else "legacy"} | told


def state_dict(data):
    return {k.removeprefix("params/"): data[k] for k in data.arrays.files if k.startswith("params/")}


@pytest.mark.parametrize("name", NETWORKS)
def test_architecture_is_inferred_and_the_weights_go_there_and_back(golden, tmp_path, name):
    data = golden(name)
    args, weights = data.config["args"], state_dict(data)
    settings = heads(args, data.config["cls"] == "EncoderUNetModel")
    size = {"image_size": args["image_size"]}
    expected = MODULES[data.config["cls"]](args)
    order = {"attention_order": settings["attention_order"]} | size
    for ending, write in WRITERS.items():
        write(tmp_path / f"theirs{ending}", weights)
        loaded = adm.load(tmp_path / f"theirs{ending}", **settings, **size)
        jax.tree.map(
            np.testing.assert_array_equal, loaded.params, adm.params_from_state_dict(expected, weights, **order)
        )
    unused = {"num_heads": 1, "remat": False}
    assert bare(loaded.model).clone(**unused) == bare(expected).clone(**unused)
    assert type(loaded.model) is type(expected)
    kinds = {"EncoderUNetModel": "classifier", "SuperResModel": "super_resolution", "UNetModel": "unet"}
    assert loaded.kind == adm.kind_of(tmp_path / "theirs.pt") == kinds[data.config["cls"]]
    assert loaded.variance == ("learned_range" if args["out_channels"] == 6 else None)
    assert loaded.schedule is None and loaded.image_size == args["image_size"]
    adm.save(tmp_path / "ours.safetensors", loaded.model, loaded.params, **order)
    with files.opened(tmp_path / "ours.safetensors") as tensors:
        assert set(tensors) == set(weights)
        for key, array in weights.items():
            np.testing.assert_array_equal(np.asarray(tensors[key]), array, strict=True)


def test_a_published_network_needs_no_settings(tmp_path, golden, monkeypatch):
    data = golden("net3_unet_cond_neworder")
    args = data.config["args"]
    row = infer.Published(
        "unet", 16, 32, (1, 1, 2), 1, (8, 4), head_width=0, num_heads=4, attention_order="new", schedule="cosine"
    )
    monkeypatch.setattr(infer, "PUBLISHED", (*infer.PUBLISHED, row))
    torch_files.write(tmp_path / "a.pt", state_dict(data))
    loaded = adm.load(tmp_path / "a.pt")
    expected = adm.load(tmp_path / "a.pt", image_size=16, **heads(args, classifier=False))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
    assert loaded.model == expected.model
    assert loaded[2:] == ("unet", 16, "new", "learned_range", "cosine")
    assert adm.load(tmp_path / "a.pt", num_heads=2).model == loaded.model.clone(num_heads=2)


def bare(module):
    return module.unet if isinstance(module, SuperResolution) else module


SIZE = 8
TINY = UNet(width=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), head_width=16, num_classes=3)
GIVEN = {"image_size": SIZE, "head_width": 16}


def shapes(module, channels):
    x = jax.ShapeDtypeStruct((1, SIZE, SIZE, channels), jnp.float32)
    rest = () if isinstance(module, Classifier) else ({},)
    return jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(1), *rest)["params"]


def zeros(module, channels=3):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes(module, channels))


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    torch_files.write(path, adm.state_dict_from_params(TINY, zeros(TINY), image_size=SIZE, attention_order="legacy"))
    return path


def told(module, **given):
    """What the shapes of a module's weights tell, and the module's own settings of the same names."""
    weights = adm.state_dict_from_params(module, zeros(module), image_size=SIZE, attention_order="legacy")
    settings = infer.settings({name: array.shape for name, array in weights.items()}, SIZE, **given)
    return settings, {key: getattr(module, key) for key in settings}


@pytest.mark.parametrize(
    "change",
    [
        {"num_res_blocks": 2, "attention_resolutions": (8, 4)},
        {"resample": "conv", "channel_mult": (0.5, 1)},
        {"time_injection": "add", "attention_resolutions": ()},
        {"channel_mult": (2,), "num_res_blocks": 2, "attention_resolutions": ()},
        {"channel_mult": (1, 1, 2), "resample": "conv", "num_res_blocks": 2},
        {"num_classes": 0, "out_channels": 6},
    ],
)
def test_every_setting_that_shapes_tell_is_inferred(change):
    settings, own = told(TINY.clone(**change))
    assert settings == own
    one_level = len(own["channel_mult"]) == 1
    known = {"width", "channel_mult", "num_res_blocks", "attention_resolutions", "time_injection", "resample"}
    assert set(own) == (known - {"resample"} if one_level else known) | {"num_classes", "out_channels"}


@pytest.mark.parametrize(
    ("pool", "resample"), [("adaptive", "conv"), ("attention", "block"), ("spatial", "block"), ("spatial_v2", "conv")]
)
def test_every_pool_is_inferred(pool, resample):
    module = Classifier(
        width=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), head_width=16, num_classes=7,
        pool=pool, resample=resample,
    )  # fmt: skip
    settings, own = told(module, **({"num_res_blocks": 1} if resample == "block" else {}))
    assert settings == own
    assert {"pool", "num_classes", "channel_mult", "num_res_blocks", "resample"} <= set(own)


def test_a_classifiers_blocks_must_be_given_where_shapes_do_not_tell_them(golden, tmp_path):
    torch_files.write(tmp_path / "a.pt", state_dict(golden("net4_classifier_attention")))
    with pytest.raises(InputError, match=r"a.pt: num_res_blocks is missing: the weights do not tell it; give it"):
        adm.load(tmp_path / "a.pt", image_size=16, head_width=16)


def test_settings_that_shapes_do_not_tell_are_given(tiny_file):
    loaded = adm.load(tiny_file, **GIVEN, dropout=0.1, remat=True, dtype=jnp.bfloat16, class_fusion="add")
    assert loaded.model == TINY.clone(dropout=0.1, remat=True, dtype=jnp.bfloat16)


def test_upsamplers_are_known_by_the_channels_that_they_see(tmp_path):
    module = SuperResolution(TINY)
    low_res = {"low_res": jnp.zeros((1, 4, 4, 3))}
    x = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    tree = jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(1), low_res)["params"]
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), tree)
    path = tmp_path / "a.safetensors"
    adm.save(path, module, params, image_size=SIZE)
    assert adm.load(path, **GIVEN).model == module
    assert adm.load(path, **GIVEN, channels=6).model == TINY
    with pytest.raises(InputError, match=r"see 6 channels; a U-Net for images of 1 channels sees 1, an upsampler 2"):
        adm.load(path, **GIVEN, channels=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 64}, r"tiny.pt: .*misshapen \(.*have width=32, not 64"),
        ({"attention_resolutions": (8, 4)}, r"missing \(input_blocks.1.1.*resolutions=\(4,\), not \(8, 4\)"),
        ({"time_injection": "add"}, "misshapen .*have time_injection='scale_shift', not 'add'"),
        ({"num_classes": 1000}, r"1 misshapen \(label_emb.weight \(3, 128\) instead of \(1000, 128\)\)"),
        ({"num_classes": 0}, r"1 extra \(label_emb.weight\)"),
        ({"resample": "conv"}, "missing .*op.weight.* have resample='block', not 'conv'"),
        ({"out_channels": 6}, r"misshapen \(out.2.weight .*out_channels=3, not 6"),
        ({"channels": 1}, "the weights see 3 channels; a U-Net for images of 1 channels sees 1"),
        ({"head_width": 48}, "head_width=48 does not divide"),
        ({"attention_order": "old"}, "attention_order='old' is not one of legacy, new"),
        ({"class_fusion": "concat"}, "class_fusion='concat' has no counterpart in ADM"),
        ({"attribute_sizes": (2,)}, "takes attributes has no counterpart in ADM"),
        ({"image_size": None}, "image_size is missing"),
    ],
)
def test_settings_that_the_tensors_contradict_are_refused_with_what_they_tell(tiny_file, settings, message):
    with pytest.raises(InputError, match=message):
        adm.load(tiny_file, **GIVEN | settings)


def test_heads_must_be_given(tiny_file):
    with pytest.raises(InputError, match=r"head_width is missing: .* or num_heads"):
        adm.load(tiny_file, image_size=SIZE)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "it holds no tensors"),
        (["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "it seems to be a diffusers U-Net"),
        (
            ["conv_in.bias", "mid_block.attentions.0.transformer_blocks.0.norm1.bias"],
            "it seems to be a diffusers U-Net",
        ),
        (["conv_in.weight", "time_embedding.linear_1.weight"], "it seems to be a diffusers U-Net"),
        (
            ["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.middle_block.0.in_layers.0.bias"],
            "it seems to be a single file of Stable Diffusion",
        ),
        (["first_stage_model.a", "model.diffusion_model.b"], "it seems to be a single file of Stable Diffusion"),
        (
            ["input_blocks.1.1.transformer_blocks.0.norm1.bias", "middle_block.0.in_layers.0.bias"],
            "it seems to be a U-Net of latent diffusion",
        ),
        (["text_model.encoder.layers.0.mlp.fc1.bias", "logit_scale"], "it seems to be CLIP"),
        (["visual.transformer.resblocks.0.ln_1.bias"], "it seems to be CLIP"),
        (["fc.bias", "fc.weight"], "its tensors are fc.bias, fc.weight"),
        (["module.fc.weight"], "its tensors are module.fc.weight"),
    ],
)
def test_other_projects_files_are_refused_with_what_they_seem_to_be(tmp_path, names, message):
    path = tmp_path / "other.safetensors"
    files.write(path, dict.fromkeys(names, np.zeros((1, 1, 1, 1), np.float32)))
    assert not adm.is_adm(names)
    for read in (adm.load, adm.kind_of):
        with pytest.raises(InputError, match=rf"^\S*other.safetensors: .*{message}[^\n]*$"):
            read(path)


@pytest.mark.parametrize("prefix", ["module.", "ema.module."])
def test_a_prefix_that_all_names_share_is_ignored_with_a_note(tmp_path, tiny_file, prefix):
    with files.opened(tiny_file) as tensors:
        assert adm.is_adm(tensors)
        files.write(tmp_path / "a.safetensors", {f"{prefix}{name}": np.asarray(t) for name, t in tensors.items()})
    with pytest.warns(UserWarning, match=rf"a.safetensors: all names of tensors begin with '{prefix}'"):
        assert adm.load(tmp_path / "a.safetensors", **GIVEN).model == TINY


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path, tiny_file):
    path = tmp_path / "wrong.pt"
    with files.opened(tiny_file) as tensors:
        weights = {name: np.asarray(stored) for name, stored in tensors.items()}
    complete = {
        "width": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,),
        "time_injection": "scale_shift",
    }  # fmt: skip
    for missing in ("time_embed.0.weight", "input_blocks.3.1.qkv.weight", "input_blocks.0.0.weight", "out.2.bias"):
        torch_files.write(path, {name: array for name, array in weights.items() if name != missing})
        with pytest.raises(InputError, match=rf"wrong.pt: .* 1 missing \({missing}\);"):
            adm.load(path, **GIVEN, **complete)
    torch_files.write(path, weights | {"ema.decay": np.zeros(1)})
    with pytest.raises(InputError, match=r"wrong.pt: .* 1 extra \(ema.decay\)"):
        adm.load(path, **GIVEN)
    torch_files.write(path, weights | {"out.2.bias": np.zeros(4)})
    with pytest.raises(InputError, match=r"wrong.pt: .* 1 misshapen \(out.2.bias \(4,\) instead of \(3,\)\)"):
        adm.load(path, **GIVEN)
    torch_files.write(path, {name: array for name, array in weights.items() if name != "time_embed.0.weight"})
    with pytest.raises(InputError, match=r"wrong.pt: width is missing: the weights do not tell it"):
        adm.load(path, **GIVEN)


def test_damage_found_while_reading_names_the_file_once(tmp_path, tiny_file):
    with zipfile.ZipFile(tiny_file) as file:
        info = file.getinfo("tiny/data/5")
    content = bytearray(tiny_file.read_bytes())
    content[info.header_offset + 30 + len(info.filename) + len(info.extra)] ^= 1
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^\S*bad.pt: entry tiny/data/5 is damaged: Bad CRC-32[^:]*$"):
        adm.load(path, **GIVEN)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="measures memory as Linux tells it")
@pytest.mark.parametrize("ending", WRITERS)
def test_loading_needs_less_than_one_and_a_half_times_the_file(tmp_path, ending):
    unet = TINY.clone(width=192, num_res_blocks=2, channel_mult=(1, 2), head_width=64)
    path, settings = tmp_path / f"large{ending}", {"image_size": SIZE, "head_width": 64}
    weights = adm.state_dict_from_params(unet, zeros(unet), image_size=SIZE, attention_order="legacy")
    WRITERS[ending](path, weights)
    program = f"""
        import jax
        from guided_diffusion_jax.interop import adm

        def memory(key):
            return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

        jax.block_until_ready(jax.numpy.zeros(1))
        before = memory("VmRSS")
        loaded = adm.load({str(path)!r}, **{settings!r})
        print(memory("VmHWM") - before)
    """
    run = [sys.executable, "-c", textwrap.dedent(program)]
    peak = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    size = path.stat().st_size
    assert size > 80e6
    assert size < peak < 1.5 * size
