"""The results of `probe` and `finetune` in the words and charts of the report of a run."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mlm_dist.errors import UserError
from mlm_dist.inference.probing import Group, Probe
from mlm_dist.inference.task_report import (
    MAJORITY,
    TABLE,
    TFIDF,
    TRAINED,
    UNTRAINED,
    Estimate,
    Footnotes,
    TaskResult,
    footnotes,
)
from mlm_dist.output import warn
from mlm_dist.plots.chart import Chart
from mlm_dist.plots.probes import STEMS, chart_probes
from mlm_dist.plots.result_files import read_result
from mlm_dist.plots.style import shortened

SCORINGS = {False: "One token masked at a time", True: "Each token masked together with the rest of its word"}
OTHER_PARAMETERS = "measured with parameters other than those on this page: of another step, or of another run"
UNKNOWN_PARAMETERS = "cannot be checked against this run, because its parameters cannot be loaded"
OTHER_STEP = "this page shows the parameters of another step"
MAX_NAME_LENGTH = 80  # in characters

Found = Mapping[Path, TaskResult | Sequence[Probe]]
"""By file, its results."""


class PairResults(NamedTuple):
    """The results on minimal pairs in a file.

    Attributes:
        source: the file.
        scoring: how the sentences were scored.
        remark: of which step, and on which sentences.
        doubt: why the results may belong to other parameters; empty if the step matches.
        groups: the results at one step, all pairs first, then by phenomenon.
        charts: of all steps; none if there is one step.
    """

    source: str
    scoring: str
    remark: str
    doubt: str
    groups: list[tuple[str, Group]]
    charts: list[Chart]


class Row(NamedTuple):
    """A row of the table of a task; without seeds if it is a difference."""

    name: str
    seeds: str
    found: Mapping[str, Estimate]


class Task(NamedTuple):
    """The results on a labelled task.

    Attributes:
        name: of the folder or file.
        source: the file.
        doubt: why the results may belong to other parameters; empty if the parameters match.
        metrics: the columns of the table.
        rows: of the table, for the contestants.
        gains: of the table, for what training gained.
        notes: what the table does not say.
    """

    name: str
    source: str
    doubt: str
    metrics: list[str]
    rows: list[Row]
    gains: list[Row]
    notes: Footnotes


class Results(NamedTuple):
    """All results."""

    pairs: Sequence[PairResults]
    tasks: Sequence[Task]


NO_RESULTS = Results([], [])


def read_results(run: Path, paths: Sequence[Path]) -> Found:
    """Read the results of a run, each file once.

    Args:
        run: the run directory, whose own learning curves are read too; a warning is printed for those that are damaged.
        paths: folders of `finetune`, and files with the JSON of `finetune` or `probe`.

    Raises:
        UserError: one of `paths` cannot be read, or has other content.
    """
    files = [path / TABLE if path.is_dir() else path for path in paths]
    given = {os.path.realpath(file): file for file in files}
    found = {file: read_result(file) for file in given.values()}
    for file in (run / "plots" / f"{stem}.json" for stem in STEMS.values()):
        if file.exists() and os.path.realpath(file) not in given:
            try:
                found[file] = read_result(file)
            except UserError as error:
                warn(f"{error}: it is left out of the report")
    return found


def describe_results(found: Found, digest: Callable[[], str], step: int | None) -> Results:
    """The results in words and charts. A warning is printed for those that may belong to other parameters.

    Args:
        found: the results.
        digest: returns the SHA-256 of the parameters that the report shows, or nothing if they cannot be loaded. It is
            called only for tasks, because it reads all parameters.
        step: of these parameters, if it is known.
    """
    tasks = {file: result for file, result in found.items() if isinstance(result, TaskResult)}
    sha256 = digest() if tasks else ""
    return Results(
        [describe_probes(file, result, step) for file, result in found.items() if not isinstance(result, TaskResult)],
        [describe_task(file, result, sha256) for file, result in tasks.items()],
    )


def describe_probes(file: Path, probes: Sequence[Probe], step: int | None) -> PairResults:
    """The results on minimal pairs at a step, or else at the last one; and of all steps as charts."""
    shown = next((probe for probe in probes if probe.step == step), probes[-1])
    doubt = ""
    if step is not None and shown.step != step:
        doubt = OTHER_STEP
        warn(f"{file}: {doubt}")
    of_step = "Step unknown" if shown.step is None else f"Step {shown.step:,}"
    several = f", one of {len(probes)} checkpoints" if len(probes) > 1 else ""
    windows = (
        f" {shown.long_sentences:,} sentences are longer than the context window; each of their tokens is predicted "
        "from a window around it."
        if shown.long_sentences
        else ""
    )
    groups = [("all pairs", shown.overall), *((named(name), of) for name, of in shown.phenomena.items())]
    charts = chart_probes(probes) if len(probes) > 1 else []
    return PairResults(
        named(str(file)), SCORINGS[shown.within_word], f"{of_step}{several}.{windows}", doubt, groups, charts
    )


def describe_task(file: Path, result: TaskResult, sha256: str) -> Task:
    """The results on a task in words."""
    doubt = ""
    if not sha256 or result.parameters != sha256:
        doubt = OTHER_PARAMETERS if sha256 else UNKNOWN_PARAMETERS
        warn(f"{file}: {doubt}")
    name = file.resolve().parent.name if file.name == TABLE else file.stem
    is_score = not result.classes
    names = {
        TRAINED: "trained encoder",
        UNTRAINED: "untrained encoder",
        MAJORITY: f"majority ({'mean score' if is_score else 'most frequent class'})",
        TFIDF: f"TF-IDF + {'ridge' if is_score else 'logistic'} regression",
    }
    return Task(
        named(name),
        named(str(file)),
        doubt,
        result.metrics,
        [Row(named(names.get(of, of)), str(result.seeds[of]), it) for of, it in reversed(result.estimates.items())],
        [Row(named(f"{TRAINED} − {of}"), "", it) for of, it in reversed(result.gains.items())],
        footnotes(result),
    )


def named(name: str) -> str:
    """A name, shortened in its middle if it is long."""
    return shortened(name, MAX_NAME_LENGTH)
