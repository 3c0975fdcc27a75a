"""The pages say what the code does, where that is cheap to check."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

from irstd_edge.complexity import count_parameters
from irstd_edge.data import DATASETS, PROTOCOLS
from irstd_edge.layouts import LAYOUTS
from irstd_edge.metrics import Accuracy
from irstd_edge.models.registry import MODELS, get_model
from irstd_edge.nn.binary import DOT_READINGS
from irstd_edge.training.quantisation import LAYERS, MANIFEST, METHODS, TABLE, WEIGHTS
from irstd_edge.training.quantise_cli import quantize
from irstd_edge.training.recipe import DISTILLATIONS, RECIPES, Distill, Recipe

DOCS = Path(__file__).parents[2] / "docs"


def page(name):
    return (DOCS / f"{name}.md").read_text()


def rows(text):
    return {row[0]: row[1] for row in re.findall(r"^\| `(\w+)`[^|]*\| ([^|]*) \|", text, re.MULTILINE)}


def test_the_recipe_table_has_every_field_and_its_default():
    table = rows(page("training"))
    assert [f.name for f in fields(Recipe)] == [name for name in table if name in Recipe.__dataclass_fields__]
    for field in fields(Recipe)[2:]:
        shown, default = table[field.name], field.default
        if isinstance(default, int | float):
            assert float(shown) == default, field.name
        else:
            assert shown == {None: "none"}.get(default, str(list(default) if isinstance(default, tuple) else default))


def test_the_distillation_table_has_every_field_and_its_default():
    table = rows(page("training").partition("| field of `[distill]`")[2])
    defaults = {f.name: f.default for f in fields(Distill)}
    assert {name: table.get(name) for name in defaults if defaults[name] not in (MISSING, "")} == {
        name: f"{v:g}" if isinstance(v, float) else v for name, v in defaults.items() if v not in (MISSING, "")}
    assert defaults.keys() <= table.keys() and all(m in table["method"] or f"`{m}`" in page("training")
                                                   for m in DISTILLATIONS)


def test_shipped_recipes_and_commands_exist():
    named = set(re.findall(r"irstd-edge train ([\w-]+)", page("training")))
    assert named and named <= {p.stem for p in RECIPES.glob("*.toml")}


def test_models_page():
    text = page("models")
    named = re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)
    assert [name for name in dict.fromkeys(named) if name in MODELS] == list(MODELS)
    counts = count_parameters(get_model("biisnet").factory())
    assert " / ".join(f"{v:,}" for v in counts.__dict__.values()) in text
    assert set(DOT_READINGS) <= rows(text).keys()


def test_layouts_of_the_models_page():
    table = re.findall(r"^\| `(\w+)` \| [\w-]+/([\w-]+) \| ([^|]*) \|", page("models"), re.MULTILINE)
    assert {name: (repository, tuple(re.findall(r"`([\w-]+)`", networks))) for name, repository, networks in table} == {
        name: (layout.source.rpartition("/")[2], layout.networks) for name, layout in LAYOUTS.items()}


def test_metrics_page():
    text = page("metrics")
    assert set(PROTOCOLS) <= rows(text).keys()
    for info in DATASETS.values():
        assert re.search(rf"{info.name}\s+{info.train} / {info.test}", text)
    assert {"fa", "fa_by_area"} <= {f.name for f in fields(Accuracy)} and "`fa_by_area`" in text


def test_quantisation_page():
    text = page("quantisation")
    options = {option for parameter in quantize.params for option in parameter.opts}
    named = set(re.findall(r"(?<!\w)--[a-z][a-z-]+", text))
    assert named and named <= options
    assert set(METHODS) <= rows(text).keys()
    assert {WEIGHTS, MANIFEST, LAYERS, TABLE} <= set(re.findall(r"^\| `([\w.]+)`", text, re.MULTILINE))


def test_links_lead_somewhere():
    for name in ("metrics", "training", "models", "quantisation"):
        for link in re.findall(r"\]\(([^)#:]+)\)", page(name)):
            assert (DOCS / link).exists(), (name, link)


def test_the_operators_of_each_target():
    from irstd_edge.export.targets import native, tflite_ops

    for name, writers in (("tflite", tflite_ops.WRITERS), ("native", native.WRITERS)):
        shown = rows(page("export").partition("## An operator that is refused")[2])[name]
        assert shown.split(", ") == sorted(k for k in writers if "::" not in k)


def test_the_fields_of_inspect():
    from irstd_edge.export.inspect import Inspection, Layer

    text = page("inspect")
    fields = [*Inspection("", "onnx", 0, None, ()).as_dict(), *Layer("", "", 0).as_dict()]
    assert [f for f in fields if f"`{f}`" not in text and f"`{f}[]`" not in text] == ["file", "kind", "isa"]
