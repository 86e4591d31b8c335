import ml_collections
import pytest

from jax_emossl.data import corpora
from jax_emossl.data.corpora import Files, demo
from jax_emossl.data.folds import read_folds
from jax_emossl.errors import UserError

FIELDS = ("corpus", "features", "labels", "folds", "speakers", "words", "label_names", "prepared")


def data(**fields):
    return ml_collections.ConfigDict(dict.fromkeys(FIELDS, "") | fields)


def rotations(folds, corpus="demo"):
    return corpora.rotations(data(folds=folds, corpus=corpus))


@pytest.fixture(autouse=True)
def _data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EMOSSL_DATA", str(tmp_path))


def test_the_corpus_own_folds_are_one_rotation_without_a_name():
    assert rotations("") == [("", "")]


def test_several_files_are_rotations_named_after_them():
    assert rotations("x/a.json,b.json") == [("a", "x/a.json"), ("b", "b.json")]


def test_rotations_of_the_same_name_are_refused():
    with pytest.raises(UserError, match="names a/folds.json and b/folds.json, both 'folds': rename one, rotations are told apart by it"):
        rotations("a/folds.json,x.json,b/folds.json")


@pytest.mark.parametrize("corpus", ["nemo", "ravdess"])
def test_a_corpus_may_bring_its_rotations_along(corpus, tmp_path):
    found = rotations("rotations", corpus)
    assert found == [(f"folds_rotation{i}", str(tmp_path / corpus / f"folds_rotation{i}.json")) for i in (1, 2, 3)]


@pytest.mark.parametrize(("corpus", "speakers"), [("nemo", 9), ("ravdess", 24)])
def test_a_corpus_may_bring_folds_for_searches_along(corpus, speakers):
    found = rotations("searches", corpus)
    assert [name for name, _ in found] == [f"{corpus}_search{i}" for i in (1, 2, 3)]
    divisions = [read_folds(path) for _, path in found]
    assert sorted(name for division in divisions for name in division["valid"]) == sorted(sum(divisions[0].values(), []))
    assert all(len(set(sum(division.values(), []))) == speakers for division in divisions)
    assert rotations("search", corpus) == found[:1]


@pytest.mark.parametrize("corpus", ["demo", "mosei", "klingon", ""])
@pytest.mark.parametrize("folds", corpora.SETS)
def test_a_corpus_without_such_sets_has_its_one_division_into_folds(corpus, folds):
    assert rotations(folds, corpus) == [("", "")]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"corpus": "nemo"}, "nemo"),
        ({"corpus": "mine", "features": "x/F.csd"}, "mine"),
        ({"corpus": "demo", "features": "x/F.csd"}, "demo"),
        ({"features": "x/F.csd"}, "F"),
        ({"prepared": "prepared/mine"}, "mine"),
    ],
)
def test_a_corpus_is_called_by_its_given_name_else_after_its_file(fields, name):
    assert corpora.name(data(**fields)) == name


def test_files_given_take_the_place_of_the_corpus_own(tmp_path):
    own = corpora.files(data(corpus="nemo", folds="mine.json"))
    assert own.folds == "mine.json" and own.features == str(tmp_path / "nemo" / "NEMO_eGeMAPSv02.csd") and len(own.rotations) == 3
    assert corpora.files(data(features="F", labels="L", folds="cmu_mosei")) == Files("F", "L", "cmu_mosei")
    assert corpora.files(data(features="F", labels="L", folds="f", speakers="S")) == Files("F", "L", "f", speakers="S")
    assert corpora.files(data(corpus="nemo", speakers="S")).speakers == "S" and own.speakers == ""


def test_several_files_of_features_are_joined_by_commas(tmp_path):
    for name in ("F.csd", "a,b.csd"):
        (tmp_path / name).write_text("features")
    given = data(features=f"{tmp_path}/F.csd,{tmp_path}/G.csd", labels="L", folds="cmu_mosei")
    own = corpora.files(given)
    assert corpora.listed(own.features) == [f"{tmp_path}/F.csd", f"{tmp_path}/G.csd"]
    assert corpora.missing(own) == [f"{tmp_path}/G.csd", "L"] and corpora.name(given) == "F"
    assert corpora.listed(f"{tmp_path}/a,b.csd") == [f"{tmp_path}/a,b.csd"]


def test_missing_files_are_named_and_nothing_is_made_by_looking(tmp_path, monkeypatch):
    monkeypatch.setenv("EMOSSL_CACHE", str(tmp_path / "cache"))
    files = demo.files()
    assert corpora.missing(files) == [files.features, files.labels, files.folds]
    assert corpora.missing(Files("F", "L", "cmu_mosei", speakers="S")) == ["F", "L", "S"]
    assert not (tmp_path / "cache").exists()


def test_an_unknown_corpus_is_refused_and_sets_nothing():
    assert corpora.settings("klingon") == {} == corpora.settings("")
    with pytest.raises(UserError, match="'klingon' is no known corpus: choose one of demo, mosei, nemo, ravdess, or give data.features"):
        corpora.load(data(corpus="klingon"))


def test_a_corpus_whose_files_are_not_there_is_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"{tmp_path}/ravdess/RAVDESS_eGeMAPSv02.csd does not exist or is not a file"):
        corpora.load(data(corpus="ravdess"))
    monkeypatch.delenv("EMOSSL_DATA")
    with pytest.raises(UserError, match="EMOSSL_DATA is not set: set it to the folder of your corpora"):
        corpora.load(data(corpus="ravdess"))


def test_the_place_of_a_prepared_corpus_changes_with_all_that_it_is_made_of(tmp_path):
    (tmp_path / "folds.json").write_text('{"train": ["a"], "valid": [], "test": []}')
    (tmp_path / "other.json").write_text('{"train": [], "valid": ["a"], "test": []}')
    (tmp_path / "F").write_text("features")
    given = {"corpus": "mine", "features": str(tmp_path / "F"), "labels": "L", "folds": str(tmp_path / "folds.json")}
    changes = [{}, {"folds": str(tmp_path / "other.json")}, {"corpus": "yours"}, {"words": "W"}, {"label_names": "joy,gloom"}]
    for name, who in (("S", "ann"), ("T", "bea")):
        (tmp_path / name).write_text(f'{{"a": "{who}"}}')
    changes += [{"speakers": str(tmp_path / name)} for name in "ST"]
    (tmp_path / "G").write_text("more features")
    changes += [{"features": f"{tmp_path}/F,{tmp_path}/G"}, {"features": f"{tmp_path}/G,{tmp_path}/F"}]
    configs = [data(**given | change) for change in changes]
    places = [corpora.folder(config, corpora.files(config)) for config in [*configs, configs[0]]]
    assert len(set(places)) == len(changes) and places[0] == places[-1]
    (tmp_path / "F").write_text("other features")
    assert corpora.folder(configs[0], corpora.files(configs[0])) != places[0]
