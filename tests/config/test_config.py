"""A mistake in an experiment is named by file or override, dotted path and cure, in one line; what is right survives a round trip."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from loader import config
from loader.errors import ConfigError
from loader.scan.sampling import Sample

EXPERIMENT = """
lake: {location: ./lake, table: samples}
data:
  label: bought_again
  dense: [{column: price, transform: log1p}]
  sparse: [{column: product, num_embeddings: 1000}, {column: household, num_embeddings: 512, hash: true}]
  history: [{column: history, embedding: product}]
  closed_before: 2017-10-01
loader: {global_batch_size: 4096}
train: {learning_rate: 1e-3}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT)
    return path


def test_values_come_from_the_file_and_defaults_fill_the_rest(experiment: Path) -> None:
    loaded = config.load(experiment)
    assert loaded.data.dense[0].transform == "log1p"
    assert loaded.train.learning_rate == 1e-3
    assert loaded.loader.window_rows == 262_144
    assert loaded.data.closed_before == "2017-10-01", "dates stay text: the table's time unit decides what they mean"


def test_the_columns_to_read_are_the_features_and_the_label_once_each(experiment: Path) -> None:
    assert config.load(experiment).data.columns == ["price", "product", "household", "history", "bought_again"]


def test_transforms_say_what_is_read_in_place_of_what_they_make(experiment: Path) -> None:
    steps = "data.transforms=[{kind: hash, columns: [sku], buckets: 1000, into: [product]}, {kind: clip, columns: [price], max: 9}]"
    assert config.load(experiment, [steps]).data.columns == ["price", "household", "history", "bought_again", "sku"]
    with pytest.raises(ConfigError, match=r"data: transforms\[0\] \(hash\) lacks buckets"):
        config.load(experiment, ["data.transforms=[{kind: hash, columns: [sku]}]"])


def test_a_sample_is_checked_with_the_file(experiment: Path) -> None:
    loaded = config.load(experiment, ["data.sample=[{where: bought_again = 1, rate: 1}, {rate: 0.1}]", "data.group_by=[basket]", "loader.bad_records=skip"])
    assert Sample.of(loaded.data.sample).rules == (("bought_again = 1", 1.0), (None, 0.1)) and loaded.data.group_by == ("basket",)
    with pytest.raises(ConfigError, match="data: the rate of rule None is 2; it must lie between 0 and 1"):
        config.load(experiment, ["data.sample=[{rate: 2}]"])
    with pytest.raises(ConfigError, match="per_epoch is for loops of your own"):
        config.load(experiment, ["data.sample={rules: [{rate: 0.5}], per_epoch: true}"])


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("train.epochs=3", ("train", "epochs"), 3),
        ("train.seeds=[1, 2, 3]", ("train", "seeds"), (1, 2, 3)),
        ("train.embedding_learning_rate=5e-2", ("train", "embedding_learning_rate"), 0.05),
        ("train.record_ids=true", ("train", "record_ids"), True),
        ("train.kill_rank_at_step=null", ("train", "kill_rank_at_step"), None),
        ("data.where=price > 1 and store = 'a=b'", ("data", "where"), "price > 1 and store = 'a=b'"),
        ("data.closed_before=watermark", ("data", "closed_before"), "watermark"),
        ("run.name=again", ("run", "name"), "again"),
    ],
)
def test_an_override_wins_and_is_typed_as_yaml(experiment: Path, override: str, path: tuple[str, str], expected: object) -> None:
    loaded = config.load(experiment, [override])
    assert getattr(getattr(loaded, path[0]), path[1]) == expected


def test_the_last_override_wins_and_list_entries_are_reached_by_number(experiment: Path) -> None:
    loaded = config.load(experiment, ["data.sparse.1.num_embeddings=7", "data.sparse.1.num_embeddings=9"])
    assert loaded.data.sparse[1].num_embeddings == 9


@pytest.mark.parametrize("falsy", ["train.max_failures=0", "data.dense.0.scale=0", "loader.seed=0"])
def test_a_falsy_override_is_not_lost(experiment: Path, falsy: str) -> None:
    tree = config.load(experiment, [falsy]).model_dump()
    for key in falsy.partition("=")[0].split("."):
        tree = tree[int(key)] if key.isdigit() else tree[key]
    assert tree == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=2", "override 'train.epoch=2': unknown key train.epoch: did you mean epochs?"),
        ("trian.epochs=2", "override 'trian.epochs=2': unknown key trian: did you mean train?"),
        ("data.dense.0.colum=x", "override 'data.dense.0.colum=x': unknown key data.dense.0.colum: did you mean column?"),
        ("train.epochs=two", "override 'train.epochs=two': train.epochs must be a whole number, not 'two'"),
        ("train.epochs=0", "override 'train.epochs=0': train.epochs must be greater than 0, not 0"),
        ("data.closed_before=[1]", "override 'data.closed_before=[1]': data.closed_before must be a whole number or text, not [1]"),
        ("loader.shuffle=window", "override 'loader.shuffle=window': loader.shuffle must be 'none', 'blocks', 'windows' or 'full', not 'window'"),
        ("data.dense.5.column=x", "override 'data.dense.5.column=x': data.dense has entries 0 to 0, not '5'"),
        ("lake.table.name=x", "override 'lake.table.name=x': lake.table is a value, not a section"),
        ("epochs", "override 'epochs' is not key=value: write for example train.epochs=2"),
        ("train.epochs=[1", "override 'train.epochs=[1': the value is not YAML: line 1, column 3: expected ',' or ']', but got '<stream end>'"),
    ],
)
def test_a_wrong_override_is_named_with_its_cure(experiment: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(experiment, [override])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            EXPERIMENT.replace("learning_rate", "lerning_rate"),
            "unknown key train.lerning_rate: did you mean learning_rate, learning_rate_decay, embedding_learning_rate?",
        ),
        (EXPERIMENT.replace("num_embeddings: 512", "num_embeddings: many"), "data.sparse.1.num_embeddings must be a whole number, not 'many'"),
        (EXPERIMENT.replace("  label: bought_again\n", ""), "data.label is missing: add it"),
        (
            EXPERIMENT.replace("embedding: product", "embedding: prodct"),
            "data: history 'history' shares the embedding of 'prodct', no sparse feature: did you mean product?",
        ),
        (EXPERIMENT.replace("4096", "4097"), "loader.global_batch_size = 4097 is not a multiple of train.ranks = 2: change one"),
        ("- lake\n", "holds a list, not sections such as lake, data and train"),
        ("lake: {table: a, table: b}\n", "not YAML: line 1, column 18: key 'table' stands twice"),
        ("lake: [\n", "not YAML: line 2, column 1: expected the node content, but found '<stream end>'"),
    ],
)
def test_a_wrong_file_is_named_with_its_path_and_cure(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(caught.value) == f"{path}: {message}"


def test_several_mistakes_are_counted_in_one_line(experiment: Path) -> None:
    experiment.write_text(EXPERIMENT.replace("price", "[]").replace("4096", "x"))
    with pytest.raises(ConfigError, match=r"\(and 1 more\)$"):
        config.load(experiment)


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file or directory: give the path of an experiment file"):
        config.load(tmp_path / "none.yaml")


def test_a_file_can_not_run_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"run: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(ConfigError, match="not YAML"):
        config.load(path)
    assert not (tmp_path / "made").exists()


def test_the_resolved_config_is_saved_whole_and_reads_back_equal(experiment: Path, tmp_path: Path) -> None:
    loaded = config.load(experiment, ["train.seeds=[3]", "lake.snapshot=baseline"])
    saved = tmp_path / "runs" / "one" / "config.yaml"
    loaded.dump(saved)
    assert config.load(saved) == loaded
    assert yaml.safe_load(saved.read_text())["loader"]["shuffle"] == "windows", "defaults are written out too"
    assert [path.name for path in saved.parent.iterdir()] == ["config.yaml"]


def test_every_shipped_experiment_is_valid() -> None:
    shipped = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    for path in shipped:
        config.load(path)
