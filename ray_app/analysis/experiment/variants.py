"""The trainings of an experiment: each arm with each seed, as a config and the view that its stages are kept in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_app.analysis.experiment.spec import ExperimentSpec, System, VariantSpec
from ray_app.base.config import Config, with_overrides
from ray_app.base.errors import UserError
from ray_app.stages.order import STAGES, enabled_stages

# What makes each system. The others need no training.
TRAINED_BY = {"teacher": "train_teacher", "student": "distill", "feature_only_student": "distill"}
_LOOP_OF = {
    "teacher": "train_teacher.train",
    "student": "distill.train",
    "feature_only_student": "distill.feature_train",
}
CHAIN = STAGES[STAGES.index("caption") : STAGES.index("embed")]  # that a variant may run again
# Config section -> the first stage that it decides; sections that are not here change no model.
_DECIDES = {name: name for name in CHAIN} | {"features": "zero_shot", "pin_text": "corpus_statistics"}
_WITHOUT_EFFECT = ("output", "ray", "prices", "embed", "serve", "experiments", "evaluate")


@dataclass(frozen=True, kw_only=True)
class Training:
    """One arm with one seed."""

    name: str  # its name
    system: System  # what is measured
    cfg: Config  # of the run, with what is different
    variant: str  # where its manifests lie; empty: it is the run itself
    stages: tuple[str, ...]  # to be run for it in the view, in order; the last one trains the system


def trainings_of(key: str, spec: ExperimentSpec, cfg: Config, seeds: Sequence[int]) -> list[Training]:
    """All trainings, arm by arm, seed by seed; `seeds` are those beside the run's.

    Raises:
        UserError: an arm sets a key that is not there, or one that cannot make a difference.
    """
    found = []
    for variant in spec.variants:
        system = variant.system or spec.system
        for seed in [None, *(seed for seed in seeds if seed != cfg.seed)] if system in TRAINED_BY else [None]:
            found.append(_training(key, variant, system, cfg, seed))
    variants = [training.variant for training in found if training.variant]
    if twice := sorted({variant for variant in variants if variants.count(variant) > 1}):
        raise UserError(f"experiment {key}: two arms would both be kept as {twice[0]!r}; name them more differently")
    return found


def _training(key: str, variant: VariantSpec, system: System, cfg: Config, seed: int | None) -> Training:
    overrides: dict[str, Any] = dict(variant.set)
    if seed is not None:
        overrides[f"{_LOOP_OF[system]}.seed"] = seed
    if not overrides:
        return Training(name=variant.name, system=system, cfg=cfg, variant="", stages=())
    own = with_overrides(cfg, overrides)
    stages = _stages(cfg, own, system)
    if not stages:
        raise UserError(
            f"experiment {key}: arm {variant.name!r} sets {', '.join(variant.set)}, which changes no {system}"
        )
    if system == "student":
        own = with_overrides(own, {"distill.feature_only_student": False})  # nobody asks for it
    slug = "-".join("".join(c if c.isalnum() else " " for c in variant.name.lower()).split())
    folder = f"{key}/{slug}" + ("" if seed is None else f"-seed{seed}")
    return Training(name=variant.name, system=system, cfg=own, stages=stages, variant=folder)


def _stages(cfg: Config, own: Config, system: System) -> tuple[str, ...]:
    """From the first stage whose settings differ to the one that trains the system."""
    changed = [name for name in Config.model_fields if getattr(cfg, name) != getattr(own, name)]
    unknown = [name for name in changed if name not in _DECIDES and name not in _WITHOUT_EFFECT]
    if unknown:
        raise UserError(f"an experiment's arm cannot change {unknown[0]!r}: make it a run with an output of its own")
    decided = [CHAIN.index(_DECIDES[name]) for name in changed if name in _DECIDES]
    if (cfg.sample.until, cfg.evaluate.human_labels) != (own.sample.until, own.evaluate.human_labels):
        decided.append(CHAIN.index("enrich"))  # the first stage that holds them out, see `ray_app.sources.held_out`
    last = CHAIN.index(TRAINED_BY.get(system, "graph"))
    enabled = enabled_stages(own)
    first = min(decided, default=last + 1)
    return tuple(name for name in CHAIN[first : last + 1] if name in enabled)
