"""The results of `probe` and `finetune` in the words and charts of the report of a run."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mlm_dist.inference.probing import Group, Probe
from mlm_dist.inference.task_report import TRAINED, UNTRAINED, Estimate, TaskResult, footnotes
from mlm_dist.output import warn
from mlm_dist.plots.chart import Chart
from mlm_dist.plots.probes import STEMS, chart_probes
from mlm_dist.plots.result_files import TABLE, read_result
from mlm_dist.plots.style import shortened

SCORINGS = {
    False: "Each token is masked alone",
    True: "With each token, the tokens that follow in the same word are masked too",
}
OTHER_PARAMETERS = "measured with other parameters than this page shows: those of another step, or of another run"
UNKNOWN_PARAMETERS = "measured with parameters that cannot be compared with those of this run, which cannot be loaded"
MAX_NAME_LENGTH = 80  # in characters


class Curve(NamedTuple):
    """The results of one scoring of minimal pairs.

    Attributes:
        source: the file.
        scoring: how the sentences were scored.
        remark: of which step, and on which sentences.
        groups: the results at the last step, all pairs first, then by phenomenon.
        charts: of all steps; none if there is one step.
    """

    source: str
    scoring: str
    remark: str
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
        doubt: why they may not be those of the model; empty if they are.
        metrics: the columns of the table.
        rows: of the table, for the contestants.
        gains: of the table, for what training gained.
        method: how the encoders learned, and on how many texts.
        units: of the table.
        gain: whether training has helped.
    """

    name: str
    doubt: str
    metrics: list[str]
    rows: list[Row]
    gains: list[Row]
    method: str
    units: str
    gain: str


class Results(NamedTuple):
    """All results."""

    curves: Sequence[Curve]
    tasks: Sequence[Task]


NO_RESULTS = Results((), ())


def read_results(run: Path, paths: Sequence[Path], sha256: str) -> Results:
    """Read the results of a run. A warning is printed for those that may be of another model.

    Args:
        run: the run directory, whose own learning curves are read too.
        paths: folders of `finetune`, and files with the JSON of `finetune` or `probe`.
        sha256: of the parameters of the model; empty if it cannot be loaded.

    Raises:
        UserError: a file cannot be read, or has other content.
    """
    own = [file for stem in STEMS.values() if (file := run / "plots" / f"{stem}.json").exists()]
    given = [path / TABLE if path.is_dir() else path for path in paths]
    files = {os.path.realpath(file): file for file in [*own, *given]}  # each once
    found = {file: read_result(file) for file in files.values()}
    return Results(
        [describe_probes(file, result) for file, result in found.items() if isinstance(result, list)],
        [describe_task(file, result, sha256) for file, result in found.items() if isinstance(result, TaskResult)],
    )


def describe_probes(file: Path, probes: Sequence[Probe]) -> Curve:
    """The results on minimal pairs in words, and as charts if they are of several steps."""
    last = probes[-1]
    step = "Step unknown" if last.step is None else f"Step {last.step:,}"
    several = f", the last of {len(probes)}" if len(probes) > 1 else ""
    windows = (
        f" Sentences of more tokens than the model reads at once: {last.long_sentences:,}; each of their tokens is "
        "predicted from a window around it."
        if last.long_sentences
        else ""
    )
    return Curve(
        shortened(str(file), MAX_NAME_LENGTH),
        SCORINGS[last.within_word],
        f"{step}{several}.{windows}",
        [("all pairs", last.overall), *((shortened(name, MAX_NAME_LENGTH), of) for name, of in last.phenomena.items())],
        chart_probes(probes) if len(probes) > 1 else [],
    )


def describe_task(file: Path, result: TaskResult, sha256: str) -> Task:
    """The results on a task in words."""
    doubt = ""
    if result.parameters != sha256:
        doubt = OTHER_PARAMETERS if sha256 else UNKNOWN_PARAMETERS
        warn(f"{file}: {doubt}")
    name = file.resolve().parent.name if file.name == TABLE else file.stem
    is_score = not result.classes
    names = {
        TRAINED: "trained encoder",
        UNTRAINED: "untrained encoder",
        "majority": f"majority ({'mean score' if is_score else 'most frequent class'})",
        "TF-IDF": f"TF-IDF + {'ridge' if is_score else 'logistic'} regression",
    }
    units, method, gain = footnotes(result)
    return Task(
        shortened(name, MAX_NAME_LENGTH),
        doubt,
        result.metrics,
        [Row(names.get(name, name), str(result.seeds[name]), of) for name, of in reversed(result.estimates.items())],
        [Row(f"{TRAINED} − {name}", "", of) for name, of in reversed(result.gains.items())],
        method,
        units,
        gain,
    )
