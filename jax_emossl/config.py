"""The fields of a config, by dotted names: what a corpus sets, every check of them, and the trainings that a comparison is made of."""

import importlib
import itertools
import json
import math
import pkgutil
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections.config_flags import config_path

from jax_emossl.arms import ARMS
from jax_emossl.data import corpora
from jax_emossl.data.normalisation import ENROLMENT, MODES, NEUTRAL, NONE
from jax_emossl.errors import UserError, notice

_MOST, _ANY = 2_000_000_000, math.inf


def _shape(encoder: str, *more: str) -> dict[str, tuple]:
    """The numbers that fix an encoder's parameters."""
    return {f"{encoder}.{field}": (1, _ANY) for field in ("width", "layers", *more)}


# Of a number the smallest and the largest; of a text its choices, or the package whose files they are; of a tuple, for each in it.
# Times are in seconds. The fields of an encoder and of an objective go by its name, those of each part of a combined one, too.
_ALLOWED: dict[str, tuple | str | Callable[[], list[str]]] = {
    "task": "tasks",
    "model.name": "encoders",
    "objective.name": lambda: [name for name in _modules("objectives") if name != "combined"],  # which names its parts
    "objective.weight": (1e-6, 1e6),
    "fold": ("train", "valid", "test"),
    "compare.fold": ("valid", "test"),
    "compare.arms": lambda: [name for name, arm in ARMS.items() if arm.mechanism != "constant"],  # those there are when it is asked
    "compare.strategies": ("linear", "full", "probe-then-full"),
    "compare.validation": ("fold", "budget"),
    "compare.regularisations": (1e-9, 1e9),
    **dict.fromkeys(("compare.seeds", "compare.pretrainings"), (1, 10_000)),
    "train.strategy": ("full", "probe", "probe-then-full"),
    **dict.fromkeys(("train.batch_size", "train.accumulate"), (1, 1_000_000)),
    "train.epochs": (0, 1e6),
    "train.steps": (1, _MOST),
    "train.weight_decay": (0, 1e6),
    "train.clip_norm": (1e-9, _ANY),
    "data.clip": (1e-3, 6e4),  # what float16 holds
    "data.normalise_by": MODES,
    "data.enrolment": (1, 1_000_000),
    "data.loader": ("memory", "tf.data"),
    "data.resident": ("auto", "memory", "mapped"),
    "data.bucket_growth": (1.01, 100),
    **dict.fromkeys((f"{name}.ratio" for name in ("masked_timesteps", "agreement", "cluster_identities", "teacher")), (0.001, 0.999)),
    **dict.fromkeys((f"{name}.loss" for name in ("masked_timesteps", "future_prediction", "alteration", "teacher")), ("l1", "l2", "huber")),
    "masked_timesteps.statistics_weight": (0, 1e6),
    "masked_timesteps.decoder_width": (0, 100_000),
    "emotion.reads": ("encoder", "encoder+functionals", "summary", "summary+functionals"),
    "transformation_recognition.reads": ("encoder", "summary"),
    "future_prediction.ahead": (1e-3, 3600),
    "future_prediction.codes": (0, 100_000),
    "alteration.share": (0.001, 0.999),
    "alteration.noise": (0, 1e3),
    **dict.fromkeys(("alteration.group", "alteration.noisy", "teacher.decay", "teacher.final_decay"), (0, 1)),
    "agreement.temperature": (1e-3, 1e3),
    "agreement.together": (2, 1_000_000),
    "cluster_identities.clusters": (2, 100_000),
    "teacher.layers": (1, 10_000),
    "emotion.head": ("auto", "intensity", "category"),
    "emotion.loss": ("ordinal", "l1", "l2", "huber"),
    **dict.fromkeys(("emotion.dropout", "transformation_recognition.dropout", "train.dropout"), (0, 0.99)),
    "transformation_recognition.transformations": (
        "original",
        "noise",
        "scaling",
        "negation",
        "inversion",
        "permutation",
        "time_warp",
        "crop_and_resize",
        "magnitude_warp",
    ),
    "transformation_recognition.heads": ("binary", "softmax"),
    "transformation_recognition.width": (1, _ANY),
    "transformation_recognition.weights": (0, 1e6),
    "transformation_recognition.noise": (-100, 100),
    "transformation_recognition.scaling": (0, 1e3),
    **dict.fromkeys((f"transformation_recognition.{field}" for field in ("pieces", "warp_pieces")), (2, 1_000_000)),
    "transformation_recognition.warp": (1, 100),
    "transformation_recognition.crop": (0.01, 1),
    "transformation_recognition.magnitude": (0, 10),
    **dict.fromkeys(("data.pool", "data.stack"), (0, 3600)),
    **dict.fromkeys(
        (f"{name}.span" for name in ("masked_timesteps", "alteration", "agreement", "cluster_identities", "teacher")), (0, 3600)
    ),
    **dict.fromkeys((f"{encoder}.{field}" for encoder in ("transformer", "modalities") for field in ("near", "far")), (1e-4, 3600)),
    "transformer.dtype": ("float32", "bfloat16"),
    **dict.fromkeys(("train.learning_rate", "compare.learning_rates"), (0, 1e30)),
    **dict.fromkeys(("train.share", "train.b2"), (0, 1)),
    **dict.fromkeys(("seed", "train.most_steps", "train.probe_steps", "train.warmup_steps"), (0, _MOST)),
    **dict.fromkeys(("num_labels", "compare.label_counts", "train.patience"), (0, _MOST)),
    "train.crop": (0, 1e6),
    **dict.fromkeys(("data.norm_prior", "emotion.standards_prior"), (0, _ANY)),
    **dict.fromkeys(("train.eval_every", "train.log_every"), (1, _ANY)),
    **_shape("transformer", "heads"),
    **_shape("conv_transformer", "heads", "conv_layers", "kernel"),
    **_shape("temporal_conv", "kernel"),
    **_shape("modalities", "heads", "conv_layers", "channels", "kernel"),
    "modalities.groups": (),
}

_ONCE = ("compare.arms", "compare.strategies", "compare.learning_rates", "compare.regularisations")


def resolve(config: ml_collections.ConfigDict, given: Collection[str] = ()) -> list[str]:
    """Sets, in place, the encoder of the run that is started from, and what the corpus brings along.

    Fields `given` by the user stand, and those fixed by the config stand against the corpus.

    Returns what was chosen, as lines to print; none for an evaluation, which takes all from its run.
    """
    if "model" not in config:
        return []
    data = config.data
    if not (data.corpus or data.features or data.prepared):
        data.corpus = "demo"
    for name in given:
        if name.endswith("train.steps") and (epochs := name.replace("steps", "epochs")) in flat(config) and epochs not in given:
            config_path.set_value(epochs, config, 0.0)  # as many steps as the user says
    if data.prepared and "data.folds" not in given:
        data.folds = ""  # it has one division, whatever an experiment asks for
    kept, changed = {*given, *config.get("fixed", ())}, []
    source = config.init_from if "init_from" in config else config.get("compare", {}).get("pretrain_on", "")
    if encoder := _encoder_of(source):
        config.model = ml_collections.ConfigDict(encoder | {f: v for f, v in config.model.items() if f"model.{f}" in given})
        kept |= {f"model.{field}" for field in encoder}
    for name, value in corpora.settings(data.corpus).items():
        if "compare" not in config:  # a training alone has the fields of its group at the top
            name = name.removeprefix("finetune." if "num_labels" in config else "pretrain.")
        alike = [field for field in flat(config) if re.sub(r"objective\.\w+\.", "objective.", field) == name]  # of every objective listed
        for field in alike:
            if field not in kept and flat(config)[field] != value:
                config_path.set_value(field, config, value)
                changed.append(f"{field}={value}")
    shortened = _shorten_probes(config, given)
    words = {"train": "", "pretrain": " of pretraining", "finetune": " of fine-tuning"}
    steps = ", ".join(f"{config[g].get('train', config[g]).steps} steps{what}" for g, what in words.items() if g in config)
    shape = f"{config.model.get('layers')} layers, width {config.model.get('width')}"
    model = f"{config.model.name} of {shape}{f', as in {source}' if encoder else ''}"
    return [f"corpus {corpora.name(data)}; {model}; {steps}; set by the corpus: {', '.join(changed) or 'nothing'}", *shortened]


def _shorten_probes(config: ml_collections.ConfigDict, given: Collection[str]) -> list[str]:
    """Halves, in place, a training of fewer steps than its probe, where the user gave the steps alone; returns what there is to say of it."""
    said = []
    for name in (name for name in given if name.endswith("train.steps")):
        group = name.removesuffix(".steps")
        train, probe = config_path.get_value(group, config), f"{group}.probe_steps"
        strategies = config.compare.strategies if "compare" in config else (train.get("strategy"),)
        if "probe-then-full" in strategies and probe in flat(config) and probe not in given and train.probe_steps >= train.steps:
            said.append(f"{probe} is {train.steps // 2} instead of {train.probe_steps}, half of the {train.steps} steps")
            train.probe_steps = train.steps // 2
    return said


def _encoder_of(run: str) -> dict[str, Any]:
    """`config.model` of the run in this folder; nothing where it cannot be read, of which whoever starts from it tells."""
    if not run:
        return {}
    try:
        own = dict(json.loads(Path(run, "card.json").read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return own if "name" in own else {}


def flat(config: Mapping | ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    """All fields with their dotted names."""
    fields = {}
    for name, value in config.items():
        fields |= flat(value, f"{prefix}{name}.") if hasattr(value, "items") else {prefix + name: value}
    return fields


def part(config: ml_collections.ConfigDict, group: str, **fields: Any) -> ml_collections.ConfigDict:
    """The config of one training of a comparison, as it would stand alone: `group` is pretrain or finetune, `fields` are its top ones."""
    whole = config.to_dict()
    data = _pretrained_on(whole["data"], config.compare.pretrain_on) if group == "pretrain" else whole["data"]
    alone = {"task": "train", "seed": whole["seed"], "data": data, "model": whole["model"], **whole[group]}
    return ml_collections.ConfigDict(alone | ({"num_labels": 0, "init_from": ""} if group == "finetune" else {}) | fields)


def _pretrained_on(data: dict[str, Any], names: str) -> dict[str, Any]:
    """`config.data` of a pretraining on corpora joined by +, `own` being the comparison's, which comes first."""
    own, named = {"own", data["corpus"]}, dict.fromkeys(names.split("+"))
    others = [name for name in named if name not in own]
    if own & named.keys() or not others:
        return data | {"corpus": "+".join([data["corpus"], *others])}
    return data | dict.fromkeys(corpora.OWN, "") | {"corpus": "+".join(others)}


def varied(
    config: ml_collections.ConfigDict, variant: str, fields: Sequence[tuple[str, Any]], data: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """A comparison's config for one variant, corpus and division into folds; of its seeds and label counts those that the comparison has.

    Raises UserError where the variant sets what is no field, or a value that a field cannot have.
    """
    own = config.copy_and_resolve_references()
    own.data.update(data)
    for name, value in fields:
        try:
            config_path.get_value(name, own)
            config_path.set_value(name, own, value)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"compare.variants: '{variant}' sets {name}, which is no field or not of this type{guess(error)}: correct the variant."
            ) from error
    _check_values(own)
    _check_data(own)
    others = [name for name in config.data.corpus.split("+") if name != own.data.corpus]
    if "others" in own.compare.pretrain_on.split("+"):
        if not others:
            raise UserError(
                "compare.pretrain_on names others, but there is one corpus: compare several, as in :nemo+ravdess, or name corpora."
            )
        own.compare.pretrain_on = own.compare.pretrain_on.replace("others", "+".join(others))
    own.compare.seeds = min(own.compare.seeds, config.compare.seeds)
    counts = tuple(count for count in own.compare.label_counts if count in config.compare.label_counts)
    own.compare.label_counts = counts or config.compare.label_counts
    return own


def stretched(train: ml_collections.ConfigDict, labels: int) -> ml_collections.ConfigDict:
    """The settings of a fine-tuning on so many labels: all its steps are multiplied alike where it would see them in fewer epochs.

    Beyond `most_steps` it is not stretched: where labels are plenty, so many batches show most of them, and more passes cost hours.
    """
    steps = min(train.epochs * labels / train.batch_size, train.most_steps or math.inf)
    factor = max(1.0, steps / train.steps)
    own = train.copy_and_resolve_references()
    own.update({name: round(factor * train[name]) for name in ("steps", "probe_steps", "warmup_steps")})
    own.eval_every = -(-own.steps * train.eval_every // train.steps)  # rounded up: not once more, just before the last step
    return own


def trained_points(compare: ml_collections.ConfigDict) -> list[tuple[str, float]]:
    """The grid's trainings: a strategy and a learning rate each. The strategy `linear` trains none."""
    return [point for point in itertools.product(compare.strategies, compare.learning_rates) if point[0] != "linear"]


def guess(error: Exception) -> str:
    """The library's guess at the field that was meant, in brackets, where it has one."""
    found = re.search(r'Did you mean "(.+?)"', str(error))
    return f' (did you mean "{found[1]}"?)' if found else ""


def check(config: ml_collections.ConfigDict, given: Collection[str] = ()) -> None:
    """Refuses with a UserError what is out of range or contradictory, and tells of fields that were `given` but that nothing reads."""
    for name in given:
        if name not in flat(config):
            raise UserError(f"{name} is a group of fields: set them one by one, as in --config.{name}.FIELD=VALUE.")
    _check_values(config)
    _check_data(config)
    if config.get("init_from") == "REQUIRED" or (config.task == "evaluate" and not config.init_from):
        what = "finished run" if config.task == "evaluate" else "pretraining"
        raise UserError(f"init_from is not given: name the workdir of a {what} with --config.init_from=DIR.")
    runs = [config]
    if config.task == "compare":
        _check_variants(config.compare.variants)
        runs = [varied(config, name, changes, data) for name, changes in config.compare.variants for data in corpora.targets(config.data)]
        for run in runs:
            _check_compared(run)
        if len({run.compare.fold for run in runs}) > 1:
            raise UserError("compare.variants set compare.fold to different folds, of which a report has one: run them apart.")
    elif config.task == "train" and "strategy" in config.train:
        _check_probe("train", config.train, config.train.strategy)
    for name in given:
        reasons = [_unread(run).get(name) for run in runs]
        if all(reasons):
            notice(f"{name} is given, but nothing reads it: {reasons[0]}.")


def _check_compared(config: ml_collections.ConfigDict) -> None:
    """One variant of a comparison: what its fields say together."""
    compare = config.compare
    for strategy in compare.strategies if any(ARMS[arm].mechanism == "tuned" for arm in compare.arms) else ():
        _check_probe("finetune.train", config.finetune.train, strategy)
    if compare.pretrainings > compare.seeds:
        raise UserError(
            f"compare.pretrainings is {compare.pretrainings}, but {compare.seeds} seeds take turns with them: raise compare.seeds."
        )


def _check_probe(group: str, train: ml_collections.ConfigDict, strategy: str) -> None:
    if strategy == "probe-then-full" and train.probe_steps >= train.steps:
        raise UserError(
            f"{group}.probe_steps is {train.probe_steps} of {train.steps} steps, so that the encoder would never be trained: "
            "lower it, or choose another strategy."
        )


def _check_values(config: ml_collections.ConfigDict) -> None:
    """Every field by itself, that objectives and encoder have their own, and those that make attention's heads."""
    fields = flat(config)
    for name in (name for name in fields if name.endswith(("objective.name", "model.name"))):
        parts, keys = fields[name].split("+") if "objective" in name else [fields[name]], {_key(fields, n) for n in fields}
        _check_value(name, _key(fields, name), parts)
        weights = [f"{name.removesuffix('name')}{part}.weight" for part in parts if len(parts) > 1]
        lacking = [key for part in parts for key in _ALLOWED if key.startswith(f"{part}.") and key not in keys]
        if lacking := [*lacking, *(weight for weight in weights if weight not in fields)]:
            raise UserError(f"{name} is '{fields[name]}', but this config lacks {lacking[0]}: take one that is made for it.")
        if twice := [part for part in parts if parts.count(part) > 1]:
            raise UserError(f"{name} is '{fields[name]}', which names {twice[0]} twice: name it once, and give its weight.")
        train = name.removesuffix("objective.name") + "train."
        cut = fields.get(f"{train}accumulate", 1)
        if len(parts) > 1 and cut > 1:
            raise UserError(f"{train}accumulate is {cut}, but weights compare means of whole batches in {name}='{fields[name]}': give 1.")
        if "agreement" in parts and fields[f"{train}batch_size"] // cut < 2:
            raise UserError(
                f"{train}batch_size is {fields[f'{train}batch_size']} in {cut} parts, but agreement compares segments: raise it."
            )
    for name, value in fields.items():
        if not name.endswith("objective.name"):
            _check_value(name, _key(fields, name), value if isinstance(value, tuple | list) else (value,))
    if {"train": "train", "compare": "compare", "evaluate": "fold"}.get(config.task, "task") not in config:
        raise UserError(f"task is '{config.task}', but this config lacks its fields: take one that is made for it.")
    heads = {name: 2 for name in fields if name.endswith(".decoder_width")} | {"model.width": fields.get("model.heads")}
    for name, number in heads.items():
        if number and fields[name] % (2 * number):
            raise UserError(f"{name} is {fields[name]}, but must be a multiple of {2 * number}, twice the number of its heads.")


def _key(fields: Mapping[str, Any], name: str) -> str:
    """The name by which the table knows a field."""
    key = re.sub(r"^(pretrain|finetune)\.", "", name)
    group, _, last = key.partition(".")
    if group not in ("objective", "model") or last == "name":
        return key
    if last.endswith(".weight"):
        return "objective.weight"
    return last if "." in last else f"{fields.get(name.removesuffix(last) + 'name')}.{last}"


def _modules(package: str) -> list[str]:
    return [module.name for module in pkgutil.iter_modules(importlib.import_module(f"jax_emossl.{package}").__path__)]


def _check_value(name: str, key: str, values: Sequence) -> None:
    allowed = _ALLOWED.get(key, ())
    if callable(allowed):
        allowed = allowed()
    if isinstance(allowed, str):
        allowed = _modules(allowed)
    if not values and key.startswith("compare."):
        raise UserError(f"{name} is empty: name at least one.")
    if key in _ONCE and (twice := [value for value in values if values.count(value) > 1]):
        raise UserError(f"{name} names {twice[0]} twice: name each once.")
    for value in values if allowed else ():
        if isinstance(allowed[0], str):
            if value not in allowed:
                raise UserError(f"{name} is '{value}': choose one of {', '.join(allowed)}.")
        elif not isinstance(value, int | float) or not allowed[0] <= value <= allowed[1]:
            raise UserError(f"{name} is {value}, but must lie between {allowed[0]:g} and {allowed[1]:g}.")
        elif key == "compare.label_counts" and value > 1 and value != int(value):
            raise UserError(f"{name} has {value}: give counts, shares of the fold below 1, or 0 for all labels.")


def _check_data(config: ml_collections.ConfigDict) -> None:
    """What is read is named once, and whole."""
    data = config.data
    beside = [field for field in corpora.OWN if field != "prepared" and data[field]]
    if data.prepared and beside:
        raise UserError(f"data.{beside[0]} is given beside data.prepared, which holds features, labels and one set of folds: drop one.")
    several = "+" in data.corpus
    if several and config.task == "compare" and (given := [f for f in corpora.OWN if data[f] and data[f] not in corpora.SETS]):
        raise UserError(f"data.{given[0]} is given, but data.corpus is '{data.corpus}': compare one corpus, or those that have a name.")
    if config.task != "compare" and (data.folds in corpora.SETS or "," in data.folds):
        raise UserError(f"data.folds is '{data.folds}', but a run alone takes one file of folds: name one, or run a comparison.")
    labelled = ["labels"] if config.task != "train" or "num_labels" in config else []  # a pretraining needs none
    lacking = [f"data.{field}" for field in ("features", *labelled, "folds") if not data[field] or data[field] in corpora.SETS]
    if data.features and not data.corpus and lacking:
        raise UserError(f"data.features is given without {' and '.join(lacking)}: give that too, or name a corpus in data.corpus.")
    first, *others = data.corpus.split("+")
    for name in [*([first] if first and lacking and not data.prepared else []), *others]:
        corpora.check(name)
    short = [corpora.short(name) for name in (first, *others)]
    if twice := [name for name in short if short.count(name) > 1]:
        raise UserError(
            f"data.corpus is '{data.corpus}', which names '{twice[0]}' twice: corpora are told apart by it, so rename a folder."
        )
    if config.task == "compare":
        _check_source(config.compare.pretrain_on)


def _check_source(source: str) -> None:
    """What pretraining reads: corpora by name, or a workdir."""
    if Path(source, "card.json").is_file():
        return
    for name in (name for name in source.split("+") if name not in ("own", "others")):
        try:
            corpora.check(name)
        except UserError as error:
            raise UserError(
                f"compare.pretrain_on is '{source}': '{name}' is neither own, others, a corpus ({', '.join(corpora.names())}, or the folder "
                "of one) nor the workdir of a pretraining."
            ) from error


def _check_variants(variants: Sequence) -> None:
    def pair(own: Any) -> bool:
        return isinstance(own, tuple | list) and len(own) == 2 and isinstance(own[0], str)

    if not all(pair(own) and isinstance(own[1], tuple | list) and all(map(pair, own[1])) for own in variants):
        raise UserError("compare.variants must be pairs (name, ((field, value), ...)): correct it.")
    for name in (names := [name for name, _ in variants]):
        if name != Path(name).name or name == ".." or len(name) > 100 or names.count(name) > 1:
            raise UserError(f"compare.variants: a folder is named '{name}'; give up to 100 letters without '/', and each name once.")


def _unread(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Fields that the others leave unread, each with the reason."""
    fields = flat(config)
    heads = [name for name, value in fields.items() if name.endswith("objective.head") and value == "category"]
    unread = {name.replace("head", "loss"): f"{name} is category" for name in heads}
    if config.data.get("resident") == "memory":
        unread["data.loader"] = "data.resident is memory"
    by = fields.get("data.normalise_by")
    if by not in (None, ENROLMENT, NEUTRAL):
        unread["data.enrolment"] = f"data.normalise_by is {by}"
    if by == NONE:
        unread |= {name: "data.normalise_by is none" for name in fields if name.endswith(("norm_prior", "standards_prior"))}
    for name in (name for name in fields if name.endswith("objective.name")):
        group, parts = name.removesuffix("name"), fields[name].split("+")
        for field in (field for field in fields if field.startswith(group)):
            part, listed, own = field.removeprefix(group).partition(".")
            if listed and (part not in parts or (own == "weight" and len(parts) == 1)):
                unread[field] = f"{name} is {fields[name]}"
    unread |= {
        name.replace("epochs", "most_steps"): f"{name} is 0" for name, value in fields.items() if name.endswith("epochs") and not value
    }
    if fields.get("train.strategy", "probe-then-full") != "probe-then-full":
        unread["train.probe_steps"] = f"train.strategy is {config.train.strategy}"
    if config.task != "compare":
        return unread
    arms, strategies = [ARMS[name] for name in config.compare.arms], config.compare.strategies
    if not any(arm.needs_pretraining for arm in arms):
        of_pretraining = [name for name in fields if name.startswith(("pretrain.", "compare.pretrain"))]
        unread |= dict.fromkeys(of_pretraining, "no arm in compare.arms is pretrained")
    elif Path(config.compare.pretrain_on, "card.json").is_file():
        why = f"compare.pretrain_on is {config.compare.pretrain_on}, which is trained"
        unread |= {name: why for name in fields if name.startswith("pretrain.") or name == "compare.pretrainings"}
    if "probe-then-full" not in strategies:
        unread["finetune.train.probe_steps"] = "compare.strategies lacks probe-then-full"
    tuned = any(arm.mechanism == "tuned" for arm in arms)
    if not any(arm.mechanism == "linear" for arm in arms) and not (tuned and "linear" in strategies):
        unread["compare.regularisations"] = "nothing in compare.arms and compare.strategies is linear"
    if not tuned or set(strategies) == {"linear"}:
        why = "compare.strategies is linear alone" if tuned else "no arm in compare.arms is trained"
        trained = [name for name in fields if name.startswith("finetune.train.") and name != "finetune.train.batch_size"]
        unread |= dict.fromkeys(
            [*trained, "finetune.objective.dropout", "compare.learning_rates", *([] if tuned else ["compare.strategies"])], why
        )
    return unread
