"""Reading the JSON of `probe` and `finetune`, whatever is in the file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlm_dist.errors import UserError
from mlm_dist.files import LARGEST_JSON, parse_json, read_text
from mlm_dist.inference import probe_report, task_report
from mlm_dist.inference.probing import Probe
from mlm_dist.inference.task_report import TABLE, TaskResult
from mlm_dist.plots.style import shortened

KEYS = {"finetune": "trained_minus", "probe": "overall"}
"""By verb, a key that only its results have."""
MAX_PLACE_LENGTH = 80  # in characters


def read_result(file: Path) -> TaskResult | list[Probe]:
    """The results in a file: on a task, or on minimal pairs at one or more steps.

    Raises:
        UserError: it cannot be read, or has other content.
    """
    try:
        content = parse_objects(read_text(file, largest=LARGEST_JSON))
    except FileNotFoundError as error:
        hint = ": `finetune` writes it to its --out folder when it finishes" if file.name == TABLE else ""
        raise UserError(f"{file}: {error.strerror}{hint}") from error
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a result of `probe` or `finetune`: it is not UTF-8") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged, or not a result of `probe` or `finetune`: {error}") from error
    verb = next((verb for verb, key in KEYS.items() if content and key in content[0]), None)
    if verb is None:
        raise UserError(f"{file} is not a result of `probe` or `finetune`")
    try:
        return one_task(content) if verb == "finetune" else one_curve(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = shortened(".".join(map(str, first["loc"])), MAX_PLACE_LENGTH)
        raise UserError(f"{file} is damaged, or from another version of `{verb}`: {place}: {first['msg']}") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged, or from another version of `{verb}`: {error}") from error


def parse_objects(text: str) -> list[dict[str, Any]]:
    """The objects of a JSON text: one, a list of them, or JSON Lines.

    Raises:
        ValueError: it is something else.
    """
    lines = text.rstrip().split("\n")
    if len(lines) > 1 and lines[0].startswith("{") and lines[0].rstrip().endswith("}"):
        text = "[" + ",\n".join(lines) + "]"  # so that a mistake is reported with its line
    content = parse_json(text)
    objects = content if isinstance(content, list) else [content]
    if not all(isinstance(part, dict) for part in objects):
        raise ValueError("it contains something other than JSON objects")
    return objects


def one_task(content: Sequence[Any]) -> TaskResult:
    """The results on a task. Raises `ValueError`."""
    if len(content) > 1:
        raise ValueError("it has several results: give one file for each")
    return task_report.from_json(content[0])


def one_curve(content: Sequence[Any]) -> list[Probe]:
    """The results on the same pairs at one or more steps. Raises `ValueError`."""
    probes = [probe_report.from_json(part) for part in content]
    first, *others = probes
    steps = [probe.step for probe in probes if probe.step is not None]
    if others and (steps != sorted(set(steps)) or len(steps) < len(probes)):
        raise ValueError("its results must be in ascending order of step")
    if any(what_was_scored(other) != what_was_scored(first) for other in others):
        raise ValueError("its results must be of the same pairs, scored in the same way")
    return probes


def what_was_scored(probe: Probe) -> tuple[bool, dict[str, int], dict[str, int]]:
    """How sentences were scored, and the number of pairs by phenomenon and by file."""
    phenomena, files = ({name: group.pairs for name, group in of.items()} for of in (probe.phenomena, probe.files))
    return probe.within_word, phenomena, files
