"""Networks of others become backbones that agree with what they were made of."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import backbone as backbones
from engine.backbone import MODELS_DIR, find_model, list_backbones, load_backbone, own_models_dir
from engine.errors import BackboneError, MismatchError
from engine.models.__main__ import main
from engine.models.saturation import find_unsafe_channels, read_int8_layers

torch = pytest.importorskip("torch", reason="needs the extra [models]: pip install torch==2.13.0")
architectures = pytest.importorskip("architectures")
from engine.models import build, importing  # noqa: E402
from engine.models.graph import Normalisation  # noqa: E402
from engine.models.importing import IMAGENET, Request, import_backbone  # noqa: E402
from engine.models.sources import load_source  # noqa: E402

# Not square, so that height and width taken for each other are found.
SIZE = (64, 96)
NETWORKS = ("resnet18", "resnet50", "vgg16", "densenet121")
TESTS = Path(__file__).parent


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder of models; known answers are not measured, which takes seconds."""
    folder = tmp_path / "models"
    monkeypatch.setenv("HILUM_MODELS", str(folder))
    monkeypatch.setattr(build, "add_probes", lambda name, folder: None)
    monkeypatch.setattr(importing, "_check_spread", lambda card: None)
    return folder


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve drawn X-rays in a folder for each finding."""
    from engine.phantoms import draw_phantom, write_png

    folder = tmp_path_factory.mktemp("phantoms")
    for seed in range(12):
        finding = ("none", "lobar", "diffuse")[seed % 3]
        (folder / finding).mkdir(exist_ok=True)
        write_png(
            draw_phantom(seed, finding, height=200, width=240), folder / finding / f"{seed}.png"
        )
    return folder


def save_weights(network: Any, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


def draw_input(size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Noise without black borders: what padding stands for must show."""
    return np.random.default_rng(3).integers(60, 256, (1, 1, *size), dtype=np.uint8)


def normalise(pixels: NDArray[np.uint8], how: Normalisation = IMAGENET) -> Any:
    x = pixels.astype(np.float64) * how.white / 255
    mean, std = (np.reshape(values, (1, -1, 1, 1)) for values in (how.mean, how.std))
    return torch.from_numpy(np.repeat((x - mean) / std, 4 - (x - mean).shape[1], 1)[:, :3]).float()


def check_maps(name: str, expected: dict[str, Any], pixels: NDArray[np.uint8]) -> None:
    with load_backbone(name, streams=1, taps="all", cache_dir="") as loaded:
        found = loaded.infer(pixels)
    assert list(found) == list(expected)
    for tap, values in expected.items():
        assert found[tap].shape == tuple(values.shape)
        largest = float(values.abs().max())
        assert largest > 0.5, tap  # weights under which a layer is silent would prove nothing
        assert np.abs(found[tap] - values.numpy()).max() <= 1e-3 * largest, tap
        # Far below what was promised, so that a border that is slightly wrong is found.
        assert np.abs(found[tap] - values.numpy()).max() <= 2e-5 * largest, tap


@pytest.mark.parametrize("name", NETWORKS)
def test_fp32_agrees_with_pytorch_at_every_tap(name: str, models: Path, tmp_path: Path) -> None:
    network = architectures.randomise(getattr(architectures, name)())
    card = import_backbone(
        Request(
            name=name,
            out=models,
            module=f"architectures:{name}",
            weights=save_weights(network, tmp_path / "weights.pt"),
            input_size=SIZE,
            least_stride=1,
            int8=False,
        )
    )
    assert card["input"]["stem"] == "folded with a channel of ones"
    pixels = draw_input()
    with torch.no_grad():
        check_maps(name, network.maps(normalise(pixels)), pixels)
    strides = {tap["name"]: tap["stride"] for tap in card["taps"]}
    assert strides["final"] == 32
    assert all(stride == int(tap.removeprefix("stride")) for tap, stride in strides.items()
               if tap != "final")  # fmt: skip
    assert max(card["import"]["taps"].values()) < 1e-5
    assert card["import"]["seen_in_source"] == list(strides)
    assert card["import"]["source"] < 1e-5


def tiny(stem: Any = None) -> Any:
    """A network of two strides whose stem is the caller's."""
    nn = torch.nn
    return architectures.randomise(
        nn.Sequential(
            stem or nn.Conv2d(3, 6, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )
    )


def broken() -> None:
    raise ValueError("not today")


def complete() -> Any:
    """A factory that returns the network with its weights."""
    return tiny()


def test_a_factory_with_its_own_weights(models: Path) -> None:
    request = Request(
        name="own", out=models, module="test_models_import:complete", own_weights=True,
        input_size=SIZE, int8=False,
    )  # fmt: skip
    card = import_backbone(request)
    network = complete()
    pixels = draw_input()
    with torch.no_grad():
        expected = network[3](network[2](network[1](network[0](normalise(pixels)))))
        stem = network[1](network[0](normalise(pixels)))
    maps = {"final": expected, "stride2": stem}
    check_maps("own", {tap["name"]: maps[tap["name"]] for tap in card["taps"]}, pixels)
    assert set(card["import"]["layers"]) == {tap["name"] for tap in card["taps"]}


class Transformer(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
    """Patches and attention between them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 8, 16, 16)

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return torch.softmax(x @ x.transpose(1, 2), -1) @ x


def test_a_transformer_is_refused(models: Path, tmp_path: Path) -> None:
    file = script(architectures.randomise(Transformer()), tmp_path / "t.ts")
    with pytest.raises(BackboneError, match="goes on with attention"):
        import_backbone(Request(name="t", out=models, source=file, input_size=SIZE, int8=False))
    assert not models.exists()


def script(network: Any, path: Path, size: tuple[int, int] = SIZE, channels: int = 3) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network, torch.zeros((1, channels, *size))).save(str(path))
    return path


def export(network: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(network, (torch.zeros((1, 3, *SIZE)),)), path)
    return path


def onnx(network: Any, path: Path) -> Path:
    pytest.importorskip("onnx", reason="writes the test's ONNX file: pip install onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.zeros((1, 3, *SIZE)),), str(path), dynamo=False)
    return path


@pytest.mark.parametrize(
    ("save", "suffix", "kind"),
    [(script, "ts", "TorchScript"), (export, "pt2", "exported program"), (onnx, "onnx", "ONNX")],
)
def test_files_agree_with_pytorch(
    save: Any, suffix: str, kind: str, models: Path, tmp_path: Path
) -> None:
    network = architectures.randomise(architectures.resnet18())
    card = import_backbone(
        Request(
            name="filed", out=models, source=save(network, tmp_path / f"net.{suffix}"), int8=False
        )
    )
    assert kind in card["origin"]["kind"]
    assert card["origin"]["file"] == f"net.{suffix}"  # and not its folder
    asked = [] if suffix == "onnx" else [tap["name"] for tap in card["taps"]]
    assert card["import"]["seen_in_source"] == asked
    # TorchScript leaves the size open; the others were written for one.
    size = (224, 224) if suffix == "ts" else SIZE
    assert (card["input"]["height"], card["input"]["width"]) == size
    pixels = draw_input((card["input"]["height"], card["input"]["width"]))
    with torch.no_grad():
        expected = network.maps(normalise(pixels))
    check_maps("filed", {tap["name"]: expected[tap["name"]] for tap in card["taps"]}, pixels)


class Reused(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
    """A stem that is no single convolution of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.two = torch.nn.Conv2d(3, 3, 1)

    def forward(self, x: Any) -> Any:
        return torch.cat([self.one(x), self.two(x)], 1)


@pytest.mark.parametrize(
    ("stem", "how", "expected"),
    [
        (None, Normalisation((0.5,), (0.25,)), "folded"),
        (None, IMAGENET, "folded with a channel of ones"),
        (None, Normalisation((103.9, 116.8, 123.7), (1,), 255), "folded with a channel of ones"),
        ("reused", IMAGENET, "repeated"),
        ("mirrored", IMAGENET, "repeated"),
        ("padded", IMAGENET, "folded with a channel of ones"),
        ("normed", IMAGENET, "repeated"),
        ("gray", Normalisation((0.4,), (0.2,)), "one channel"),
    ],
)
def test_stems(
    stem: str | None, how: Normalisation, expected: str, models: Path, tmp_path: Path
) -> None:
    channels = 1 if stem == "gray" else 3
    network = tiny(
        {
            "reused": Reused,
            "gray": lambda: torch.nn.Conv2d(1, 6, 3, 2, 1),
            "mirrored": lambda: torch.nn.Conv2d(3, 6, 5, 2, 2, padding_mode="reflect"),
            "padded": lambda: torch.nn.Sequential(
                torch.nn.ZeroPad2d((0, 1, 0, 1)), torch.nn.Conv2d(3, 6, 3, 2)
            ),
            "normed": lambda: torch.nn.Sequential(
                torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 6, 3, 2, 1)
            ),
        }.get(str(stem), lambda: None)()
    )
    card = import_backbone(
        Request(
            name="tiny",
            out=models,
            source=script(network, tmp_path / "tiny.ts", channels=channels),
            channels=channels,
            input_size=SIZE,
            least_stride=1,
            normalisation=how,
            int8=False,
        )
    )
    assert card["input"]["stem"] == expected
    pixels = draw_input()
    with torch.no_grad():
        x = network[1](network[0](normalise(pixels, how)[:, :channels]))
        maps = {card["taps"][0]["name"]: x, "final": network[3](network[2](x))}
    check_maps("tiny", maps, pixels)


def test_taps_that_are_named(models: Path, tmp_path: Path) -> None:
    network = architectures.randomise(architectures.resnet18())
    request = Request(
        name="named",
        out=models,
        module="architectures:resnet18",
        weights=save_weights(network, tmp_path / "w.pt"),
        input_size=SIZE,
        int8=False,
        taps=("deep=layer3", "layer2", "layer2.0"),
    )
    card = import_backbone(request)
    assert [tap["name"] for tap in card["taps"]] == ["layer2-0", "layer2", "deep"]
    pixels = draw_input()
    with torch.no_grad():
        maps = network.maps(normalise(pixels))
        first = network.layer2[0](maps["stride4"])
    check_maps(
        "named", {"layer2-0": first, "layer2": maps["stride8"], "deep": maps["stride16"]}, pixels
    )
    for taps, message in (
        (("layer9",), "no feature map 'layer9'; it has for example"),
        (("layer2", "layer2"), "a second time"),
        (("a+b=layer2",), "no name for a tap"),
    ):
        with pytest.raises(MismatchError, match=message):
            import_backbone(Request(**{**vars(request), "taps": taps, "replace": True}))
    assert sorted(path.name for path in models.iterdir()) == [
        "named.bin", "named.json", "named.xml",
    ]  # fmt: skip


def nested() -> Any:
    """A factory of two layers that have a layer 0 each."""
    nn = torch.nn
    return architectures.randomise(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 5, 3, 2, 1), nn.ReLU()),
        )
    )


def test_a_layer_is_not_taken_for_one_of_its_name_inside_another(models: Path) -> None:
    card = import_backbone(
        Request(
            name="nested", out=models, module="test_models_import:nested", own_weights=True,
            input_size=SIZE, int8=False, taps=("zero=0",),
        )
    )  # fmt: skip
    network = nested()
    assert [tap["channels"] for tap in card["taps"]] == [4]
    pixels = draw_input()
    with torch.no_grad():
        check_maps("nested", {"zero": network[0](normalise(pixels))}, pixels)


def test_a_wrong_map_is_found_behind_an_output_that_agrees(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any, **options: Any) -> Any:
        source = load_source(*arguments, **options)

        def other(x: Any, see: Any) -> Any:
            return source.run(x, lambda values: see(1.01 * values))

        return replace(source, run=other)

    monkeypatch.setattr(importing, "load_source", load)
    file = script(tiny(), tmp_path / "tiny.ts")
    with pytest.raises(BackboneError, match=r"what its source computes differ by 0.0099"):
        import_backbone(Request(name="t", out=models, source=file, input_size=SIZE, int8=False))
    assert not models.exists()


# --- INT8, end to end ---------------------------------------------------------------------------


def run(*arguments: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_int8_from_import_to_prediction(phantoms: Path, tmp_path: Path, repository: Path) -> None:
    models = tmp_path / "models"
    environment = {
        **os.environ,
        "HILUM_MODELS": str(models),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "LOCALAPPDATA": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join((str(repository), str(TESTS))),
    }
    weights = save_weights(
        architectures.randomise(architectures.resnet18()), tmp_path / "weights.pt"
    )
    said = run(
        "engine.models", "import", "--module", "architectures:resnet18", "--weights", str(weights),
        "--name", "my-resnet18", "--images", str(phantoms), "--input-size", "96x96",
        "--licence", "CC0-1.0", environment=environment,
    )  # fmt: skip
    assert "stride4, stride8, stride16, final" in said
    names = sorted(path.name for path in models.iterdir())
    assert names == ["my-resnet18.bin", "my-resnet18.json", "my-resnet18.xml"]
    card = json.loads((models / "my-resnet18.json").read_text(encoding="utf-8"))
    assert str(tmp_path) not in json.dumps(card)
    assert card["licence"] == "CC0-1.0"
    assert card["agreement_with_fp32"]["all"]["cosine_mean"] > 0.995
    # Instruction sets agree, and the bound is proved again from the file.
    assert max(tap["spread"] for tap in card["probes"]["taps"].values()) < 0.1
    layers = read_int8_layers(models / "my-resnet18.xml")
    assert len(layers) == 19  # all convolutions but the stem
    assert not any(find_unsafe_channels(layer).size for layer in layers)

    assert "my-resnet18\n" in run("engine.models", "list", environment=environment)
    container, head = str(tmp_path / "x.hilum"), str(tmp_path / "head.safetensors")
    run(
        "engine.extract", str(phantoms), "--backbone", "my-resnet18", "-o", container,
        "--seed", "1", environment=environment,
    )  # fmt: skip
    run("engine.train", container, "-o", head, "--quiet", environment=environment)
    picture = next(phantoms.rglob("*.png"))
    answer = json.loads(
        run(
            "engine.predict",
            str(picture),
            "--head",
            head,
            "--engines",
            "0",
            "--allow",
            "out_of_distribution",
            environment=environment,
        )
    )
    assert answer["status"] == "ok"
    assert answer["backbone"] == "my-resnet18"


class Grouped(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
    """Two groups of several channels, a matrix product, and a convolution without a bias."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, 2, 1, groups=2),
            nn.ReLU(),
        )
        self.gate = nn.Linear(8, 8)
        self.last = nn.Conv2d(8, 16, 1, bias=False)

    def forward(self, x: Any) -> Any:
        x = self.body(x)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        return torch.relu(self.last(x))


def test_int8_keeps_in_fp32_what_cannot_be_proved(
    models: Path, phantoms: Path, tmp_path: Path
) -> None:
    network = architectures.randomise(Grouped())
    card = import_backbone(
        Request(
            name="grouped",
            out=models,
            source=script(network, tmp_path / "grouped.ts"),
            images=phantoms,
            input_size=(32, 32),
        )
    )
    assert len(card["quantization"]["kept_in_fp32"]) == 3
    (layer,) = read_int8_layers(models / "grouped.xml")
    assert layer.weights.shape == (16, 8, 1, 1)
    # It had no bias that could be corrected, and has one now.
    assert card["quantization"]["calibration_data"]["n_biases_corrected"] == 1


def test_a_network_that_depends_on_the_cpu_is_refused() -> None:
    taps = {"a": {"spread": 0.01}, "b": {"spread": 0.9}}
    card = {"probes": {"instruction_sets": ["SSE41", "AVX2"], "taps": taps}}
    with pytest.raises(BackboneError, match=r"tap b differ by 0.9 .* SSE41, AVX2"):
        importing._check_spread(card)
    taps["b"]["spread"] = float("nan")
    with pytest.raises(BackboneError, match="differ by nan"):
        importing._check_spread(card)


# --- what is refused, and what is left behind ---------------------------------------------------


class Evil:
    """Pickled, it makes a file where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_nothing_is_unpickled_that_could_run(models: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    module = tmp_path / "module.pt"
    torch.save(Evil(mark), module)
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps(Evil(mark)))
    good = export(tiny(), tmp_path / "good.pt2")
    hidden, opaque = tmp_path / "hidden.pt2", tmp_path / "opaque.pt2"
    with (
        zipfile.ZipFile(good) as source,
        zipfile.ZipFile(hidden, "w") as target,
        zipfile.ZipFile(opaque, "w") as other,
    ):
        for name in source.namelist():
            inside = name.endswith("sample_inputs/model.pt")
            target.writestr(name, module.read_bytes() if inside else source.read(name))
            other.writestr(name, source.read(name))
        other.writestr("good/data/constants/opaque_obj_0", pickle.dumps(Evil(mark)))
    for file, message in (
        (module, "holds weights and no network"),
        (bare, "holds weights and no network"),
        (hidden, "cannot be read as tensors only"),
        (opaque, "carries objects of its own"),
    ):
        with pytest.raises(BackboneError, match=message):
            import_backbone(Request(name="evil", out=models, source=file, int8=False))
    with pytest.raises(BackboneError, match="Pickled objects are never read"):
        import_backbone(
            Request(
                name="evil",
                out=models,
                module="architectures:resnet18",
                weights=module,
                int8=False,
            )
        )
    assert not mark.exists()
    assert not models.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Upper"}, "lower-case letters"),
        ({"name": "efficientnet-lite0"}, "shipped backbone"),
        ({"source": "missing.onnx"}, "no such file"),
        ({"source": None}, "no network was given"),
        ({"module": "a:b"}, "a network comes from one of them"),
        ({"source": None, "module": "architectures"}, "expected package.module:factory"),
        ({"source": None, "module": "no_such:thing"}, "cannot be imported"),
        ({"source": None, "module": "architectures:Basic.growth"}, "expected a torch.nn.Module"),
        ({"source": None, "module": "architectures:resnet18"}, "no weights were given"),
        ({"source": None, "module": "test_models_import:broken"}, "raised ValueError: not today"),
        ({"own_weights": True}, "the file brings its own"),
        ({"int8": True}, "no pictures to quantize on"),
        ({"channels": 1}, "the network takes 3"),
        ({"normalisation": Normalisation((1, 2), (1,))}, "expected 1 or 3"),
        ({"normalisation": Normalisation((1,), (0,))}, "numbers above 0"),
        ({"default_taps": "nowhere:mean"}, "expected TAP:POOLING"),
    ],
)
def test_errors_say_what_to_do(
    changes: dict[str, Any], message: str, models: Path, tmp_path: Path
) -> None:
    request = {
        "name": "tiny",
        "out": models,
        "source": script(tiny(), tmp_path / "tiny.ts"),
        "input_size": SIZE,
        "int8": False,
    }
    with pytest.raises(BackboneError, match=message):
        import_backbone(Request(**{**request, **changes}))
    assert not models.exists()


def test_weights_of_another_network(models: Path, tmp_path: Path) -> None:
    weights = save_weights(tiny(), tmp_path / "w.pt")
    with pytest.raises(BackboneError, match="not the weights of this module"):
        import_backbone(
            Request(
                name="x", out=models, module="architectures:resnet18", weights=weights, int8=False
            )
        )


def test_too_few_pictures(models: Path, phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"4 pictures that can be read .* at least 8"):
        import_backbone(
            Request(
                name="tiny",
                out=models,
                source=script(tiny(), tmp_path / "tiny.ts"),
                images=phantoms / "none",
            )
        )


def test_a_failure_leaves_what_was_there(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(
        name="tiny",
        out=models,
        source=script(tiny(), tmp_path / "tiny.ts"),
        input_size=SIZE,
        int8=False,
    )

    def fail(name: str, folder: Path) -> None:
        assert (folder / f"{name}.json").exists()  # it fails late
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "add_probes", fail)
    with pytest.raises(KeyboardInterrupt):
        import_backbone(request)
    assert not models.exists()
    monkeypatch.setattr(build, "add_probes", lambda name, folder: None)
    card = import_backbone(request)
    before = {path.name: path.read_bytes() for path in models.iterdir()}
    with pytest.raises(BackboneError, match="there is a backbone tiny already"):
        import_backbone(request)
    again = Request(**{**vars(request), "replace": True})
    monkeypatch.setattr(build, "add_probes", fail)
    with pytest.raises(KeyboardInterrupt):
        import_backbone(again)
    assert {path.name: path.read_bytes() for path in models.iterdir()} == before
    monkeypatch.setattr(build, "add_probes", lambda name, folder: None)
    lock = models / ".tiny.lock"
    lock.touch()
    with pytest.raises(BackboneError, match=r"\.tiny\.lock: another import is writing"):
        import_backbone(again)
    lock.unlink()
    assert {path.name: path.read_bytes() for path in models.iterdir()} == before
    # The same network again is the same bytes: no counter of the process is left in it.
    assert import_backbone(again)["sha256"] == card["sha256"]


# --- where backbones are found ------------------------------------------------------------------


def test_own_backbones_are_found(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    models.mkdir()
    card = json.loads((MODELS_DIR / "efficientnet-lite0.json").read_text(encoding="utf-8"))
    for kind in ("xml", "bin"):
        shutil.copy(MODELS_DIR / f"efficientnet-lite0.{kind}", models / f"mine.{kind}")
    text = json.dumps(card | {"name": "mine"})
    (models / "mine.json").write_text(text, encoding="utf-8")
    # One that takes a shipped name is not taken for it.
    (models / "efficientnet-lite0.json").write_text("{}", encoding="utf-8")
    assert list_backbones() == ("efficientnet-lite0", "efficientnet-lite2", "mine")
    pixels = draw_input((224, 224))
    maps = []
    for name in ("efficientnet-lite0", "mine"):
        with load_backbone(name, streams=1, cache_dir="") as loaded:
            assert loaded.name == name
            maps.append(loaded.infer(pixels))
    assert all(np.array_equal(maps[0][tap], maps[1][tap]) for tap in maps[0])
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert f"default: {card['default_taps']}\n  {models}" in listed
    assert "default: block4:mean3x3,block7:mean3x3,block10:mean3x3\n  shipped" in listed
    (models / "mine.bin").write_bytes(b"altered")
    with pytest.raises(BackboneError, match="altered or damaged; import it again"):
        load_backbone("mine")

    monkeypatch.setenv("HILUM_MODELS", "")
    assert own_models_dir() is None
    assert list_backbones() == ("efficientnet-lite0", "efficientnet-lite2")
    monkeypatch.delenv("HILUM_MODELS")
    for variable in ("XDG_DATA_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    found = own_models_dir()
    assert found is not None
    assert found.is_relative_to(tmp_path)
    assert found.parts[-2:] == ("hilum", "models")
    assert found != backbones.default_cache_dir()
    assert find_model("mine", "bin") == found / "mine.bin"


def test_the_command_line_reports_errors(models: Path, capsys: Any) -> None:
    assert main(["import", "nothing.onnx", "--name", "x", "--no-int8"]) == 2
    error = capsys.readouterr().err
    assert "error: nothing.onnx: no such file" in error
    assert "Traceback" not in error
    assert main(["import", "x.onnx", "--name", "x", "--no-int8", "--mean", "1"]) == 2
    assert "--mean, --std: give both" in capsys.readouterr().err
    bad = ["import", "x.onnx", "--name", "x", "--no-int8", "--default-taps", "final:sum"]
    assert main(bad) == 2
    assert "--default-taps: unknown pooling 'sum'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["import", "x.onnx", "--name", "x", "--input-size", "huge"])
