"""The results on minimal pairs as JSON and as text."""

from typing import Any

from pydantic import ConfigDict, TypeAdapter

from mlm_dist.inference.probing import Accuracy, Group, Probe

PROBE = TypeAdapter(Probe, config=ConfigDict(strict=True, allow_inf_nan=False))


def to_json(probe: Probe) -> dict[str, Any]:
    """The results as plain values."""
    return {
        "step": probe.step,
        "within_word": probe.within_word,
        "long_sentences": probe.long_sentences,
        "overall": group_to_json(probe.overall),
        "phenomena": {name: group_to_json(group) for name, group in probe.phenomena.items()},
        "files": {name: group_to_json(group) for name, group in probe.files.items()},
    }


def from_json(content: Any) -> Probe:
    """The results, from what `to_json` returns.

    Raises:
        ValueError: it is something else.
    """
    return PROBE.validate_python(content)


def group_to_json(group: Group) -> dict[str, Any]:
    """The results on some pairs as plain values."""
    return {"pairs": group.pairs, "summed": group.summed._asdict(), "per_token": group.per_token._asdict()}


def to_text(probe: Probe, block_size: int) -> str:
    """The results as a table: a line for each phenomenon, for each file, and for all pairs."""
    tables = {"phenomenon": probe.phenomena, "file": probe.files, "": {"all pairs": probe.overall}}
    if probe.phenomena.keys() == probe.files.keys():
        del tables["file"]
    width = max(len(name) for groups in tables.values() for name in groups)
    lines = []
    for title, groups in tables.items():
        lines.append(f"{title:<{width}}  {'pairs':>7}  {'sum over tokens':<20}  mean per token" if title else "")
        lines += [f"{name:<{width}}  {group_to_text(group)}" for name, group in groups.items()]
    if probe.long_sentences:
        lines.append(
            f"sentences of more than {block_size} tokens: {probe.long_sentences:,}; each of their tokens is predicted "
            f"from a window of {block_size} around it"
        )
    return "\n".join(lines)


def group_to_text(group: Group) -> str:
    """The results on some pairs in one line."""
    return f"{group.pairs:>7,}  {accuracy_to_text(group.summed)}  {accuracy_to_text(group.per_token)}"


def accuracy_to_text(accuracy: Accuracy) -> str:
    """An accuracy and its interval in percent."""
    value, low, high = (100 * bound for bound in accuracy)
    return f"{value:5.1f} [{low:5.1f}, {high:5.1f}]"
