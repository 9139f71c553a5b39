"""The typed config: everything a run depends on, with type and bounds of each value at its field.

The docstring of a field is its `--help` and its row in docs/configuration.md. The defaults are those of
`configs/novels.yaml`. Every class validates its values: a wrong one raises `pydantic.ValidationError`, which
`mlm_dist.config_reading` turns into one line per mistake.
"""

import dataclasses
import re
from dataclasses import field
from typing import Annotated, Literal, Self

import yaml
from annotated_types import Ge, Gt, Le, Len, Lt, MinLen
from pydantic import (
    BeforeValidator,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
    with_config,
)
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict

from mlm_dist.errors import UserError

# Strict: no conversion between types, except from whole numbers to floats.
VALIDATED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
Fraction = Annotated[float, Ge(0), Le(1)]
ProperFraction = Annotated[float, Ge(0), Lt(1)]
Rate = Annotated[float, Gt(0), Lt(1)]
Text = Annotated[str, MinLen(1)]

MOST_HEADS = 1 << 16  # that an error message suggests
WORDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([kM])w")
YEAR = 365 * 24 * 60  # in minutes
SAMPLE = "sample"
"""The value of `data.path` for the sample text of the package."""


def split_names(value: object) -> object:
    """Split text at its commas; other values are returned as they are."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


@with_config(VALIDATED)
class Part(TypedDict):
    """A corpus of a mixture."""

    path: Text
    weight: PositiveFloat


@with_config(VALIDATED)
class EarlierPhase(TypedDict):
    """An earlier phase: its steps and the shape of its batches."""

    steps: PositiveInt
    batch_size: PositiveInt
    row_length: PositiveInt


def words_of(milestone: str) -> int:
    """The number of words of a milestone such as `500kw` or `1.5Mw`.

    Raises:
        ValueError: it is not a number of words.
    """
    match = WORDS.fullmatch(milestone)
    words = round(float(match[1]) * {"k": 1e3, "M": 1e6}[match[2]]) if match else 0
    if not words:
        raise ValueError(
            f"checkpoint.milestones has {milestone}: give a step, such as 500, or words, such as 500kw or 1.5Mw"
        )
    return words


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`, which is at least 1."""
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


def on_or_off(value: object) -> object:
    """Turn true and false, as which YAML reads them, into on and off; other values are returned as they are."""
    return ("on" if value else "off") if isinstance(value, bool) else value


@dataclass(config=VALIDATED)
class DataConfig:
    """The texts."""

    path: Text | Annotated[list[Part], MinLen(1)] = "corpora/novels"
    """A corpus from `python -m mlm_dist.prepare`, or a file, folder or pattern of texts in any format that `prepare`
    reads, which is first prepared into a cache. `sample` is a short text that comes with the package. A list is a
    mixture of corpora with the same tokenizer, or with one and its extension: over any 1,000 steps, the rows of each
    are in proportion to its weight."""
    tokenizer: Text = "gpt2"
    """If `data.path` is text: the name of a tiktoken encoding, the folder of a corpus, run or exported model whose
    tokenizer is used, or `bpe` to train a byte-level BPE with `model.vocab_size` entries on the text. A prepared corpus
    has its own tokenizer."""
    encoding: Text = "utf-8"
    """If `data.path` is text: its character encoding."""
    text_key: Text = "text"
    """If `data.path` has records (JSON Lines, CSV, TSV, Parquet, Arrow): the field that is the text."""
    split: Literal["document", "line"] = "document"
    """If `data.path` is plain text: whether a file is one document, or each of its lines that is not blank."""
    val_fraction: ProperFraction = 0.05
    """If `data.path` is text: the fraction that becomes the validation split: the ends of long documents, and whole
    short documents."""
    documents: Literal["joined", "isolated"] = "joined"
    """What a token attends to: joined: all tokens of its row; isolated: those of its own document, and positions begin
    anew with each document."""
    shift_rows: bool = False
    """Cut the training text into rows at other places in each epoch. An epoch then reads all tokens, but for less than
    a row. false: the same rows in every epoch, which are cut to whole batches."""
    verify: bool = False
    """Verify the SHA-256 digests of the corpus at every start. false: once per machine, and again after a file has
    changed."""

    @model_validator(mode="after")
    def check_parts(self) -> Self:
        """Refuse a mixture that has a corpus twice."""
        paths = [part["path"] for part in self.parts]
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"data.path has {path} twice: give it once, with the sum of the weights")
        return self

    @property
    def paths(self) -> str:
        """The paths of the corpora, for a message."""
        return ", ".join(part["path"] for part in self.parts)

    @property
    def weights(self) -> list[float]:
        """The weights of the corpora."""
        return [part["weight"] for part in self.parts]

    @property
    def parts(self) -> list[Part]:
        """The corpora with their weights; a single path has the weight 1."""
        return [Part(path=self.path, weight=1.0)] if isinstance(self.path, str) else self.path


@dataclass(config=VALIDATED)
class ModelConfig:
    """The model and its shape."""

    vocab_size: Annotated[int, Ge(3)] | None = None
    """Vocabulary size, including the mask token. null: that of the corpus, which is also the minimum. If a BPE is
    trained (`data.tokenizer: bpe`), its size."""
    block_size: PositiveInt = 64
    """Tokens per row, T: the length of the context window."""
    embedding_dim: PositiveInt = 256
    """Width of the embeddings and of every block, C. A multiple of `model.heads`."""
    heads: PositiveInt = 8
    """Attention heads per block."""
    blocks: PositiveInt = 4
    """Number of Transformer blocks."""
    dropout: ProperFraction = 0.0
    """Dropout probability in training."""
    tie_embeddings: bool = True
    """Share one matrix between the token embedding and the output layer."""
    activation: Literal["relu", "relu2", "gelu", "geglu"] = "relu"
    """Activation of the feed-forward layers. relu2: the square of ReLU. geglu: gated GELU, with 8/3 instead of 4 times
    the width of the model, rounded to a multiple of 8, so that there are about as many parameters."""
    qk_norm: bool = False
    """Normalize queries and keys in each head (RMSNorm with a scale)."""
    positions: Literal["learned", "rope"] = "learned"
    """learned: an embedding for each position of a row. rope: queries and keys are rotated by their positions (rotary
    position embeddings)."""
    logit_softcap: PositiveFloat | None = None
    """Soft cap of the logits, c: each becomes c * tanh(logit / c). Gemma 2 has 30. null: no cap."""
    embedding_std: PositiveFloat = 0.02
    """Standard deviation of the initial embeddings of tokens and positions. Without effect with `init_from`."""
    output_std: NonNegativeFloat = 0.02
    """Standard deviation of the initial output layer, if embeddings are not tied. 0: zeros. Without effect with
    `init_from`."""
    query_key_std: PositiveFloat = 0.02
    """Standard deviation of the initial matrices of queries and keys. With 1 / sqrt(`embedding_dim`), the attention is
    sharp enough at the start to shorten the plateau of the loss early in training. Without effect with `init_from`."""
    zero_init_projections: bool = False
    """Start with output projections of zeros in attention and feed-forward layers, so that each block is the identity
    at first. Without effect with `init_from`."""
    name: Text = "encoder"
    """Class of the model: `encoder`, or one that was added (docs/extending.md)."""

    @model_validator(mode="after")
    def check_heads(self) -> Self:
        """Refuse heads that do not divide the width."""
        if self.embedding_dim % self.heads:
            fit = largest_divisor(self.embedding_dim, min(self.heads, MOST_HEADS))
            raise ValueError(
                f"model.embedding_dim {self.embedding_dim} is not a multiple of model.heads {self.heads}: "
                f"{fit} heads fit"
            )
        return self

    @model_validator(mode="after")
    def check_positions(self) -> Self:
        """Refuse heads whose channels cannot be rotated in pairs."""
        if self.positions == "rope" and self.head_size % 2:
            raise ValueError(
                f"model.positions rope needs an even number of channels per head, but model.embedding_dim "
                f"{self.embedding_dim} / model.heads {self.heads} is {self.head_size}"
            )
        return self

    @model_validator(mode="after")
    def check_output(self) -> Self:
        """Refuse initial values of an output layer that is the token embedding."""
        if self.tie_embeddings and self.output_std != type(self).output_std:
            raise ValueError(
                "model.output_std needs model.tie_embeddings false: a tied output layer starts with model.embedding_std"
            )
        return self

    @property
    def head_size(self) -> int:
        """Channels per head."""
        return self.embedding_dim // self.heads

    @property
    def entries(self) -> int:
        """The vocabulary size, once it is known.

        Raises:
            ValueError: `vocab_size` is null: call `Config.with_vocab_size` first.
        """
        if self.vocab_size is None:
            raise ValueError("model.vocab_size is null: set it with Config.with_vocab_size")
        return self.vocab_size


@dataclass(config=VALIDATED)
class MaskingConfig:
    """Which tokens are masked."""

    mask_prob: Rate = 0.15
    """Mask rate: the fraction of the tokens that are masked."""
    mask_prob_end: Rate | None = None
    """Mask rate at the end of the run, to which the rate changes linearly from `masking.mask_prob`. null: constant."""
    mask_prob_change_fraction: Annotated[float, Ge(0.001), Le(1)] = 1.0
    """Fraction of the run, at its end, over which the rate changes to `masking.mask_prob_end`. 1: the whole run."""
    mask_prob_range: Annotated[list[Fraction], Len(2, 2)] | None = None
    """`[LOW, HIGH]`: each row samples its mask rate from this range, with the inverse as its loss weight, and
    `masking.mask_prob` is not used. `[0, 1]` trains a generator (masked diffusion). null: no sampling."""
    unit: Literal["token", "word", "span"] = "token"
    """What is masked as a whole: tokens, words, or spans of words."""
    replacement: Literal["mask", "80/10/10"] = "mask"
    """What replaces a predicted token: always the mask token, or BERT's mixture of 80 % mask token, 10 % random token
    and 10 % unchanged."""

    @model_validator(mode="after")
    def check_change(self) -> Self:
        """Refuse a part of the run in which nothing changes."""
        if self.mask_prob_change_fraction != 1 and self.mask_prob_end is None:
            raise ValueError("masking.mask_prob_change_fraction needs masking.mask_prob_end")
        return self

    @model_validator(mode="after")
    def check_range(self) -> Self:
        """Refuse a range that is empty or cannot be combined with other values."""
        if self.mask_prob_range is None:
            return self
        low, high = self.mask_prob_range
        if low >= high:
            raise ValueError(f"masking.mask_prob_range is [{low}, {high}]: LOW must be below HIGH")
        if self.mask_prob_end is not None:
            raise ValueError("masking.mask_prob_end and masking.mask_prob_range cannot be combined: remove one of them")
        if self.replacement != "mask":
            raise ValueError(
                "masking.mask_prob_range needs masking.replacement mask: its loss weights assume that every predicted "
                "token is masked"
            )
        return self

    @property
    def is_sampled(self) -> bool:
        """Whether each row samples its mask rate, with the inverse as its loss weight."""
        return self.mask_prob_range is not None

    @property
    def endpoints(self) -> tuple[float, float]:
        """The mask rates at the start and the end of the run, or the bounds of the range."""
        if self.mask_prob_range is not None:
            low, high = self.mask_prob_range
            return low, high
        return self.mask_prob, self.mask_prob if self.mask_prob_end is None else self.mask_prob_end

    @property
    def mean_rate(self) -> float:
        """The mean mask rate over the whole run."""
        start, end = self.endpoints
        return start + (end - start) / 2 * self.mask_prob_change_fraction


@dataclass(config=VALIDATED)
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "muon", "normuon"] = "adamw"
    """adamw, or muon: Muon for the matrices inside the blocks and AdamW for the rest. Muon needs fewer steps. normuon:
    NorMuon instead of Muon. It also divides each row of an update by its running root mean square."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    muon_lr: PositiveFloat = 4e-3
    """Peak learning rate of Muon and NorMuon. It follows the same schedule as `optim.lr`."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay of matrices. Norms and biases have none."""
    cautious_weight_decay: bool = False
    """Decay only the elements of matrices that the update of the step makes smaller in absolute value."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "wsd"
    """Learning-rate schedule after the warmup: constant, cosine or linear to zero, or wsd (warmup-stable-decay:
    constant, then linear to zero over the last `optim.decay_fraction` of the run)."""
    warmup_iters: NonNegativeInt = 100
    """Steps of linear warmup to the peak learning rate; at most half of the run."""
    decay_fraction: Fraction = 0.4
    """Fraction of the run, at its end, over which wsd decays the learning rate. The decay starts after the warmup."""
    grad_clip: NonNegativeFloat = 1.0
    """Maximum gradient norm; larger gradients are scaled down to it. 0: no clipping."""
    ema: Rate | None = None
    """Decay of an exponential moving average of the parameters, such as 0.999. The average is then the model of the
    run: what is evaluated during training, `model.pth`, and what is loaded from a checkpoint. null: no average."""


@dataclass(config=VALIDATED)
class TrainConfig:
    """Length of the run, batches, and evaluation."""

    batch_size: PositiveInt = 256
    """Rows per optimizer step, over all ranks: the global batch."""
    micro_batch_size: PositiveInt | None = None
    """Rows per forward pass of one rank. Smaller values need less memory and give the same result. null: all its
    rows."""
    max_iters: PositiveInt = 5000
    """Optimizer steps."""
    phases: list[EarlierPhase] = field(default_factory=list)
    """Earlier phases, with smaller batches or shorter rows: each takes `steps` of `train.max_iters` with `batch_size`
    rows of `model.block_size` tokens, each of which is cut into pieces of `row_length` tokens. The last phase has
    `train.batch_size` and whole rows. `batch_size` is at most that, and `row_length` divides `model.block_size`.
    Example: `[{steps: 500, batch_size: 64, row_length: 32}]`."""
    log_interval: PositiveInt = 10
    """Steps between two training events of metrics.jsonl."""
    eval_interval: NonNegativeInt = 250
    """Steps between two evaluations on the validation split. 0: never."""
    eval_rows: PositiveInt = 1024
    """Validation rows per evaluation: the same rows with the same masks every time."""
    loss_frequency_exponent: Fraction = 0.0
    """Exponent a: the training loss of a token is weighted by its frequency in the training text to the power of -a, so
    that rare tokens count more. The logged training loss is the weighted one. 0: all tokens count alike, as they always
    do in evaluations."""
    patience: PositiveInt | None = None
    """The run ends after this many consecutive evaluations without an improvement of the validation loss. `model.pth`
    then has the parameters of the evaluation with the lowest loss, of which every new one leaves a checkpoint. With
    `init_from`, the evaluation at step 0 counts too. A run with schedule wsd that ends like that has not decayed its
    learning rate. null: the run takes all its steps."""
    min_delta: NonNegativeFloat = 0.0
    """For `train.patience`: an improvement is a loss that is lower than at the last improvement, by at least this many
    nats."""
    max_bad_steps: PositiveInt = 10
    """The run stops after this many consecutive skipped steps. A step is skipped if its gradient is not finite."""
    time_limit: PositiveFloat | None = None
    """Minutes of wall time after which the run saves a checkpoint and stops. null: no limit."""
    hang_timeout: Annotated[float, Gt(0), Le(YEAR)] = 10.0
    """Timeout of collectives, in minutes. The run then stops and names the unresponsive rank."""

    @model_validator(mode="after")
    def check_micro_batch_size(self) -> Self:
        """Refuse micro-batches that do not divide the batch."""
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"train.batch_size {self.batch_size} is not a multiple of train.micro_batch_size "
                f"{self.micro_batch_size}"
            )
        return self

    @model_validator(mode="after")
    def check_phases(self) -> Self:
        """Refuse phases that leave no steps at `train.batch_size`, or whose batches are larger."""
        steps = sum(phase["steps"] for phase in self.phases)
        if steps >= self.max_iters:
            raise ValueError(
                f"train.phases take {steps} steps, which leaves none of train.max_iters {self.max_iters}: raise it, or "
                f"shorten the phases"
            )
        for phase in self.phases:
            if phase["batch_size"] > self.batch_size:
                raise ValueError(
                    f"train.phases has batch_size {phase['batch_size']}, which is more than train.batch_size "
                    f"{self.batch_size}"
                )
        return self

    @model_validator(mode="after")
    def check_patience(self) -> Self:
        """Refuse patience in a run without evaluations."""
        if self.patience and not self.eval_interval:
            raise ValueError("train.patience counts evaluations, but train.eval_interval 0 turns them off: set it too")
        return self


@dataclass(config=VALIDATED)
class CheckpointConfig:
    """When checkpoints are saved, and which are kept."""

    interval: PositiveInt = 500
    """Steps between two checkpoints."""
    keep: PositiveInt = 3
    """Number of newest checkpoints to keep, in addition to the one with the lowest validation loss."""
    milestones: list[PositiveInt | Text] = field(default_factory=list)
    """Steps (`500`) and amounts of text (`500kw`, `1.5Mw`: thousands and millions of words) after which the parameters
    are also saved in `milestones/` of the run, where they are never deleted. A word is what white space separates; the
    words per token are the mean of the training text."""

    @model_validator(mode="after")
    def check_milestones(self) -> Self:
        """Refuse text that is not a number of words."""
        for milestone in self.milestones:
            if isinstance(milestone, str):
                words_of(milestone)
        return self


@dataclass(config=VALIDATED)
class Config:
    """Everything a run depends on."""

    seed: Annotated[int, Ge(0), Lt(1 << 64)] = 1337
    """Seed of the initial parameters, the order of the rows and the masks."""
    run_dir: Text = "runs/novels"
    """Run directory. The same command continues the run that it finds there."""
    init_from: Text | None = None
    """Trained parameters to start from, instead of random ones: a run directory, `RUN@STEP`, `RUN@best`, a `model.pth`
    in its run directory, or a folder that `export` wrote. Optimizer, schedule and step start anew. The shape of the
    model is taken from there, unless `model.block_size` is another, and so is the tokenizer of a text."""
    branch: bool = False
    """Continue the run of `init_from` in another run directory, with its optimizer and step: to decay the learning rate
    from a checkpoint of a long run with a constant rate."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: on a GPU if there is one, else on the CPU."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Dtype of the matrix products. auto: bf16 if the device computes in it, else fp16 on a GPU and fp32 on a CPU.
    Parameters and optimizer state are always fp32."""
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(on_or_off)] = "auto"
    """Compile the encoder and its loss at the start, in about a minute, so that a step needs fewer passes over memory.
    It rounds differently. auto: on a GPU, if the run is long enough. Never in debug mode."""
    report_to: Annotated[list[Text], BeforeValidator(split_names)] = field(default_factory=list)
    """Experiment trackers that show the metrics of the run, in addition to metrics.jsonl: `tensorboard`, `wandb`,
    `mlflow`. A list, or names separated by commas."""
    debug: bool = False
    """One process, deterministic algorithms, every operation checked for NaN. Slow."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @model_validator(mode="after")
    def check_branch(self) -> Self:
        """Refuse a branch of nothing."""
        if self.branch and self.init_from is None:
            raise ValueError("branch: true needs init_from RUN@STEP, the checkpoint to continue from")
        return self

    @model_validator(mode="after")
    def check_row_lengths(self) -> Self:
        """Refuse row lengths that do not divide `model.block_size`."""
        for phase in self.train.phases:
            if self.model.block_size % phase["row_length"]:
                raise ValueError(
                    f"train.phases has row_length {phase['row_length']}, which does not divide model.block_size "
                    f"{self.model.block_size}"
                )
        return self

    def to_yaml(self) -> str:
        """The config as YAML, with every key."""
        return yaml.dump(dataclasses.asdict(self), Dumper=QuotingDumper, sort_keys=False, allow_unicode=True)

    def with_vocab_size(self, entries: int | None) -> "Config":
        """The config with `model.vocab_size` set to this, if it was null."""
        if self.model.vocab_size is not None:
            return self
        return dataclasses.replace(self, model=dataclasses.replace(self.model, vocab_size=entries))

    def check_vocab_size(self, needed: int) -> None:
        """Raise `UserError` if the vocabulary of the corpora exceeds `model.vocab_size`."""
        if needed > self.model.entries:
            raise UserError(
                f"data.path {self.data.paths} has a vocabulary of {needed}, more than model.vocab_size "
                f"{self.model.entries}: set that to {needed}"
            )

    def micro_batch_size(self, world_size: int) -> int:
        """Rows per forward pass of one rank."""
        return self.train.micro_batch_size or self.train.batch_size // world_size

    def check_world_size(self, world_size: int) -> None:
        """Raise `UserError` if the global batch cannot be split evenly over this many ranks."""
        batch_size, micro = self.train.batch_size, self.train.micro_batch_size
        if self.debug and world_size > 1:
            raise UserError(f"debug: true is for one process, but {world_size} were started: run it without torchrun")
        sizes = {f"train.batch_size {batch_size}": batch_size}
        for phase in self.train.phases:
            sizes[f"train.phases has batch_size {phase['batch_size']}, which"] = phase["batch_size"]
        for subject, size in sizes.items():
            if size % world_size:
                raise UserError(
                    f"{subject} cannot be split over {world_size} processes: make it a multiple of {world_size} (it "
                    f"counts the rows of a step over all processes)"
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
