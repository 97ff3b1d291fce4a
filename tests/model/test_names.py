"""What a model is called."""

from __future__ import annotations

import pytest
from tiny_models import CHATML, Tiny, chat_vocabulary, random_tensors, write

from oxibonsai.model import Model
from oxibonsai.model.names import shown_name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Bonsai 8B", "Bonsai 8B"),
        ("Hf Bonsai", "Hf Bonsai"),
        (" x ", " x "),
        *((name, "Bonsai-27B-PQ2_0") for name in ("Hf", "hf", " HF ", "Model", "", "  ", None, 7)),
    ],
)
def test_a_name_that_is_a_folders_gives_way_to_the_files(name, shown):
    metadata = {} if name is None else {"general.name": name}
    assert shown_name(metadata, "/models/Bonsai-27B-PQ2_0.gguf") == shown


def test_a_model_is_called_so(device, tmp_path):
    tiny = Tiny(n_layers=1, vocab=260)
    path = tmp_path / "Bonsai-27B.gguf"
    write(path, tiny, random_tensors(tiny), {**chat_vocabulary(CHATML), "general.name": "Hf"})
    with Model.load(path, device) as model:
        assert model.name == "Bonsai-27B"
