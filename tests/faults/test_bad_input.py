"""User errors on the command line: exit code 2, one line that names the mistake, and no files."""

from pathlib import Path

import pytest

from tests.conftest import tiny_flags, verb

# Files of the folder in which the verbs run.
FILES = {
    "text.txt": b"Once upon a time there was a lamp. " * 500,
    "short.txt": b"Once upon a time.",
    "empty.txt": b"",
    "latin.txt": "Zoë went home. ".encode("latin-1") * 500,
    "list.yaml": b"- 1\n- 2\n",
    "torn.yaml": b"optim: [\n",
    "twice.yaml": b"seed: 1\nseed: 2\n",
    "unknown.yaml": b"optim:\n  learning_rate: 1.0\n",
    "nothing.yaml": b"train:\n  max_iters:\n",
    "word.yaml": b"train:\n  max_iters: many\n",
    "code.yaml": b"seed: !!python/object/apply:os.getpid []\n",
}

CASES = [
    # verb, arguments ({run} is a valid run, and `_[` a space and a bracket), part of the message
    ("train", "--optim.lrr 1", "--optim.lrr: unknown key; did you mean optim.lr?"),
    ("train", "--lr 1", "--lr: unknown key; did you mean optim.lr?"),
    ("train", "--optim 1", "--optim is a section"),
    ("train", "--optim.lr fast", '--optim.lr is "fast": it must be a number, above 0'),
    ("train", "--optim.lr", "--optim.lr: a value is missing"),
    ("train", "--fp16 --seed 1", "--fp16: unknown key; did you mean precision?"),
    ("train", "--resume", "--resume: unknown key; the same command continues the run in run_dir"),
    ("train", "--optim.lr 0", "--optim.lr is 0: it must be a number, above 0"),
    ("train", "--optim.lr .nan", "--optim.lr is NaN"),
    ("train", "--optim.schedule cosin", "one of constant, cosine, linear, wsd"),
    ("train", "--optim.decay_fraction 1.5", "optim.decay_fraction is 1.5"),
    ("train", "--optim.grad_clip=-1", "--optim.grad_clip is -1: it must be a number, at least 0"),
    ("train", "--train.max_iters 0", "--train.max_iters is 0: it must be a whole number, at least 1"),
    ("train", "--train.max_iters 1.5", "--train.max_iters is 1.5: it must be a whole number"),
    ("train", "--train.max_iters 10k", '--train.max_iters is "10k": it must be a whole number'),
    ("train", "--train.batch_size=-16", "train.batch_size is -16"),
    ("train", "--train.micro_batch_size 3", "train.batch_size 16 is not a multiple of train.micro_batch_size 3"),
    ("train", "--train.max_bad_steps 0", "train.max_bad_steps is 0"),
    ("train", "--train.time_limit 0", "--train.time_limit is 0: it must be a number, above 0, or null"),
    ("train", "--train.time_limit 1h", '--train.time_limit is "1h": it must be a number, above 0, or null'),
    ("train", "--train.hang_timeout=-1", "--train.hang_timeout is -1: it must be"),
    ("train", "--model.heads 3", "model.embedding_dim 16 is not a multiple of model.heads 3"),
    ("train", "--model.blocks 0", "model.blocks is 0"),
    ("train", "--model.dropout 1", "--model.dropout is 1: it must be a number, at least 0 and below 1"),
    ("train", "--model.tie_embeddings perhaps", '--model.tie_embeddings is "perhaps": it must be true or false'),
    ("train", "--masking.mask_prob 0", "--masking.mask_prob is 0: it must be a number, above 0 and below 1"),
    ("train", "--masking.mask_prob 15", "--masking.mask_prob is 15: it must be"),
    ("train", "--masking.replacement some", "one of mask, 80/10/10"),
    ("train", "--checkpoint.keep 0", "checkpoint.keep is 0"),
    ("train", "--seed=-1", "seed is -1"),
    ("train", "--device gpu", "one of auto, cpu, cuda"),
    ("train", "--precision int8", "one of auto, bf16, fp16, fp32"),
    ("train", "--config no.yaml", "no.yaml: there is no such file"),
    ("train", "--config .", ".: Is a directory"),
    (
        "train",
        "--config list.yaml",
        "list.yaml: expected `key: value` lines, with a space after the colon, and found [1, 2]",
    ),
    ("train", "--config torn.yaml", "torn.yaml line 2: not YAML"),
    ("train", "--config twice.yaml", "seed appears twice"),
    ("train", "--config unknown.yaml", "unknown.yaml: optim.learning_rate: unknown key"),
    ("train", "--config nothing.yaml", "nothing.yaml: train.max_iters is null: it must be a whole number"),
    ("train", "--config word.yaml", 'word.yaml: train.max_iters is "many": it must be a whole number'),
    ("train", "--config code.yaml", "code.yaml line 1: not YAML"),
    ("train", "--config", "--config: a value is missing after it"),
    ("train", "--data.path no", "data.path no: there is no such corpus or text"),
    ("train", "--data.path short.txt --data.tokenizer bpe", "fewer than one batch of train.batch_size 16"),
    ("train", "--data.path latin.txt --data.tokenizer bpe", "latin.txt: not utf-8 at byte 2"),
    ("train", "--data.path text.txt --data.tokenizer bpe --data.encoding klingon", "'klingon' is not a text encoding"),
    (
        "train",
        "--data.path text.txt --data.tokenizer bpe --model.vocab_size null",
        "data.tokenizer bpe needs model.vocab_size: 8000 suits a few megabytes of text",
    ),
    ("train", "--model.vocab_size 200", "vocabulary of 300, more than model.vocab_size 200"),
    ("train", "--model.block_size 100000", "fewer than one batch"),
    ("train", "--run_dir text.txt", "run_dir text.txt cannot be written"),
    ("train", "--run_dir text.txt/run", "run_dir text.txt/run"),
    ("prepare", "", "--out"),
    ("prepare", "text.txt", "--out"),
    ("prepare", "--out new", "nothing to prepare"),
    ("prepare", "no.txt --out new", "no.txt: there is no such file or folder"),
    ("prepare", "empty.txt --out new", "empty.txt: the file is empty"),
    ("prepare", "latin.txt --out new --tokenizer bpe --vocab_size 300", "latin.txt: not utf-8 at byte 2"),
    ("prepare", "text.txt --out new --tokenizer bpe", "--vocab_size"),
    ("prepare", "text.txt --out new --tokenizer bpe --vocab_size 10", "vocab"),
    ("prepare", "text.txt --out new --tokenizer gpt-2", "gpt-2"),
    ("prepare", "text.txt --out new --val_fraction 2", "val_fraction is 2.0"),
    ("prepare", "text.txt --out text.txt", "text.txt already exists"),
    ("prepare", "text.txt --out new --vocab_size 300", "--vocab_size requires --tokenizer bpe"),
    ("prepare", "text.txt --out new --wal text.txt", "--wal"),
    ("prepare", "text.txt --out=", "argument --out: it is empty"),
    ("prepare", "--gutenberg 1 --mirror here --out new", "'here' is not a URL"),
    ("fill", "", "--run"),
    ("fill", "--run no A_[MASK].", "no is not a run directory"),
    ("fill", "--run= A_[MASK].", "argument --run/--run_dir: it is empty"),
    ("benchmark", "--out=", "argument --out: it is empty"),
    ("fill", "--run {run}", "standard input: it is empty"),
    ("fill", "--run {run} --top 0 A_[MASK].", "--top is 0"),
    ("fill", "--run {run} A_lamp.", "[MASK]"),
    ("fill", "--run {run} --tip 3 A_[MASK].", "--tip"),
    ("generate", "", "--run"),
    ("generate", "--run no A_lamp", "no is not a run directory"),
    ("generate", "--run {run} A_[GAP].", "[GAP] is not a gap: write [GAP:5]"),
    ("generate", "--run {run} A_[GAP:0].", "[GAP:0] is not a gap"),
    ("generate", "--run {run} A_[GAP:many].", "[GAP:many] is not a gap"),
    ("generate", "--run {run} A_[GAP:99999999999].", "at most 1,000,000 tokens"),
    ("generate", "--run {run} A_[MASK].", "[MASK] is for `fill`"),
    ("generate", "--run {run} --length 5 A_[GAP:5].", "--length is 5, but the text has gaps"),
    ("generate", "--run {run} --length 0", "--length is 0: it must be at least 1"),
    ("generate", "--run {run} --samples 0", "--samples is 0: it must be at least 1"),
    ("generate", "--run {run} --steps 0", "--steps is 0: it must be at least 1"),
    ("generate", "--run {run} --order left", "--order"),
    ("generate", "--run {run} --temperature=-1", "--temperature is -1.0: it must be from 0 to 100"),
    ("generate", "--run {run} --temperature warm", "--temperature"),
    ("generate", "--run {run} --top_p 0", "--top_p is 0.0: it must be above 0 and at most 1"),
    ("generate", "--run {run} --remask 1", "--remask is 1.0: it must be at least 0 and below 1"),
    ("generate", "--run {run} --seed=-1", "--seed is -1: it must be 0 or more"),
    ("generate", "--run {run} two texts", "unrecognized arguments: texts; put quotes around a text with spaces"),
    ("generate", "--run {run} --top 3", "--top"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), CASES, ids=[f"{name} {given}" for name, given, _ in CASES])
def test_a_user_error_is_one_line_and_leaves_no_files(name, arguments, message, corpus_folder, run_dir, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    for file, content in FILES.items():
        (here / file).write_bytes(content)
    valid = tiny_flags(corpus_folder, Path("new"), train__max_iters=1) if name == "train" else []
    given = [argument.replace("_[", " [").replace("{run}", str(run_dir)) for argument in arguments.split()]
    result = verb(name, *valid, *given, cwd=here, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("mlm_dist: error: ")
    assert message in line
    assert {path.name: path.read_bytes() for path in here.iterdir()} == FILES
    assert not [path for path in (tmp_path / "cache").rglob("*") if "partial" in path.name]
