"""The reader of TorchScript archives, against torch.jit itself and against made-up archives."""

import copy
import io
import random
import zipfile

import clip
import pytest
import torch
from clip.model import convert_weights
from torch import nn

from apd.clip import load_clip
from apd.clip.torchscript import Refused, is_torchscript, read_torchscript, tensors

pytestmark = pytest.mark.filterwarnings("ignore")  # torch deprecates torch.jit


def archived(model, path):
    """As OpenAI publishes CLIP: traced, in half precision, with three buffers of its sizes."""
    half, model = (copy.deepcopy(model).eval() for _ in range(2))
    convert_weights(half)
    size = model.visual.input_resolution
    for name, value in {
        "input_resolution": size,
        "context_length": 77,
        "vocab_size": 49408,
    }.items():
        model.__dict__.pop(name, None)
        model.register_buffer(name, torch.tensor(value))
    inputs = torch.zeros(1, 3, size, size), clip.tokenize("a")
    traced = torch.jit.trace(model, inputs, check_trace=False)
    for name, parameter in traced.named_parameters():
        parameter.data = half.state_dict()[name]
    traced.save(path)
    return str(path)


def assert_same(found, want):
    assert list(found) == list(want)
    for name, value in want.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize("backbone", ["vit", "resnet"])
def test_openais_layout_is_read_as_torch_reads_it(request, tmp_path, backbone):
    path = archived(request.getfixturevalue(backbone), tmp_path / "clip.pt")
    want = torch.jit.load(path).state_dict()
    assert {value.dtype for value in want.values()} == {torch.float16, torch.float32, torch.int64}
    assert is_torchscript(path)
    assert_same(tensors(read_torchscript(path)), want)


@pytest.mark.parametrize("backbone", ["vit", "resnet"])
def test_a_clip_from_an_archive_gives_the_logits_of_its_own_weights(request, tmp_path, backbone):
    model = request.getfixturevalue(backbone)
    loaded = load_clip(archived(model, tmp_path / "clip.pt"))
    rounded = copy.deepcopy(model)
    convert_weights(rounded)
    for block in rounded.transformer.resblocks:
        block.attn.num_heads, block.attn.head_dim = 1, 64  # a head for every 64 channels
    size = model.visual.input_resolution
    inputs = torch.rand(2, 3, size, size), clip.tokenize(["a cat", "two dogs"])
    with torch.no_grad():
        for ours, theirs in zip(loaded(*inputs), rounded.float().eval()(*inputs)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


class Scripted(nn.Module):
    """Of each kind of tensor and attribute that TorchScript saves."""

    names: list[str]
    sizes: dict[str, int]

    def __init__(self):
        super().__init__()
        self.names, self.sizes, self.pair, self.none = ["a", "b"], {"a": 1}, (1, 2.5), None
        self.attention = nn.MultiheadAttention(8, 2)
        self.tied = self.attention.out_proj.weight
        for dtype in (torch.bool, torch.uint8, torch.int16, torch.bfloat16, torch.float64):
            self.register_buffer(f"of_{str(dtype)[6:]}", torch.ones(3, dtype=dtype))
        self.register_buffer("empty", torch.ones(0, 2))
        self.register_buffer("scalar", torch.tensor(3))
        self.register_buffer("strided", torch.arange(12.0).view(3, 4).t()[1:, ::2])

    def forward(self, images: torch.Tensor):
        return images + len(self.names) + self.sizes["a"] + self.pair[0]


def test_scripted_modules_of_every_kind_are_read_as_torch_reads_them(tmp_path):
    torch.jit.script(Scripted()).save(tmp_path / "a.pt")
    modules = read_torchscript(tmp_path / "a.pt")
    assert_same(tensors(modules), torch.jit.load(tmp_path / "a.pt").state_dict())
    assert modules["attention"].kind == "MultiheadAttention"
    assert modules["attention"].attributes["num_heads"] == 2
    assert modules[""].attributes["names"] == ["a", "b"]


@pytest.mark.parametrize("gelu", [True, False])
def test_the_activation_is_read_off_an_archive(vit, tmp_path, capsys, gelu):
    model = copy.deepcopy(vit)
    blocks = [*model.transformer.resblocks, *model.visual.transformer.resblocks]
    for block in blocks if gelu else ():
        block.mlp.gelu = nn.GELU()
    loaded = load_clip(archived(model, tmp_path / "clip.pt"))
    want = nn.GELU if gelu else clip.model.QuickGELU
    for encoder in (loaded, loaded.visual):
        assert {type(block.mlp.gelu) for block in encoder.transformer.resblocks} == {want}
    printed = capsys.readouterr().out
    assert ("a head for every 64 channels" in printed) == gelu and "QuickGELU" not in printed


# -- damaged and made-up archives -------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "a.pt"
    torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))).save(path)
    return path.read_bytes(), tensors(read_torchscript(path))


@pytest.mark.parametrize("seed", range(8))
def test_damage_is_refused_or_changes_nothing(tmp_path, small, seed):
    raw, want = small
    draw, path = random.Random(seed), tmp_path / "a.pt"
    for _ in range(40):
        damaged = bytearray(raw)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged[: draw.choice([None, draw.randrange(len(damaged))])])
        try:
            found = tensors(read_torchscript(path))
        except Refused:
            continue
        assert_same(found, want)


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_pickle_in_a_whole_archive_is_read_or_refused(tmp_path, small, seed):
    """Checksums are right here, as a hostile archive's are."""
    draw, path = random.Random(seed), tmp_path / "a.pt"
    with zipfile.ZipFile(io.BytesIO(small[0])) as source:
        records = {name: source.read(name) for name in source.namelist()}
    pickled = next(name for name in records if name.endswith("/data.pkl"))
    for _ in range(40):
        damaged = bytearray(records[pickled])
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {**records, pickled: bytes(damaged)}.items():
                archive.writestr(name, content)
        try:
            found = tensors(read_torchscript(path))
        except Refused:
            continue
        assert sum(value.nbytes for value in found.values()) <= path.stat().st_size


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def number(value):
    return b"J" + value.to_bytes(4, "little", signed=True)


def module(attributes, name="Net"):
    return f"c__torch__\n{name}\n".encode() + b")\x81}(" + attributes + b"ub"


def tensor(key="0", count=4, size=(4,), stride=(1,), offset=0, kind="FloatStorage"):
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    sizes = b"".join(b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (size, stride))
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return rebuild + storage + number(count) + b"tQ" + number(offset) + sizes + b"\x89}tR"


@pytest.fixture
def archive(tmp_path):
    """Function: the path of an archive with that pickle and one storage of four floats."""

    def write(pickled, compress=zipfile.ZIP_STORED):
        with zipfile.ZipFile(tmp_path / "a.pt", "w", compress) as made:
            made.writestr("a/data.pkl", b"\x80\x02" + pickled + b".")
            made.writestr("a/constants.pkl", b"\x80\x02).")
            made.writestr("a/data/0", torch.arange(4.0).numpy().tobytes())
        return tmp_path / "a.pt"

    return write


def test_a_made_up_archive_is_read(archive):
    inner = module(text("b") + tensor(size=(2, 2), stride=(1, 2)))
    found = tensors(read_torchscript(archive(module(text("a") + tensor() + text("n") + inner))))
    assert found.keys() == {"a", "n.b"}
    assert torch.equal(found["a"], torch.arange(4.0))
    assert torch.equal(found["n.b"], torch.tensor([[0.0, 2.0], [1.0, 3.0]]))


@pytest.mark.parametrize(
    "pickled, why",
    {
        "a-call": (b"cos\nsystem\n(" + text("true") + b"tR", "asks for os.system, which is never"),
        "from_file": (b"ctorch\nfrom_file\n(" + text("x") + b"tR", "asks for torch.from_file"),
        "no-name": (text("x") + b")R", "calls something else than a name"),
        "another-opcode": (b"\x8c\x01x", "the opcode SHORT_BINUNICODE"),
        "__setstate__": (b"c__torch__\nNet\n)\x81(" + text("x") + b"tb", "Net is restored by code"),
        "a-dict": (b"}", "holds no module"),
        "another-storage": (module(text("a") + tensor(kind="UntypedStorage")), "UntypedStorage"),
        "too-few-bytes": (module(text("a") + tensor(count=5)), "has 16 bytes for 5 of"),
        "no-record": (module(text("a") + tensor(key="1")), "KeyError"),
        "outside-the-root": (module(text("a") + tensor(key="../../x")), "KeyError"),
        "out-of-bounds": (module(text("a") + tensor(size=(4,), offset=1)), "out of bounds"),
        "before-the-start": (module(text("a") + tensor(size=(2,), offset=-1)), "damaged"),
        "negative": (module(text("a") + tensor(size=(-4,))), "larger than the file"),
        "two-negatives": (
            module(text("a") + tensor(size=(-2, -2), stride=(1, 1))),
            "damaged",
        ),
        "huge": (module(text("a") + tensor(size=(2**30, 2**30), stride=(0, 0))), "larger than"),
        "often": (
            module(b"".join(text(f"a{i}") + tensor() for i in range(1000))),
            None,
        ),
        "a-cycle": (
            b"c__torch__\nNet\n)\x81q\x00}(" + text("self") + b"h\x00ub",
            "module self stands in several places",
        ),
        "twice": (
            module(text("a") + module(b"")[:-1] + b"bq\x01" + text("b") + b"h\x01"),
            "module a stands in several places",
        ),
        "a-number-as-key": (b"}" + number(1) + number(1) + b"s", "a key that is no text"),
        "an-empty-stack": (b"R", "damaged"),
        "an-endless-one": (b"X\xff\xff\xff\xff", "damaged"),
    }.values(),
    ids=lambda value: "" if not isinstance(value, str) else value[:20],
)
def test_hostile_archives_are_refused(archive, pickled, why):
    path = archive(pickled)
    if why is None:  # views of one storage, with a pickle that is longer than they are
        assert len(tensors(read_torchscript(path))) == 1000
        return
    with pytest.raises(Refused, match=why):
        read_torchscript(path)


def test_compressed_records_are_refused(archive):
    """Unpacked they might be of any size."""
    with pytest.raises(Refused, match="compressed"):
        read_torchscript(archive(module(b""), zipfile.ZIP_DEFLATED))


def test_other_files_are_no_torchscript(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"PK")
    assert not any(is_torchscript(tmp_path / name) for name in ("a.pt", "b.pt", "none.pt"))
