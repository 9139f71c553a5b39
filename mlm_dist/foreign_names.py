"""The names of config keys in other trainers, so that an error about such a name can suggest the key to use here.

The names are from transformers' `TrainingArguments` and `run_mlm.py`, nanoGPT, Megatron-LM, fairseq and Composer.
"""

ALIASES = {
    "seed": ["random_seed", "data_seed", "manual_seed"],
    "run_dir": ["output_dir", "out_dir", "out", "save_dir", "save", "save_folder", "logging_dir", "run_name"],
    "device": ["no_cuda", "use_cpu", "accelerator"],
    "precision": ["fp16", "bf16", "fp32", "amp", "dtype", "mixed_precision", "tf32", "torch_dtype"],
    "data.path": ["data", "dataset", "dataset_name", "train_file", "train_data", "data_path", "data_dir", "corpus"],
    "data.tokenizer": ["tokenizer_name", "tokenizer_type", "vocab_file"],
    "data.val_fraction": ["validation_split_percentage", "val_split", "valid_fraction", "test_size"],
    "model.vocab_size": ["n_vocab", "vocabulary_size", "padded_vocab_size"],
    "model.block_size": [
        "max_seq_length",
        "max_seq_len",
        "seq_length",
        "seq_len",
        "sequence_length",
        "context_length",
        "max_length",
        "max_position_embeddings",
        "tokens_per_sample",
        "n_positions",
    ],
    "model.embedding_dim": ["hidden_size", "n_embd", "d_model", "hidden_dim", "embed_dim", "encoder_embed_dim", "dim"],
    "model.heads": ["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"],
    "model.blocks": ["num_hidden_layers", "num_layers", "n_layer", "n_layers", "layers", "encoder_layers", "depth"],
    "model.dropout": ["hidden_dropout_prob", "hidden_dropout", "attention_probs_dropout_prob", "attention_dropout"],
    "model.activation": ["hidden_act", "hidden_activation", "activation_function", "activation_fn"],
    "model.qk_norm": ["qk_layernorm", "use_qk_norm"],
    "model.positions": ["position_embedding_type", "position_embeddings"],
    "model.logit_softcap": ["final_logit_softcapping"],
    "model.embedding_std": ["initializer_range", "init_std"],
    "model.tie_embeddings": ["tie_word_embeddings", "tie_weights", "share_all_embeddings"],
    "masking.mask_prob": ["mlm_probability", "mlm_prob", "mask_ratio", "mask_rate", "masked_lm_prob"],
    "masking.unit": ["whole_word_mask", "whole_word_masking", "wwm", "mask_whole_words", "span_masking"],
    "optim.name": ["optimizer", "optim", "optimizer_type"],
    "optim.lr": ["learning_rate", "max_lr", "peak_lr", "base_lr"],
    "optim.weight_decay": ["wd", "decay"],
    "optim.schedule": ["lr_scheduler_type", "lr_scheduler", "lr_decay_style", "scheduler"],
    "optim.warmup_iters": ["warmup_steps", "num_warmup_steps", "warmup_updates", "lr_warmup_iters", "warmup_ratio"],
    "optim.decay_fraction": ["lr_decay_iters", "lr_decay_ratio", "decay_ratio"],
    "optim.grad_clip": ["max_grad_norm", "clip_grad", "clip_norm", "gradient_clip_val", "gradient_clipping"],
    "train.batch_size": [
        "per_device_train_batch_size",
        "global_batch_size",
        "train_batch_size",
        "global_train_batch_size",
        "total_batch_size",
    ],
    "train.micro_batch_size": [
        "gradient_accumulation_steps",
        "accumulate_grad_batches",
        "device_train_microbatch_size",
        "update_freq",
    ],
    "train.max_iters": [
        "max_steps",
        "max_train_steps",
        "train_iters",
        "max_update",
        "num_steps",
        "steps",
        "iterations",
    ],
    "train.log_interval": ["logging_steps", "log_every", "log_every_n_steps"],
    "train.eval_interval": ["eval_steps", "eval_every", "validate_interval", "val_check_interval", "eval_freq"],
    "train.eval_rows": ["eval_iters", "max_eval_samples", "eval_batches"],
    "train.patience": ["early_stopping_patience", "early_stopping_rounds"],
    "train.min_delta": ["early_stopping_threshold", "early_stopping_min_delta"],
    "train.time_limit": ["max_time", "exit_duration_in_mins", "stop_time_hours"],
    "train.hang_timeout": ["ddp_timeout", "dist_timeout", "distributed_timeout_minutes"],
    "checkpoint.interval": ["save_steps", "save_interval", "checkpointing_steps", "save_every", "checkpoint_interval"],
    "init_from": ["model_name_or_path", "from_pretrained", "load_path", "restore_file", "finetune_from"],
    "checkpoint.keep": ["save_total_limit", "save_num_checkpoints_to_keep", "keep_last_epochs", "save_top_k"],
}
"""The names in other trainers, by key."""

RESUMES = "the same command continues the run in run_dir"
LENGTH = "the length of a run is train.max_iters, in steps"
HINTS = {
    "epochs": LENGTH,
    "num_epochs": LENGTH,
    "max_epochs": LENGTH,
    "max_epoch": LENGTH,
    "num_train_epochs": LENGTH,
    "resume": RESUMES,
    "resume_from_checkpoint": RESUMES,
    "load": RESUMES,
}
"""What to do instead, by names in other trainers that have no key here."""

KEYS = {name: key for key, names in ALIASES.items() for name in names}


def explain(name: str) -> str | None:
    """A hint about what to use instead of a name from another trainer; None if the name is not known.

    Args:
        name: the name of a key, without its section. Hyphens count as underscores, and case does not matter.
    """
    plain = name.lower().replace("-", "_")
    return f"did you mean {KEYS[plain]}?" if plain in KEYS else HINTS.get(plain)
