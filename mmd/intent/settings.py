"""Settings of KDSL: predicates, rule search, selection, classifier and gate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmd.base import Settings


class PredicateSettings(Settings):
    """Which atomic predicates are mined (METHODS section 1: the state's building blocks)."""

    max_per_label: int = Field(default=150, ge=1, description="Predicates a search works with, by prior.")
    max_negated: int = Field(default=15, ge=0, description="Negated predicates among them at most.")
    min_support: int = Field(default=2, ge=1, description="Training examples a predicate must hold on.")
    max_word_chars: int = Field(default=6, ge=1, description="Longest keyword, characters (Chinese) or words.")
    kinds: tuple[Literal["text", "ocr", "image", "item", "near"], ...] = Field(
        default=("text", "ocr", "image", "item", "near"), description="Kinds of predicates that are mined."
    )
    near_scopes: tuple[Literal["last_user", "image"], ...] = Field(
        default=("last_user", "image"), description="What `near` prototypes are made of."
    )
    near_points: tuple[Literal["exemplar", "centre", "contrast", "name"], ...] = Field(
        default=("exemplar", "centre", "contrast", "name"),
        description="Prototypes: single examples, label centres, discriminant directions, label names.",
    )
    level_step: float = Field(
        default=0.5, gt=0, description="Grid of near thresholds: standard deviations above the average cosine."
    )
    name_affinity: float = Field(
        default=1.0, ge=0, description="Prior added to keywords that share characters with the label's name."
    )


class SearchSettings(Settings):
    """Monte Carlo Tree Search with PUCT and progressive widening."""

    rollouts: int = Field(default=400, ge=1, description="Rollouts a search.")
    c_puct: float = Field(default=1.0, ge=0, description="Exploration constant; 0 is greedy.")
    max_length: int = Field(default=4, ge=1, description="Predicates of one rule at most.")
    widening: float = Field(default=2.0, gt=0, description="k of progressive widening: k * visits^alpha children.")
    widening_alpha: float = Field(default=0.5, ge=0, le=1, description="Exponent of progressive widening.")
    length_penalty: float = Field(default=0.02, ge=0, description="Reward lost a predicate.")
    lookahead: float = Field(
        default=3.0, ge=0, description="Weight of a child's own reward in its prior: P x exp(lookahead x reward)."
    )
    patience: int = Field(default=150, ge=1, description="Rollouts without a better rule after which a search stops.")
    rules_per_search: int = Field(default=60, ge=1, description="Rules a search hands on, chosen to cover the label.")
    seeds: int = Field(default=2, ge=1, description="Partitions into folds; a label is searched folds x seeds times.")


class BlockWeights(Settings):
    """Length of each feature block of the probe; 0 leaves a block out."""

    last_user: float = Field(default=1.0, ge=0, description="Character n-grams of the last user turn.")
    user: float = Field(default=0.5, ge=0, description="Character n-grams of all user turns.")
    agent: float = Field(default=0.0, ge=0, description="Character n-grams of all agent turns.")
    reply: float = Field(default=0.5, ge=0, description="Character n-grams of the agent's reply to the last user turn.")
    ocr: float = Field(default=1.0, ge=0, description="Character n-grams of the text in pictures.")
    sentence: float = Field(default=1.0, ge=0, description="Sentence vector of the last user turn.")
    reply_sentence: float = Field(default=0.5, ge=0, description="Sentence vector of the agent's reply.")
    image: float = Field(default=0.7, ge=0, description="Picture vectors, pooled by their mean.")


class ProbeSettings(Settings):
    """The ``probe`` classifier: frozen features and a regularised linear head. Defaults: cross-validation."""

    c: float = Field(default=20.0, gt=0, description="Inverse regularisation of the linear head.")
    ngram_min: int = Field(default=1, ge=1, description="Shortest character n-gram.")
    ngram_max: int = Field(default=4, ge=1, description="Longest character n-gram.")
    min_df: int = Field(default=2, ge=1, description="Training examples an n-gram must occur in.")
    max_terms: int = Field(default=200_000, ge=1, description="N-grams a block keeps, the most frequent ones.")
    label_name_weight: float = Field(
        default=1.0, ge=0, description="Weight of each label's name as a training example; 0: unused."
    )
    weights: BlockWeights = Field(default_factory=BlockWeights)


class GateSettings(Settings):
    """How rules and classifier are joined; τ and weight are chosen on held-out predictions of the training part."""

    arm: Literal["auto", "override", "verdict", "vote"] = Field(
        default="vote",
        description="override: the best rule answers if strong enough; verdict: what the rules say together does; "
        "vote: rules shift the classifier; auto: validation decides.",
    )
    vote_weights: tuple[float, ...] = Field(
        default=(3.0,), min_length=1, description="Weights of the rules' share of evidence that vote tries."
    )
    rule_coverage: float = Field(
        default=0.45, gt=0, le=1, description="Share of held-out examples that rules alone shall cover when reported."
    )


class IntentSettings(Settings):
    """KDSL as a whole."""

    folds: int = Field(default=5, ge=2, description="Validation folds of the training split.")
    min_precision: float = Field(
        default=0.05, ge=0, le=1, description="Out-of-fold precision a kept rule needs; weak rules still vote."
    )
    min_support: int = Field(default=2, ge=1, description="Held-out examples a kept rule must fire on.")
    min_found: float = Field(
        default=0.2, ge=0, le=1, description="Share of a label's searches that must find a rule for it to be kept."
    )
    max_overlap: float = Field(
        default=0.7,
        gt=0,
        description="Jaccard similarity of two rules' held-out firings from which the weaker one goes; above 1 none.",
    )
    predicates: PredicateSettings = Field(default_factory=PredicateSettings)
    search: SearchSettings = Field(default_factory=SearchSettings)
    probe: ProbeSettings = Field(default_factory=ProbeSettings)
    gate: GateSettings = Field(default_factory=GateSettings)
