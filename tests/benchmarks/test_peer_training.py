"""The peer of a comparison: its losses, its resuming, its stop."""

from pathlib import Path

import pytest
import torch

from mlm_dist.benchmarks.peer_training import PeerTrainer, main
from mlm_dist.benchmarks.peers import IGNORED
from mlm_dist.config_reading import parse_config
from mlm_dist.data.corpus import Corpus
from mlm_dist.run.metrics import read_events
from tests.conftest import tiny_flags

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


def losses(run: Path) -> list[tuple[int, float]]:
    events = read_events(run / "metrics.jsonl")
    return [(event["step"], event["val_loss"] if "val_loss" in event else event["loss"]) for event in events]


def peer_flags(corpus: Corpus, run: Path) -> list[str]:
    return tiny_flags(corpus.folder, run, optim__lr=1e-3)


def test_the_peer_learns_and_a_resumed_run_has_the_losses_of_an_undisturbed_one(corpus: Corpus, tmp_path: Path) -> None:
    main(peer_flags(corpus, tmp_path / "whole"))
    whole = losses(tmp_path / "whole")
    assert whole[-1][0] == 30
    assert whole[-1][1] < whole[10][1] - 0.05  # of the evaluations at 30 and 10
    assert (tmp_path / "whole" / "DONE").exists()

    trainer = PeerTrainer(parse_config(peer_flags(corpus, tmp_path / "cut"), "train"), [corpus])
    save = trainer.save

    def save_and_stop() -> None:
        save()
        trainer.run.stop.touch()

    trainer.save = save_and_stop  # type: ignore[method-assign]
    trainer.train()
    assert losses(tmp_path / "cut")[-1][0] == 10
    assert not any((tmp_path / "cut" / name).exists() for name in ("DONE", "STOP"))
    main(peer_flags(corpus, tmp_path / "cut"))
    assert losses(tmp_path / "cut") == whole


def test_the_validation_loss_is_the_mean_over_the_masked_tokens_of_the_fixed_rows(
    corpus: Corpus, tmp_path: Path
) -> None:
    trainer = PeerTrainer(parse_config(peer_flags(corpus, tmp_path), "train"), [corpus])
    trainer.model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in trainer.validator.batches():
            labels = torch.full_like(batch.inputs, IGNORED)
            rows, slots = batch.loss_weights.nonzero(as_tuple=True)
            positions = batch.positions[rows, slots]
            labels[rows, positions] = batch.targets[rows, slots]
            total += trainer.model(batch.inputs, labels).item() * len(positions)
            count += len(positions)
    assert trainer.evaluate() == pytest.approx(total / count, rel=1e-5)
    assert trainer.model.training
