"""Average the last checkpoints of a run: `python -m mlm_dist.average --run RUN_DIR --last N --out DIR`."""

from mlm_dist import api
from mlm_dist.arguments import OneLineParser, add_new_folder, add_run
from mlm_dist.callable_module import make_callable
from mlm_dist.exit_codes import command_of, run_verb
from mlm_dist.output import print_log


def main(arguments: list[str]) -> None:
    """Average the parameters of the last checkpoints and milestones of a run."""
    parser = OneLineParser(
        prog=command_of("average"),
        description="Write the mean of the parameters of the last checkpoints and milestones of a run to a run "
        "directory of its own, which every verb loads.",
        epilog=f"Example: {command_of('average')} --run runs/novels --last 3 --out runs/novels_average",
    )
    add_run(parser)
    parser.add_argument(
        "--last", type=int, required=True, metavar="N", help="number of steps with a checkpoint or milestone to average"
    )
    add_new_folder(parser)
    given = parser.parse_args(arguments)
    steps = api.average(given.run, given.last, given.out)
    print_log(f"{given.out}: the mean of the parameters of steps {', '.join(map(str, steps))}")


make_callable(__name__, api.average)

if __name__ == "__main__":
    run_verb(main)
