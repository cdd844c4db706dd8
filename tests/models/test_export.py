"""Exported weights come back, and a wrong folder is told from a right one."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from alphallm.errors import UserError
from alphallm.models.export import export_weights, load_export

PARAMS = {
    "layers": {
        "wq": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
        "norms": {0: np.ones(3), 1: np.zeros(2)},
    },
    "embed": jnp.arange(6, dtype=jnp.bfloat16).reshape(3, 2).T,
    "scale": np.float32(2.5),
}
CONFIG, METRICS = {"model": {"width": 4}}, {"solve_rate": 0.5}


@pytest.mark.smallest
@pytest.mark.parametrize("dtype, tolerance", [("float32", 0), ("bfloat16", 2**-8)])
def test_weights_come_back(tmp_path, dtype, tolerance):
    export_weights(tmp_path / "e", PARAMS, CONFIG, METRICS, dtype)
    params, config, metrics = load_export(tmp_path / "e")
    assert config == CONFIG and metrics == METRICS
    assert params.keys() == PARAMS.keys() and params["layers"]["norms"].keys() == {0, 1}
    for found, expected in [
        (params["layers"]["wq"], PARAMS["layers"]["wq"]),
        (params["layers"]["norms"][0], np.ones(3)),
        (params["embed"], [[0, 2, 4], [1, 3, 5]]),
        (params["scale"], 2.5),
    ]:
        assert found.dtype == np.float32 and found.shape == np.shape(expected)
        np.testing.assert_allclose(found, expected, rtol=tolerance)


def test_bfloat16_halves_the_file(tmp_path):
    params = {"w": np.zeros((300, 300), np.float32)}
    for dtype in ("float32", "bfloat16"):
        export_weights(tmp_path / dtype, params, {}, {}, dtype)
    large, small = ((tmp_path / dtype / "weights.safetensors").stat().st_size for dtype in ("float32", "bfloat16"))
    assert small < 0.51 * large


def test_a_wrong_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="choose one of float32, bfloat16"):
        export_weights(tmp_path, PARAMS, {}, {}, "int8")
    with pytest.raises(UserError, match="has no weights.safetensors"):
        load_export(tmp_path / "absent")
    export_weights(tmp_path, PARAMS, CONFIG, METRICS)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json' is damaged"):
        load_export(tmp_path)
    weights = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="damaged .* export them again"):
        load_export(tmp_path)
    save_file({"w": np.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="not exported by AlphaLLM"):
        load_export(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        export_weights(tmp_path / "file", PARAMS, CONFIG, METRICS)
