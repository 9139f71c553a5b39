"""What `launch/gpu_check.sh` runs: one stage after another, the most valuable first.

Each stage has a time limit, and its commands run in process groups of their own. A stage that fails or runs out of time
does not stop the rest. After each stage, gpu_check.json is replaced, so that nothing is lost if the machine is lost.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TINY = ["--model.embedding_dim", "32", "--model.heads", "2", "--model.blocks", "1", "--train.batch_size", "8"]
SHORT_RUN = ["--config", "debug", "--debug", "false", "--train.eval_interval", "50", "--checkpoint.interval", "50"]
TARGETS = {"step: milliseconds": 2.0, "transformers: times as fast": 10.0, "bert: share of ceiling": 0.45}

Figures = dict[str, Any]


class StageError(Exception):
    """A command of a stage failed or ran out of time."""


@dataclass
class Check:
    """What the stages need.

    Attributes:
        out: folder of the results.
        data: texts or a corpus for the recipe, if given.
        tiny: models and runs are tiny: a dry run.
        deadline: when the current stage ends, by `time.monotonic`.
    """

    out: Path
    data: str | None
    tiny: bool
    deadline: float = 0.0

    def run(self, *command: object, kill_when: Callable[[], bool] | None = None) -> str:
        """Run a command in a process group of its own and return its output.

        Args:
            command: words of the command.
            kill_when: kill it, as `kill -9` does, as soon as this is true.

        Raises:
            StageError: it failed, or ran until the deadline.
        """
        words = [str(word) for word in command]
        with (self.out / "log").open("a+", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(words)}\n")
            log.flush()
            start = log.tell()
            environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            while process.poll() is None:
                killed = kill_when is not None and kill_when()
                if killed or time.monotonic() > self.deadline:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    if killed:
                        break
                    raise StageError(f"out of time: {' '.join(words[:4])}")
                time.sleep(0.05)
            log.seek(start)
            output = log.read()
        if process.returncode and not (kill_when and process.returncode == -signal.SIGKILL):
            raise StageError(output[-1500:])
        return output

    def train(self, name: str, *flags: object, kill_when: Callable[[], bool] | None = None) -> list[Figures]:
        """Train a run in `out`, and return the events of its metrics.jsonl."""
        run_dir = self.out / name
        self.run(
            *(sys.executable, "-m", "mlm_dist.train", *SHORT_RUN, *(TINY if self.tiny else [])),
            *("--run_dir", run_dir, "--train.max_iters", 60 if self.tiny else 200, *flags),
            kill_when=kill_when,
        )
        return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    def benchmark(self, name: str, *flags: object) -> Figures:
        """Run the benchmark, and return its results."""
        out = self.out / name
        self.run(
            *(sys.executable, "-m", "mlm_dist.benchmark", "--out", out, "--rounds", 1 if self.tiny else 3, *flags),
            *(TINY if self.tiny else []),
        )
        results: Figures = json.loads((out / "benchmark.json").read_text(encoding="utf-8"))
        return results


def machine(check: Check) -> Figures:
    """The GPU, its driver, the versions of CUDA and NCCL."""
    code = (
        "import json, torch; from mlm_dist.run.machine import describe_machine; from mlm_dist.distributed import "
        "choose_device; device = choose_device('auto'); print(json.dumps(describe_machine(device, torch.float32)))"
    )
    figures: Figures = json.loads(check.run(sys.executable, "-c", code).splitlines()[-1])
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=driver_version,memory.total,clocks.max.sm"
        figures["driver, memory, clock"] = check.run("nvidia-smi", query, "--format=csv,noheader").strip()
    return figures


def step(check: Check) -> Figures:
    """A step of the recipe on random tokens, replayed from a graph. Its parts are timed without one."""
    results = check.benchmark("step", "--config", "novels", "--data.path", "corpora/novels", "--against", "naive")
    return figures_of_step(results["step"])


def compiled(check: Check) -> Figures:
    """The same, compiled."""
    flags = ("--config", "novels", "--data.path", "corpora/novels", "--against", "naive", "--compile", "on")
    return figures_of_step(check.benchmark("compiled", *flags)["step"])


def figures_of_step(measured: Figures) -> Figures:
    """The figures of a step that are of interest."""
    return {
        "milliseconds": 1e3 * measured["seconds"],
        "tokens per second": measured["tokens_per_second"],
        "share of ceiling": measured["share_of_ceiling"],
        "peak memory, GB": measured["peak_memory"] / 1e9,
        "parts, ms": {part: 1e3 * seconds for part, seconds in measured["parts"].items()},
    }


def transformers(check: Check) -> Figures:
    """The recipe's step in transformers, in turns with ours."""
    flags = ("--config", "novels", "--data.path", "corpora/novels", "--against", "transformers")
    ours, peer = check.benchmark("transformers", *flags)["peers"]
    return {
        "milliseconds": 1e3 * ours["seconds"],
        "of transformers": 1e3 * peer["seconds"],
        "times as fast": peer["speed_up"],
        "memory ratio": peer["memory_ratio"],
    }


def losses(check: Check) -> Figures:
    """The losses of a short run in each precision, beside those on the CPU."""
    reference = {e["step"]: e["val_loss"] for e in check.train("cpu", "--device", "cpu") if "val_loss" in e}
    figures: Figures = {"on the CPU": reference}
    for precision in ("bf16", "fp16", "fp32"):
        events = check.train(precision, "--precision", precision)
        found = {event["step"]: event["val_loss"] for event in events if "val_loss" in event}
        differences = [abs(found[step] - loss) for step, loss in reference.items()]
        figures[precision] = {"largest difference": max(differences), "last": found[max(found)]}
        if max(differences) > 0.05:
            raise StageError(f"{precision} differs from the CPU by {max(differences):.3f}: {found}, {reference}")
    return figures


def resume(check: Check) -> Figures:
    """A run that is killed after its first checkpoint and resumed, beside one that is not."""
    reference = check.train("undisturbed")[-1]["val_loss"]
    checkpoint = check.out / "killed/checkpoints/step-00000050/manifest.json"
    check.train("killed", kill_when=checkpoint.exists)
    resumed = check.train("killed")[-1]["val_loss"]
    if abs(resumed - reference) > 1e-3:
        raise StageError(f"the loss of the resumed run is {resumed}, and {reference} without the kill")
    return {"undisturbed": reference, "resumed": resumed}


def tests(check: Check) -> Figures:
    """The tests that need a GPU, such as that of the captured step, and those that check the kernels."""
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header")
    needs_gpu = check.run(*pytest, "-m", "gpu")
    kernel = check.run(*pytest, "tests/model/test_loss_kernel.py")
    kernels = check.run(*pytest, "tests/model/test_kernel_check.py", "-k", "triton")
    outputs = {"need a GPU": needs_gpu, "loss kernel": kernel, "kernels": kernels}
    return {name: output.strip().splitlines()[-1] for name, output in outputs.items()}


def bert(check: Check) -> Figures:
    """A micro-batch of BERT-base."""
    flags = ("--config", "bert_base_8gpu", "--data.path", "corpora/novels", "--against", "naive")
    batch = ("--train.batch_size", 64, "--train.micro_batch_size", 64)
    return figures_of_step(check.benchmark("bert", *flags, *batch)["step"])


def recipe(check: Check) -> Figures:
    """The whole recipe on the given texts."""
    if check.data is None:
        return {"skipped": "no --data"}
    tiny = [*TINY, "--train.max_iters", "20", "--data.tokenizer", "bpe", "--model.vocab_size", "300"]
    flags = ["--config", "novels", "--data.path", check.data, "--run_dir", check.out / "recipe"]
    start = time.monotonic()
    check.run(sys.executable, "-m", "mlm_dist.train", *flags, *(tiny if check.tiny else []))
    lines = (check.out / "recipe/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {"seconds": time.monotonic() - start, "validation loss": json.loads(lines[-1])["val_loss"]}


def verbs(check: Check) -> Figures:
    """Filling and exporting with a trained run."""
    check.train("undisturbed")
    run = check.out / "undisturbed"
    filled = check.run(sys.executable, "-m", "mlm_dist.fill", "--run", run, "He went to the [MASK].")
    check.run(sys.executable, "-m", "mlm_dist.export", "--run", run, "--out", check.out / "exported")
    return {"filled": filled.strip().splitlines()[-1].strip()}


# Name, function and time limit in seconds of each stage, the most valuable first.
STAGES: list[tuple[str, Callable[[Check], Figures], float]] = [
    ("machine", machine, 30),
    ("step", step, 90),
    ("transformers", transformers, 90),
    ("losses", losses, 90),
    ("resume", resume, 90),
    ("tests", tests, 90),
    ("bert", bert, 90),
    ("recipe", recipe, 120),
    ("verbs", verbs, 60),
    ("compiled", compiled, 200),
]


def run_stage(check: Check, name: str, function: Callable[[Check], Figures], limit: float) -> Figures:
    """Run a stage and return its result: name, status, seconds, and figures or an error."""
    start = time.monotonic()
    check.deadline = start + limit
    result: Figures = {"name": name}
    try:
        result |= {"status": "ok", "figures": function(check)}
    except (StageError, OSError, ValueError, LookupError) as error:
        result |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return result | {"seconds": round(time.monotonic() - start, 1)}


def targets(results: Sequence[Figures]) -> list[Figures]:
    """The targets of the project beside what was measured."""
    measured = {f"{r['name']}: {key}": value for r in results for key, value in r.get("figures", {}).items()}
    return [{"name": name, "target": target, "measured": measured.get(name)} for name, target in TARGETS.items()]


def main(arguments: list[str]) -> int:
    """Run the stages. Returns the number of failed ones."""
    parser = argparse.ArgumentParser(prog="bash launch/gpu_check.sh")
    parser.add_argument("--out", type=Path, required=True, help="new folder for gpu_check.json and log")
    parser.add_argument("--seconds", type=float, default=520, help="time for all stages (default: %(default)s)")
    parser.add_argument("--data", metavar="PATH", help="texts or a corpus for the stage `recipe`")
    parser.add_argument("--only", nargs="+", choices=[name for name, _, _ in STAGES], help="run these stages only")
    parser.add_argument("--tiny", action="store_true", help="tiny models and short runs, for a dry run")
    given = parser.parse_args(arguments)
    if given.out.exists():
        parser.error(f"--out {given.out} exists: give another folder")
    given.out.mkdir(parents=True)
    check = Check(given.out.resolve(), given.data, given.tiny)
    end, results = time.monotonic() + given.seconds, []
    for name, function, limit in STAGES:
        if given.only and name not in given.only:
            continue
        left = end - time.monotonic()
        result = run_stage(check, name, function, min(limit, left)) if left > 0 else {"name": name, "status": "skipped"}
        results.append(result)
        content = json.dumps({"stages": results, "targets": targets(results)}, indent=1)
        (check.out / "gpu_check.json.partial").write_text(content + "\n", encoding="utf-8")
        (check.out / "gpu_check.json.partial").replace(check.out / "gpu_check.json")
        details = result.get("figures", result.get("error", ""))
        print(f"[{result['status']}] {name}, {result.get('seconds', 0)} s: {details}", flush=True)
    return sum(result["status"] == "failed" for result in results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
