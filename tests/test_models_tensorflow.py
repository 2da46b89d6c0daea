"""A SavedModel of TensorFlow becomes a backbone that agrees with Keras; needs no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backbone import load_backbone
from engine.errors import BackboneError
from engine.models import importing
from engine.models.graph import Normalisation
from engine.models.importing import Request, import_backbone

SIZE = (64, 96)
MEAN = (103.939, 116.779, 123.68)
NETWORKS: dict[str, dict[str, str]] = {
    "ResNet50": {
        "stride4": "conv2_block3_out",
        "stride8": "conv3_block4_out",
        "stride16": "conv4_block6_out",
        "final": "conv5_block3_out",
    },
    "VGG16": {
        "stride4": "block3_conv3",
        "stride8": "block4_conv3",
        "stride16": "block5_conv3",
        "final": "block5_pool",
    },
    "DenseNet121": {
        "stride4": "pool2_conv",
        "stride8": "pool3_conv",
        "stride16": "pool4_conv",
        "final": "relu",
    },
}


@pytest.mark.filterwarnings("ignore")  # of TensorFlow and Keras themselves
@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_model_agrees_with_keras(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("tensorflow", reason="not installed: pip install tensorflow-cpu")
    import keras

    monkeypatch.setenv("HILUM_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(importing.build, "add_probes", lambda name, folder: None)
    monkeypatch.setattr(importing, "_check_spread", lambda card: None)
    keras.utils.set_random_seed(0)
    network = getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(*SIZE, 3)
    )
    network.export(str(tmp_path / "saved"), verbose=False)
    request = Request(name="keras", out=tmp_path / "models", source=tmp_path / "saved", int8=False)
    with pytest.raises(BackboneError, match="say it with --mean, --std and --white"):
        import_backbone(request)
    how = Normalisation(MEAN, (1.0,), 255.0)
    card = import_backbone(Request(**{**vars(request), "normalisation": how}))
    assert card["input"]["stem"] == "folded with a channel of ones"

    layers = NETWORKS[name]
    maps = keras.Model(
        network.input, [network.get_layer(layer).output for layer in layers.values()]
    )
    pixels = np.random.default_rng(3).integers(60, 256, (1, 1, *SIZE), dtype=np.uint8)
    x = pixels.transpose(0, 2, 3, 1).astype(np.float32) - np.array(MEAN, np.float32)
    expected = maps.predict(x, verbose=0)
    with load_backbone("keras", streams=1, taps="all", cache_dir="") as loaded:
        found = loaded.infer(pixels)
    assert list(found) == list(layers)
    for tap, values in zip(layers, expected, strict=True):
        largest = float(np.abs(values).max())
        assert largest > 0.01, tap
        difference = float(np.abs(found[tap].transpose(0, 2, 3, 1) - values).max()) / largest
        with capsys.disabled():
            print(f"\n{name} {tap}: {difference:.1e} of {largest:.3g}", end="")
        assert difference <= 1e-3, tap
