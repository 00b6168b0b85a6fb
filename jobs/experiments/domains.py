"""Corpora that experiments work on: ingested and featurized on first use, their training examples at hand."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jobs import featurize, ingest
from jobs.glue.entry import JobContext, corpus_overrides
from jobs.mine_rules import training_examples
from mmd.config import DEFAULT_PATH, AppConfig, add_settings_options, load_config
from mmd.corpora.store import Corpus
from mmd.errors import CorpusError
from mmd.features.store import Features
from mmd.intent.examples import label_vectors, load_examples
from mmd.intent.mining import NameVectors
from mmd.intent.types import IntentExample
from mmd.schema import Split


@dataclass(frozen=True)
class Domain:
    """One corpus with its features."""

    context: JobContext

    @property
    def name(self) -> str:
        """The corpus's name."""
        return self.context.name

    @property
    def config(self) -> AppConfig:
        """All settings."""
        return self.context.config

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus."""
        return Corpus(self.context.open("corpus"))

    @cached_property
    def features(self) -> Features:
        """Its features."""
        return Features(self.context.open("features"))

    @cached_property
    def examples(self) -> dict[str, list[IntentExample]]:
        """Task → labelled training examples, ordered by dialogue id."""
        return training_examples(self.corpus, self.features)

    @cached_property
    def names(self) -> dict[str, NameVectors]:
        """Task → sentence vectors of its labels' names."""
        return {task: label_vectors(self.features, self.corpus.tasks[task]) for task in self.examples}

    def of_split(self, task: str, split: Split) -> list[IntentExample]:
        """Return a task's labelled examples of a split."""
        return load_examples(self.corpus, self.features, task, split)

    def examples_of_test(self, task: str) -> list[IntentExample]:
        """Return a task's labelled test examples.

        Raises:
            CorpusError: there are none.
        """
        found = self.of_split(task, "test")
        if not found:
            raise CorpusError(
                f"corpus {self.name}: no test dialogue is labelled for {task}, so there is nothing to answer; give "
                "some records the split `test` (docs/data.md), or name another --corpus."
            )
        return found


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the settings file and overrides, which every experiment takes."""
    add_settings_options(parser)


def open_context(options: Mapping[str, Any], corpus: str | None, overrides: Sequence[str] = ()) -> JobContext:
    """Return the context of a corpus, given as for any job (``NAME[:READER][=PATH]``).

    Args:
        options: ``config``, ``profile`` and ``overrides`` of the command line, as far as given.
        corpus: the corpus; None takes the settings'.
        overrides: the experiment's own, which yield to the command line's.
    """
    given = [*overrides, *corpus_overrides(corpus), *options.get("overrides", ())]
    config = load_config(options.get("config", DEFAULT_PATH), profile=options.get("profile"), overrides=given)
    return JobContext(config)


def open_corpus(options: Mapping[str, Any], corpus: str | None, overrides: Sequence[str] = ()) -> JobContext:
    """Return a context whose corpus is ingested."""
    context = open_context(options, corpus, overrides)
    return context.pinned(ingest.run(context))


def open_domain(options: Mapping[str, Any], corpus: str | None, overrides: Sequence[str] = ()) -> Domain:
    """Return a corpus with its features; both are made on first use and found again later."""
    context = open_corpus(options, corpus, overrides)
    return Domain(context.pinned(featurize.run(context)))


def shared_tasks(*domains: Domain) -> list[str]:
    """Return the tasks that all domains have training examples of, sorted."""
    return sorted(set.intersection(*(set(domain.examples) for domain in domains)))
