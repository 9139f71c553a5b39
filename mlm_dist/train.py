"""Train a masked language model: `python -m mlm_dist.train --config FILE`, alone or under torchrun."""

from mlm_dist import api
from mlm_dist.callable_module import make_callable
from mlm_dist.config_reading import parse_config
from mlm_dist.exit_codes import run_verb


def main(arguments: list[str]) -> None:
    """Train, or resume the run in the run directory, as the config on the command line says.

    Raises:
        UserError: the config or the corpus is wrong.
        RunError: the run cannot continue.
    """
    api.train(parse_config(arguments, verb="train"))


make_callable(__name__, api.train)

if __name__ == "__main__":
    run_verb(main, prints_only_a_log=True)
