"""experiments/objectives.py on a tiny corpus."""

from experiments import objectives
from jax_emossl import config as fields
from jax_emossl import workdir
from jax_emossl.tasks import compare

OWN = ("future_prediction", "masked_timesteps+agreement", "modalities")  # a causal network, groups in batches, an encoder of another make


def test_objectives_are_compared_at_the_same_label_counts(comparison_config, tmp_path):
    config, small = objectives.get_config(), comparison_config
    config.update({"data": small.data, "model": small.model, "finetune": small.finetune})
    config.pretrain.train = small.pretrain.train
    config.compare.update({"label_counts": (12,), "seeds": 1, "regularisations": (0.01,), "strategies": ("linear",)})
    config.compare.arms = ("frozen", "functionals")
    variants = dict(config.compare.variants)
    tiny = ("pretrain.train.batch_size", 8), ("model.width", small.model.width)
    config.compare.variants = tuple((name, variants[name] + tiny) for name in OWN)
    fields.check(config)
    workdir.enter(tmp_path, config)
    rows = compare.run(config, tmp_path)
    assert {(row["variant"], row["arm"]) for row in rows} == {(name, arm) for name in OWN for arm in ("constant", "frozen", "functionals")}
    assert {row["num_labels"] for row in rows if row["arm"] != "constant"} == {12}
    assert all((tmp_path / "pretrain" / name / "results.json").exists() for name in OWN)
    same = [row["metrics"] for row in rows if row["arm"] == "functionals"]  # which read no pretraining
    assert same[0] == same[1]


def test_every_objective_has_its_row_and_batches_that_devices_can_share():
    config = objectives.get_config()
    names = [dict(changes)["pretrain.objective.name"] for _, changes in config.compare.variants]
    assert {part for name in names for part in name.split("+")} == set(config.pretrain.objective) - {"name"}
    assert all(rows % 4 == 0 for rows in objectives.ROWS.values())
    causal = {name: dict(changes)["model.causal"] for name, changes in config.compare.variants}
    assert [name for name, own in causal.items() if own] == ["future_prediction"]
