"""Plugins: listed without being run, run only from inside their folder, and every fault one sentence with file and line."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from engine_cases import FLOAT64, autograd_rows, joined
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tracin_core.data.readers import Reader, sample_digest
from tracin_core.data.samples import with_labels
from tracin_core.data.seals import unsealed_text
from tracin_core.engine.health import check_model
from tracin_core.engine.kernel import tangent_kernel
from tracin_core.engine.models import build_model
from tracin_core.engine.plugins import PluginReader, load_plugin, plugin_model
from tracin_core.engine.training import train
from tracin_core.errors import DataError, PluginError, RecipeError, UnknownSampleError, UnreadableSampleError
from tracin_core.recipe import ClassificationTask, PluginData, PluginModel
from tracin_core.records.plugins import list_plugins, plugin_digest

TEMPLATE = Path(__file__).parents[1] / "docs" / "plugin-template.py"
SAYS_SO = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"
MODEL = "from torch import nn\ndef build(width=3): return nn.Linear(width, 1)\n"


def plugin(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


def reader(folder: Path, items: str, extra: str = "") -> PluginReader:
    """Of a data set with these items, an expression; `extra` lines go into its class."""
    plugin(
        folder,
        f"import numpy as np\nimport torch\nnan = float('nan')\nclass Set:\n    items = {items}\n{extra}"
        "    def __len__(self): return len(self.items)\n    def __getitem__(self, i): return self.items[i]\n"
        "def dataset(): return Set()\n",
    )
    return PluginReader(folder, PluginData(name="mine"))


# ---- the template ------------------------------------------------------------------------------------------------------------


def test_the_template_works_as_it_stands(tmp_path: Path) -> None:
    """Listed, read, shown, trained and checked, and what it learns is right on sounds that it was not trained on."""
    (tmp_path / "sounds.py").write_bytes(TEMPLATE.read_bytes())
    listed = list_plugins(tmp_path).iloc[0]
    assert (listed["name"], listed["model"], listed["data"], listed["problem"]) == ("sounds", True, True, "")
    source: Reader = PluginReader(tmp_path, PluginData(name="sounds", settings={"count": 40}))
    samples = source.list()
    assert list(samples.columns) == ["id", "target", "path", "pitch"]
    assert samples["id"].iloc[0] == "sound_000"
    assert set(samples["target"]) == {"low", "high"}
    inputs = source.read(samples)
    source.preview(samples.iloc[0], inputs[0], tmp_path / "shown")
    assert (tmp_path / "shown.wav").stat().st_size > 1000
    labelled = with_labels(samples, ClassificationTask()).assign(split=["train" if row < 30 else "validation" for row in range(40)])
    section = PluginModel(name="sounds")
    told = train(
        inputs, labelled, tmp_path / "run", model=section, task=ClassificationTask(), plugins=tmp_path, epochs=8, batch_size=8
    )
    assert told["validation_accuracy"] > 0.8
    assert all(check.passed for check in check_model(build_model(section, tmp_path), torch.from_numpy(inputs[:6])))


# ---- listing -----------------------------------------------------------------------------------------------------------------


def test_listing_runs_nothing(tmp_path: Path) -> None:
    """What a file offers is read off its text; only loading it runs it."""
    plugin(tmp_path, SAYS_SO + MODEL)
    table = list_plugins(tmp_path)
    digest = plugin_digest(tmp_path, "mine")
    assert not (tmp_path / "mine.ran").exists()
    assert table[["name", "model", "data", "digest"]].iloc[0].tolist() == ["mine", True, False, digest]
    load_plugin(tmp_path, "mine")
    assert (tmp_path / "mine.ran").exists()


def test_every_file_is_listed_with_what_is_wrong(tmp_path: Path) -> None:
    """No file that could be meant as a plugin is left out in silence; the owner's own files are."""
    folder, outside = tmp_path / "plugins", tmp_path / "outside.py"
    folder.mkdir()
    outside.write_text(MODEL)
    for name, text in {
        "a_model": MODEL,
        "data": "def dataset(): ...",
        "neither": "x = 1",
        "torn": "def build(:\n",
        "my-model": MODEL,
    }.items():
        plugin(folder, text, name)
    for name in ("_notes", ".hidden"):
        plugin(folder, MODEL, name)
    (folder / "zero.py").write_bytes(b"\0\0")
    (folder / "leads_out.py").symlink_to(outside)
    (folder / "leads_nowhere.py").symlink_to(folder / "none.py")
    (folder / "leads_inside.py").symlink_to(folder / "a_model.py")
    table = list_plugins(folder).set_index("name")
    assert sorted(table.index) == sorted(
        ["a_model", "data", "neither", "torn", "my-model", "zero", "leads_out", "leads_nowhere", "leads_inside"]
    )
    assert table.index[table["model"]].tolist() == ["a_model", "leads_inside"]
    assert table.index[table["data"]].tolist() == ["data"]
    assert table["problem"][["a_model", "data", "leads_inside"]].eq("").all()
    for name, told in {
        "neither": "neither build",
        "torn": "torn.py, line 1",
        "my-model": "does not name a plugin",
        "leads_out": "leads out of the folder",
        "leads_nowhere": "There is no plugin",
    }.items():
        assert told in table["problem"][name]
    assert table["problem"]["zero"]
    assert list_plugins(tmp_path / "none").empty


@given(name=st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_no_name_leads_out_of_the_folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is asked for, the file is that plugin or there is none."""
    folder = tmp_path_factory.mktemp("plugins")
    plugin(folder, MODEL)
    plugin(folder.parent, MODEL, "outside")
    if name == "mine":
        return
    with pytest.raises(PluginError):
        plugin_digest(folder, name)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "mine.py", "mine/../mine", "mine\0", "", "mine ", "..", "ＭＩＮＥ"])
def test_paths_are_no_names(tmp_path: Path, name: str) -> None:
    plugin(tmp_path, MODEL)
    plugin(tmp_path.parent, MODEL, "outside")
    with pytest.raises(PluginError, match="does not name a plugin"):
        load_plugin(tmp_path, name)


def test_a_link_that_leads_out_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "mine.py").symlink_to(plugin(tmp_path, SAYS_SO + MODEL, "outside"))
    with pytest.raises(PluginError, match="leads out of the folder"):
        load_plugin(folder, "mine")
    assert not list(tmp_path.rglob("*.ran"))


# ---- models ------------------------------------------------------------------------------------------------------------------


def test_a_changed_file_is_another_model(tmp_path: Path) -> None:
    """Each load runs the file anew, and its digest changes with it."""
    plugin(tmp_path, MODEL)
    before = plugin_digest(tmp_path, "mine")
    model = build_model(PluginModel(name="mine", settings={"width": 5}), tmp_path)
    assert isinstance(model, torch.nn.Linear)
    assert (model.in_features, model.training) == (5, False)
    plugin(tmp_path, MODEL.replace("1)", "2)"))
    assert build_model(PluginModel(name="mine"), tmp_path)(torch.ones(1, 3)).shape == (1, 2)
    assert plugin_digest(tmp_path, "mine") != before


def test_a_plugin_may_hold_dataclasses(tmp_path: Path) -> None:
    """They look their module up by its name."""
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Sizes:\n    width: int = 3\n"
    plugin(tmp_path, text + MODEL.replace("width=3", "width=Sizes().width"))
    assert plugin_model(tmp_path, PluginModel(name="mine"))(torch.ones(2, 3)).shape == (2, 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\n", r"mine\.py: it defines no function build"),
        ("def build(\n", r"mine\.py, line 1: the file raised SyntaxError"),
        ("\nimport no_such_package\n", r"mine\.py, line 2: the file raised ModuleNotFoundError: No module named 'no_such_package'"),
        (
            "def build():\n    return inner()\ndef inner():\n    return 1 / 0\n",
            r"mine\.py, line 4: build\(\.\.\.\) raised ZeroDivisionError",
        ),
        (
            "def build():\n    import torch\n    return torch.zeros(2, 3)\n",
            r"returned Tensor of shape \(2, 3\), not a torch\.nn\.Module",
        ),
        ("from torch import nn\ndef build(): return nn.ReLU()\n", "without parameters"),
        ("import sys\nsys.exit(3)\n", r"mine\.py, line 2: the file raised SystemExit"),
        ("raise ValueError('two\\nlines')\n", r"line 1: the file raised ValueError: two; correct the plugin"),
        (
            "def build(width): ...\n",
            r"mine\.py: build\(\.\.\.\) raised TypeError: build\(\) missing 1 required positional argument",
        ),
    ],
)
def test_a_fault_is_one_sentence_with_file_and_line(tmp_path: Path, text: str, told: str) -> None:
    plugin(tmp_path, text)
    with pytest.raises(PluginError, match=told) as failure:
        plugin_model(tmp_path, PluginModel(name="mine"))
    assert "\n" not in str(failure.value)


def test_a_plugin_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a plugin, and there is no folder of plugins"):
        build_model(PluginModel(name="mine"))
    with pytest.raises(PluginError, match=r"plugins/mine\.py is not in this workspace"):
        build_model(PluginModel(name="mine"), tmp_path)


# ---- data --------------------------------------------------------------------------------------------------------------------


def test_items_become_samples(tmp_path: Path) -> None:
    """Ids sort the table; read gives any of them in any order, and equal digests when it is asked again."""
    items = "[(torch.full((2, 2), i), f'c{i % 2}', {'day': i, 'who': 'x'}) for i in (1.5, 2.5, 3.5)]"
    source = reader(tmp_path, items, "    def ids(self): return ['b', 'c', 'a']\n")
    table = source.list()
    assert table.to_dict("list") == {
        "id": ["a", "b", "c"],
        "target": ["c1.5", "c1.5", "c0.5"],
        "path": ["", "", ""],
        "day": [3.5, 1.5, 2.5],
        "who": ["x", "x", "x"],
    }
    told: list[int] = []
    inputs = source.read(table.iloc[[2, 0]], told.append)
    assert inputs.dtype == np.float32
    np.testing.assert_array_equal(inputs[:, 0, 0], [2.5, 3.5])
    assert told == [1, 2]
    again = PluginReader(tmp_path, PluginData(name="mine"))
    assert [sample_digest(one) for one in again.read(table)] == [sample_digest(one) for one in source.read(table)]
    assert again.preprocessing == source.preprocessing
    with pytest.raises(UnknownSampleError):
        source.read(pd.DataFrame({"id": ["d"], "target": ["c1.5"]}))


@pytest.mark.parametrize(
    ("item", "dtype", "values"),
    [
        ("(torch.tensor([1.0, 2.0], dtype=torch.bfloat16), 0)", np.float32, [1, 2]),
        ("(torch.tensor([1.5], requires_grad=True), torch.tensor(2))", np.float32, [1.5]),
        ("(torch.tensor([0, 255], dtype=torch.uint8), True)", np.float32, [0, 1]),
        ("(torch.tensor([7, 2**40]), np.float32(1))", np.int64, [7, 2**40]),
        ("(np.array([True, False]), 'a')", np.float32, [1, 0]),
    ],
)
def test_inputs_are_numbers_a_model_takes(tmp_path: Path, item: str, dtype: type, values: list[float]) -> None:
    source = reader(tmp_path, f"[{item}]")
    table = source.list()
    assert table["id"].tolist() == ["row0"]
    inputs = source.read(table)
    assert inputs.dtype == dtype
    assert inputs[0].tolist() == values


@pytest.mark.parametrize(
    ("items", "extra", "told"),
    [
        ("[]", "", "the data set is empty"),
        ("[torch.ones(2)]", "", r"item 0 is Tensor of shape \(2,\), not \(input, target\)"),
        ("[([1, 2], 0)]", "", "the input of item 0 is list, not one Tensor"),
        ("[(torch.ones(2), torch.ones(3))]", "", r"the target of item 0 is Tensor of shape \(3,\), neither one number nor text"),
        ("[(torch.ones(2), None)]", "", "the target of item 0 is NoneType"),
        ("[(torch.ones(2), 0, 5)]", "", "the metadata of item 0 are int"),
        (
            "[(torch.ones(2), 0, {'day': 1}), (torch.ones(2), 0, {'hour': 1})]",
            "",
            "item 1 and item 0 do not both have the metadata day, hour",
        ),
        (
            "[(torch.ones(2), 0), (torch.ones(3), 0)]",
            "",
            r"item 1 is float32 of shape \(3,\), but the first is float32 of shape \(2,\)",
        ),
        ("[(torch.ones(2), 0), (torch.ones(2).long(), 0)]", "", "item 1 is int64"),
        ("[(torch.ones(2) * 1j, 0)]", "", "complex64"),
        ("[(torch.ones(2), 0)]", "    ids = ['a', 'b']\n", "1 items, but 2 ids"),
        (
            "[(torch.ones(2), 0)]",
            "    def ids(self): return self.names\n",
            r"mine\.py, line 6: ids of the data set raised AttributeError",
        ),
    ],
)
def test_items_that_are_not_as_described_are_refused(tmp_path: Path, items: str, extra: str, told: str) -> None:
    def read() -> None:
        source = reader(tmp_path, items, extra)
        source.read(source.list())

    with pytest.raises(PluginError, match=told):
        read()


def test_other_refusals_name_the_sample(tmp_path: Path) -> None:
    """Values that are no numbers, ids that repeat, and names that the product uses itself."""
    source = reader(tmp_path, "[(torch.ones(2), 0), (torch.tensor([1.0, nan]), 0)]")
    with pytest.raises(UnreadableSampleError, match="'row1' holds nan at "):
        source.read(source.list())
    with pytest.raises(DataError, match="'a' stands twice"):
        reader(tmp_path, "[(torch.ones(2), 0)] * 2", "    ids = ['a', 'a']\n").list()
    with pytest.raises(DataError, match="'label' of a column"):
        reader(tmp_path, "[(torch.ones(2), 0, {'label': 1})]").list()
    plugin(tmp_path, "def dataset(): return 5\n")
    with pytest.raises(PluginError, match=r"dataset\(\.\.\.\) returned int, which has no len"):
        PluginReader(tmp_path, PluginData(name="mine"))


def test_a_target_that_changes_is_refused(tmp_path: Path) -> None:
    """A data set that shuffles itself would give each sample another's label."""
    source = reader(tmp_path, "[(torch.ones(2), 0), (torch.ones(2), 1)]")
    table = source.list()
    with pytest.raises(PluginError, match="item 0 had the target 1 before and has 0 now"):
        source.read(table.assign(target=[1, 0]))


@pytest.mark.parametrize(
    ("returned", "suffix"),
    [
        ("Image.new('P', (9, 7))", ".png"),
        ("Image.new('L', (9, 7))", ".png"),
        ("'first\\nsecond'", ".txt"),
        ("(np.zeros(900), 8000)", ".wav"),
        (None, ".png"),
    ],
)
def test_previews_are_what_the_plugin_makes(tmp_path: Path, returned: str | None, suffix: str) -> None:
    source = reader(tmp_path, "[(torch.rand(5, 4), 0)]")
    text = (tmp_path / "mine.py").read_text()
    if returned:
        plugin(tmp_path, f"{text}from PIL import Image\ndef preview(x):\n    assert x.shape == (5, 4)\n    return {returned}\n")
        source = PluginReader(tmp_path, PluginData(name="mine"))
    table = source.list()
    source.preview(table.iloc[0], source.read(table)[0], tmp_path / "shown")
    assert [path.name for path in tmp_path.glob("shown.*")] == [f"shown{suffix}"]
    if suffix == ".png":
        assert min(Image.open(tmp_path / "shown.png").size) >= 50
    if suffix == ".txt":
        assert unsealed_text((tmp_path / "shown.txt").read_text()) == "first\nsecond\n"


@pytest.mark.parametrize(("returned", "told"), [("5", "neither a PIL image"), ("(np.zeros((2, 9)), 8000)", "one channel")])
def test_previews_of_another_kind_are_refused(tmp_path: Path, returned: str, told: str) -> None:
    reader(tmp_path, "[(torch.rand(5, 4), 0)]")
    plugin(tmp_path, (tmp_path / "mine.py").read_text() + f"def preview(x): return {returned}\n")
    source = PluginReader(tmp_path, PluginData(name="mine"))
    with pytest.raises(PluginError, match=re.escape(told)):
        source.preview(source.list().iloc[0], np.ones((5, 4), dtype=np.float32), tmp_path / "shown")


def test_a_plugins_kernel_is_that_of_plain_autograd(tmp_path: Path) -> None:
    """The engine treats a plugin's model as any other; here in float64, one backward pass per sample."""
    (tmp_path / "sounds.py").write_bytes(TEMPLATE.read_bytes())
    torch.manual_seed(0)
    model = build_model(PluginModel(name="sounds", settings={"width": 4}), tmp_path).double()
    inputs = torch.randn(4, 1, 200, dtype=torch.float64)
    cotangent = torch.randn(4, 2, dtype=torch.float64)
    gradients = joined(autograd_rows(model, inputs, 4, cotangent))
    torch.testing.assert_close(tangent_kernel(model, inputs, left_cotangent=cotangent), gradients @ gradients.T, **FLOAT64)
