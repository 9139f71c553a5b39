"""The typed config: everything a run depends on, with the bounds of each value.

The docstring of a field is its `--help` and its row in docs/configuration.md. The defaults are those of
`configs/novels.yaml`.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from mlm_dist.errors import UserError

MOST_HEADS = 1 << 16  # in a suggestion
YEAR = 365 * 24 * 60  # in minutes
SAMPLE = "sample"
"""The value of `data.path` for the sample text of the package."""


@dataclass
class DataConfig:
    """The texts."""

    path: str = "corpora/novels"
    """A corpus from `python -m mlm_dist.prepare`, or a text file or a folder of *.txt files, which is first prepared
    into a cache. `sample` is a short text that comes with the package."""
    tokenizer: str = "gpt2"
    """If `data.path` is text: the name of a tiktoken encoding, or `bpe` to train a byte-level BPE with
    `model.vocab_size` entries on the text. A prepared corpus has its own tokenizer."""
    encoding: str = "utf-8"
    """If `data.path` is text: its character encoding."""
    val_fraction: float = 0.05
    """If `data.path` is text: the fraction that becomes the validation split: the ends of long documents, and whole
    short documents."""
    verify: bool = False
    """Verify the SHA-256 digests of the corpus at every start. false: once per machine, and again after a file has
    changed."""


@dataclass
class ModelConfig:
    """The shape of the encoder."""

    vocab_size: int | None = None
    """Vocabulary size, including the mask token. null: that of the corpus, which is also the minimum. If a BPE is
    trained (`data.tokenizer: bpe`), its size."""
    block_size: int = 64
    """Tokens per row, T: the length of the context window."""
    embedding_dim: int = 256
    """Width of the embeddings and of every block, C. A multiple of `model.heads`."""
    heads: int = 8
    """Attention heads per block."""
    blocks: int = 4
    """Number of Transformer blocks."""
    dropout: float = 0.0
    """Dropout probability in training."""
    tie_embeddings: bool = True
    """Share one matrix between the token embedding and the output layer."""

    @property
    def entries(self) -> int:
        """The vocabulary size, once it is known.

        Raises:
            ValueError: `vocab_size` is null: call `Config.with_vocab_size` first.
        """
        if self.vocab_size is None:
            raise ValueError("model.vocab_size is null: Config.with_vocab_size puts the size of a corpus in its place")
        return self.vocab_size


MaskProb = float | dict[str, float] | list[float]


@dataclass
class MaskingConfig:
    """Which tokens are masked."""

    mask_prob: MaskProb = 0.15
    """Mask rate: a number between 0 and 1; a linear schedule over the run, `{from: 0.3, to: 0.15}`; or a range, `[0,
    1]`, from which each row samples its rate, with the inverse as its loss weight. `[0, 1]` trains a generator (masked
    diffusion)."""
    unit: Literal["token", "word", "span"] = "token"
    """What is masked as a whole: tokens, words, or spans of words."""
    replacement: Literal["mask", "80/10/10"] = "mask"
    """What replaces a predicted token: always the mask token, or BERT's mixture of 80 % mask token, 10 % random token
    and 10 % unchanged."""


@dataclass
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon: Muon for the matrices inside the blocks and AdamW for the rest. Muon needs fewer steps."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_lr: float = 4e-3
    """Peak learning rate of Muon. It follows the same schedule as `optim.lr`."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices. Norms and biases have none."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "wsd"
    """Learning-rate schedule after the warmup: constant, cosine or linear to zero, or wsd (warmup-stable-decay:
    constant, then linear to zero over the last `optim.decay_fraction` of the run)."""
    warmup_iters: int = 100
    """Steps of linear warmup to the peak learning rate; at most half of the run."""
    decay_fraction: float = 0.4
    """Fraction of the run, at its end, over which wsd decays the learning rate. The decay starts after the warmup."""
    grad_clip: float = 1.0
    """Maximum gradient norm; larger gradients are scaled down to it. 0: no clipping."""


@dataclass
class TrainConfig:
    """Length of the run, batches, and evaluation."""

    batch_size: int = 256
    """Rows per optimizer step, over all ranks: the global batch."""
    micro_batch_size: int | None = None
    """Rows per forward pass of one rank. Smaller values need less memory and give the same result. null: all its
    rows."""
    max_iters: int = 5000
    """Optimizer steps."""
    log_interval: int = 10
    """Steps between two training lines of metrics.jsonl."""
    eval_interval: int = 250
    """Steps between two evaluations on the validation split. 0: never."""
    eval_rows: int = 1024
    """Validation rows per evaluation: the same rows with the same masks every time."""
    max_bad_steps: int = 10
    """The run stops after this many consecutive skipped steps. A step is skipped if its gradient is not finite."""
    time_limit: float | None = None
    """Minutes of wall time after which the run saves a checkpoint and stops. null: no limit."""
    hang_timeout: float = 10.0
    """Timeout of collectives, in minutes. The run then stops and names the unresponsive rank."""


@dataclass
class CheckpointConfig:
    """When checkpoints are saved, and which are kept."""

    interval: int = 500
    """Steps between two checkpoints."""
    keep: int = 3
    """Number of newest checkpoints to keep, in addition to the one with the lowest validation loss."""


@dataclass
class Config:
    """Everything a run depends on."""

    seed: int = 1337
    """Seed of the initial parameters, the order of the rows and the masks."""
    run_dir: str = "runs/novels"
    """Folder of the run. The same command continues the run that it finds there."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: on a GPU if there is one, else on the CPU."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Dtype of the matrix products. auto: bf16 if the device computes in it, else fp16 on a GPU and fp32 on a CPU.
    Parameters and optimizer state are always fp32."""
    debug: bool = False
    """One process, deterministic algorithms, every operation checked for NaN. Slow."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def to_yaml(self) -> str:
        """The config as YAML, with every key."""
        return yaml.dump(dataclasses.asdict(self), Dumper=QuotingDumper, sort_keys=False, allow_unicode=True)

    def with_vocab_size(self, entries: int | None) -> "Config":
        """The config with `model.vocab_size` set to this, if it was null."""
        if self.model.vocab_size is not None:
            return self
        return dataclasses.replace(self, model=dataclasses.replace(self.model, vocab_size=entries))

    def check_vocab_size(self, needed: int, corpus: Path) -> None:
        """Raise `UserError` if the vocabulary of a corpus exceeds `model.vocab_size`."""
        if needed > self.model.entries:
            raise UserError(
                f"{corpus} has a vocabulary of {needed}, more than model.vocab_size {self.model.entries}: set that to "
                f"{needed}"
            )

    def micro_batch_size(self, world_size: int) -> int:
        """Rows per forward pass of one rank."""
        return self.train.micro_batch_size or self.train.batch_size // world_size

    def check_world_size(self, world_size: int) -> None:
        """Raise `UserError` if the global batch cannot be split evenly over this many ranks."""
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
    """Dumps YAML like `yaml.safe_dump`, but quotes strings such as 1e-3, which other YAML readers parse as numbers."""


def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Represent a string, quoted if it looks like a number."""
    try:
        float(text)
    except ValueError:
        return dumper.represent_str(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'")


QuotingDumper.add_representer(str, represent_text)


def find_problems(config: Config) -> list[str]:
    """Every problem with the values of a config, each as a phrase that names the key."""
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
    """Whether each row samples its mask rate, and has a loss weight."""
    return isinstance(mask_prob, list)


def bound_of(mask_prob: MaskProb) -> tuple[str, bool]:
    """The bound of a mask rate of this type, and whether the rate is within it."""
    if isinstance(mask_prob, dict):
        fits = mask_prob.keys() == {"from", "to"} and all(0 < value < 1 for value in mask_prob.values())
        return "{from: A, to: B}, both between 0 and 1", fits
    if isinstance(mask_prob, list):
        fits = len(mask_prob) == 2 and 0 <= mask_prob[0] < mask_prob[1] <= 1
        return "[LOW, HIGH] with 0 <= LOW < HIGH <= 1", fits
    return "between 0 and 1", 0 < mask_prob < 1


def positive_keys(config: Config) -> dict[str, int]:
    """The values that must be at least 1."""
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
    """The values that must be 0 or more."""
    return {
        "optim.weight_decay": config.optim.weight_decay,
        "optim.warmup_iters": config.optim.warmup_iters,
        "optim.grad_clip": config.optim.grad_clip,
        "train.eval_interval": config.train.eval_interval,
    }
