"""The typed config: what a run depends on, with the bounds of every value.

Each field's docstring is what `--help` prints for its flag. The defaults are those of `configs/novels.yaml`.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

import yaml

from mlm_dist.errors import UserError

MOST_HEADS = 1 << 16  # that are proposed
YEAR = 365 * 24 * 60  # in minutes
SAMPLE = "sample"
"""The value of `data.path` that stands for the text that comes with the package."""


@dataclass
class DataConfig:
    """Which texts to train on."""

    path: str = "corpora/novels"
    """A corpus made by `python -m mlm_dist.prepare`, or a text file or a folder of *.txt files, which is prepared
    into a cache first. `sample` is a short text that comes with the package."""
    tokenizer: str = "gpt2"
    """Used when `data.path` is text: a tiktoken encoding by name, or `bpe` to train a byte-level BPE of
    `model.vocab_size` entries on the texts themselves. A prepared corpus brings its own."""
    encoding: str = "utf-8"
    """Used when `data.path` is text: its character encoding."""
    val_fraction: float = 0.05
    """Used when `data.path` is text: the fraction of it that is held out, the ends of long documents and short
    documents whole."""
    verify: bool = False
    """Compare the corpus with its SHA-256 digests at every start. false: once on each machine, and again after a file
    has changed."""


@dataclass
class ModelConfig:
    """The shape of the encoder."""

    vocab_size: int | None = None
    """Entries of the vocabulary, the mask token included. null: as many as the corpus has; a number is at least that.
    With `data.tokenizer` bpe and `data.path` a text, how many to train."""
    block_size: int = 64
    """Tokens in a row: how far the model sees."""
    embedding_dim: int = 256
    """Width of the embeddings and of every block. A multiple of `model.heads`."""
    heads: int = 8
    """Attention heads in each block."""
    blocks: int = 4
    """Blocks of attention and feed-forward, one after the other."""
    dropout: float = 0.0
    """Probability with which activations are dropped in training."""
    tie_embeddings: bool = True
    """Use one matrix for the token embedding and the output layer."""

    @property
    def entries(self) -> int:
        """Entries of the vocabulary, once they are known.

        Raises:
            ValueError: `vocab_size` is null, which the corpus has to replace: `Config.with_vocab_size`.
        """
        if self.vocab_size is None:
            raise ValueError("model.vocab_size is null: Config.with_vocab_size puts the size of a corpus in its place")
        return self.vocab_size


MaskProb = float | dict[str, float] | list[float]


@dataclass
class MaskingConfig:
    """What the model has to guess."""

    mask_prob: MaskProb = 0.15
    """Fraction of the tokens that are predicted: a number between 0 and 1; a course over the run, `{from: 0.3, to:
    0.15}`; or a range, `[0, 1]`, from which each row draws its own, its loss weighted with the inverse, which makes a
    generator (masked diffusion)."""
    unit: Literal["token", "word", "span"] = "token"
    """What is hidden as a whole: single tokens, words, or spans of words."""
    replacement: Literal["mask", "80/10/10"] = "mask"
    """What stands in the place of a predicted token: always the mask token, or BERT's mixture (80 % mask token,
    10 % a random token, 10 % the token itself)."""


@dataclass
class OptimConfig:
    """The optimizer and its learning rate."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon: Muon for the matrices inside the blocks and AdamW for all else, which learns in fewer steps."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_lr: float = 4e-3
    """Used by muon: its peak learning rate, which has the same course as `optim.lr`."""
    weight_decay: float = 0.01
    """Decoupled weight decay on matrices; norms and biases have none."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "wsd"
    """Course of the learning rate after the warm-up: constant, cosine or linear to zero, or wsd (warmup-stable-decay:
    constant, then linear to zero over the last `optim.decay_fraction` of the run)."""
    warmup_iters: int = 100
    """Steps over which the learning rate rises from zero to its peak: half of the run at most."""
    decay_fraction: float = 0.4
    """Used by the wsd schedule: the part of the run, at its end, over which the learning rate falls, after the
    warm-up at the earliest."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; longer ones are scaled down to it. 0 turns clipping off."""


@dataclass
class TrainConfig:
    """How long to train, and how often to look."""

    batch_size: int = 256
    """Rows in one optimizer step, over all ranks together."""
    micro_batch_size: int | None = None
    """Rows that one rank puts through the model at a time; less memory, same result. null: its whole share."""
    max_iters: int = 5000
    """Optimizer steps."""
    log_interval: int = 10
    """Steps between two lines in metrics.jsonl."""
    eval_interval: int = 250
    """Steps between two evaluations on the held-out text. 0: none."""
    eval_rows: int = 1024
    """Rows of the held-out text that are evaluated, the same ones with the same masks every time."""
    max_bad_steps: int = 10
    """A step whose loss or gradient is no finite number is left out; after so many in a row the run stops."""
    time_limit: float | None = None
    """Minutes of wall time after which the run saves and stops, to be continued by the same command. null: none."""
    hang_timeout: float = 10.0
    """Minutes that processes wait for one of them that does not answer, until they name it and stop."""


@dataclass
class CheckpointConfig:
    """When the run is saved, and what is kept."""

    interval: int = 500
    """Steps between two checkpoints."""
    keep: int = 3
    """Checkpoints that are kept, the newest ones. Besides, the one with the lowest held-out loss of those whose step
    was evaluated."""


@dataclass
class Config:
    """Everything that a run depends on."""

    seed: int = 1337
    """Seed of the weights, the order of the rows and the masks."""
    run_dir: str = "runs/novels"
    """Folder that holds the run. The same command continues what it finds there."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one, else the CPU."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of the model's matrix products. auto: bf16 where the device computes in it, else fp16 on a GPU and
    fp32 on a CPU. Weights and optimizer stay in fp32."""
    debug: bool = False
    """One process, deterministic algorithms, every operation checked for NaN. Slow."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def to_yaml(self) -> str:
        """The config as YAML, every key written out."""
        return yaml.dump(dataclasses.asdict(self), Dumper=QuotingDumper, sort_keys=False, allow_unicode=True)

    def with_vocab_size(self, entries: int | None) -> "Config":
        """The config with a number in the place of a `model.vocab_size` of null; a number that is there stays."""
        if self.model.vocab_size is not None:
            return self
        return dataclasses.replace(self, model=dataclasses.replace(self.model, vocab_size=entries))

    def micro_batch_size(self, world_size: int) -> int:
        """Rows that one rank puts through the model at a time."""
        return self.train.micro_batch_size or self.train.batch_size // world_size

    def check_world_size(self, world_size: int) -> None:
        """Raise `UserError` if the global batch cannot be cut into equal parts for that many ranks."""
        batch_size, micro = self.train.batch_size, self.train.micro_batch_size
        if self.debug and world_size > 1:
            raise UserError(f"debug: true is for one process, and {world_size} were started: leave torchrun away")
        if batch_size % world_size:
            raise UserError(
                f"train.batch_size {batch_size} cannot be shared by {world_size} processes: make it a multiple of "
                f"{world_size} (it counts the rows of a step over all processes)"
            )
        if micro and batch_size % (world_size * micro):
            raise UserError(
                f"train.batch_size {batch_size} is not a multiple of {world_size} processes times "
                f"train.micro_batch_size {micro}"
            )


class QuotingDumper(yaml.SafeDumper):
    """Writes YAML as `yaml.safe_dump` does, but quotes text such as 1e-3, which other readers take for a number."""


def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Write text, in quotes where it reads like a number."""
    try:
        float(text)
    except ValueError:
        return dumper.represent_str(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'")


QuotingDumper.add_representer(str, represent_text)


def find_problems(config: Config) -> list[str]:
    """Everything that is wrong with the values of a config, each in a phrase that names the key."""
    model, optim, train = config.model, config.optim, config.train
    problems = [
        f"{key} is {value}: it must be {bound}"
        for key, value, bound, fits in [
            *[(key, value, "at least 1", value >= 1) for key, value in positive_keys(config).items()],
            *[(key, value, "0 or more", 0 <= value < math.inf) for key, value in non_negative_keys(config).items()],
            ("seed", config.seed, "at least 0 and below 2**64", 0 <= config.seed < 2**64),
            ("run_dir", "empty", "the name of a folder", config.run_dir != ""),
            ("data.path", "empty", "a corpus, a text file or a folder", config.data.path != ""),
            ("model.vocab_size", model.vocab_size, "at least 3", model.vocab_size is None or model.vocab_size >= 3),
            ("model.dropout", model.dropout, "at least 0 and below 1", 0 <= model.dropout < 1),
            ("masking.mask_prob", config.masking.mask_prob, *bound_of(config.masking.mask_prob)),
            (
                "data.val_fraction",
                config.data.val_fraction,
                "at least 0 and below 1",
                0 <= config.data.val_fraction < 1,
            ),
            ("optim.lr", optim.lr, "above 0", 0 < optim.lr < math.inf),
            ("optim.muon_lr", optim.muon_lr, "above 0", 0 < optim.muon_lr < math.inf),
            ("train.time_limit", train.time_limit, "above 0", train.time_limit is None or train.time_limit > 0),
            ("train.hang_timeout", train.hang_timeout, f"above 0 and at most {YEAR}", 0 < train.hang_timeout <= YEAR),
            ("optim.decay_fraction", optim.decay_fraction, "between 0 and 1", 0 <= optim.decay_fraction <= 1),
        ]
        if not fits
    ]
    if not problems and (width := model.embedding_dim) % model.heads:
        below = next(heads for heads in range(min(model.heads, width, MOST_HEADS), 0, -1) if not width % heads)
        problems.append(
            f"model.embedding_dim {width} is not a multiple of model.heads {model.heads}: {below} heads fit"
        )
    if is_range(config.masking.mask_prob) and config.masking.replacement != "mask":
        problems.append("masking.mask_prob is a range: masking.replacement must be mask, for the weights count on it")
    if not problems and train.batch_size % (train.micro_batch_size or 1):
        problems.append(
            f"train.batch_size {train.batch_size} is not a multiple of train.micro_batch_size {train.micro_batch_size}"
        )
    return problems


def is_range(mask_prob: MaskProb) -> bool:
    """Whether each row draws a share of its own to be hidden, and its loss has weights."""
    return isinstance(mask_prob, list)


def bound_of(mask_prob: MaskProb) -> tuple[str, bool]:
    """What a mask probability of its kind has to be, and whether it is."""
    if isinstance(mask_prob, dict):
        fits = mask_prob.keys() == {"from", "to"} and all(0 < value < 1 for value in mask_prob.values())
        return "{from: A, to: B}, both between 0 and 1", fits
    if isinstance(mask_prob, list):
        fits = len(mask_prob) == 2 and 0 <= mask_prob[0] < mask_prob[1] <= 1
        return "[LOW, HIGH] with 0 <= LOW < HIGH <= 1", fits
    return "between 0 and 1", 0 < mask_prob < 1


def positive_keys(config: Config) -> dict[str, int]:
    """The values that have to be at least 1."""
    model, train, checkpoint = config.model, config.train, config.checkpoint
    return {
        "model.block_size": model.block_size,
        "model.embedding_dim": model.embedding_dim,
        "model.heads": model.heads,
        "model.blocks": model.blocks,
        "train.batch_size": train.batch_size,
        "train.micro_batch_size": 1 if train.micro_batch_size is None else train.micro_batch_size,
        "train.max_iters": train.max_iters,
        "train.log_interval": train.log_interval,
        "train.eval_rows": train.eval_rows,
        "train.max_bad_steps": train.max_bad_steps,
        "checkpoint.interval": checkpoint.interval,
        "checkpoint.keep": checkpoint.keep,
    }


def non_negative_keys(config: Config) -> dict[str, float]:
    """The values that have to be 0 or more."""
    return {
        "optim.weight_decay": config.optim.weight_decay,
        "optim.warmup_iters": config.optim.warmup_iters,
        "optim.grad_clip": config.optim.grad_clip,
        "train.eval_interval": config.train.eval_interval,
    }
