"""The operations of a step are counted, because each is at least one kernel on a GPU."""

import json
import re
import sys
from pathlib import Path

import pytest

from mlm_dist.config_reading import parse_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.distributed import Processes
from mlm_dist.run.run_dir import RunDir
from mlm_dist.training.stopping import StopRequest
from mlm_dist.training.trainer import Trainer
from tests.conftest import REPOSITORY, start, tiny_flags
from tests.training.counting import count_operations

pytestmark = pytest.mark.usefixtures("kept_handlers")

# Recorded with the tiny model of two blocks in fp32. If a change needs more, record it here and say why.
RECORDED = {"masks": 35, "encoder": 44, "loss": 22, "backward": 68, "update": 19, "rest": 7}
MORE_ON_TWO_RANKS = {"backward": 28, "rest": 1}  # one per parameter, one to divide them, two to multiply the loss


def assert_not_more(found: dict[str, int], recorded: dict[str, int]) -> None:
    assert found.keys() == recorded.keys()
    assert not {part: count for part, count in found.items() if count > recorded[part]}, (found, recorded)


@pytest.fixture
def flags(corpus_folder: Path, tmp_path: Path) -> list[str]:
    return tiny_flags(corpus_folder, tmp_path / "run")


def test_a_step_takes_no_more_operations_than_recorded(
    flags: list[str], corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    config = parse_config(flags, "train")
    trainer = Trainer(config, [corpus], Processes("cpu"), RunDir(Path(config.run_dir)), StopRequest())
    trainer.eager_step.without_host = True
    assert_not_more(count_operations(trainer), RECORDED)


@pytest.mark.multiprocess
def test_a_step_of_two_ranks_copies_gradients_into_buckets_and_does_nothing_else_in_addition(flags: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    path = f"{REPOSITORY}:{REPOSITORY / 'launch'}"
    result = start([*command, "tests/training/counting.py", *flags], PYTHONPATH=path)
    counts = [json.loads(found) for found in re.findall(r"{.*?}", result.stdout)]  # two lines may be mixed
    assert len(counts) == 2, result.stderr
    for found in counts:
        assert_not_more(found, {part: count + MORE_ON_TWO_RANKS.get(part, 0) for part, count in RECORDED.items()})
