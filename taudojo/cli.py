"""The command `taudojo`: a thin door to what the packages do. Nothing heavy is imported before a command needs it.

>>> main(["models"])
0
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from taudojo import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit status. What the user can put right is one sentence on stderr and status 2."""
    arguments = _parser().parse_args(argv)
    try:
        from envs.errors import TaudojoError
        from envs.identity import ensure_own_packages
    except ImportError as error:
        return _complain(_foreign_envs(error))
    try:
        ensure_own_packages()
        return arguments.run(arguments)
    except TaudojoError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="taudojo", description="Train tool-calling customer-service agents.")
    parser.add_argument("--version", action="version", version=f"taudojo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    train = commands.add_parser("train", help="train: SFT, then GRPO, then a report", description=_train.__doc__)
    train.add_argument("overrides", nargs="*", help="Hydra overrides, such as +experiment=grpo seed=1")
    train.set_defaults(run=_train)

    models = commands.add_parser("models", help="list the known models, or fetch one", description="List the known models.")
    models.set_defaults(run=_list_models)
    get_model = models.add_subparsers(dest="action", metavar="get").add_parser("get", help="fetch a model")
    get_model.add_argument("name", nargs="?", default="smollm2_135m", help="a listed model (smollm2_135m), a hub id or a folder")
    get_model.set_defaults(run=_get_model)

    data = commands.add_parser(
        "data", help="show where the τ² data can come from, or fetch it", description="Show the data sources."
    )
    data.set_defaults(run=_list_data)
    get_data = data.add_subparsers(dest="action", metavar="get").add_parser("get", help="fetch the packaged data")
    get_data.set_defaults(run=_get_data)

    doctor = commands.add_parser("doctor", help="check this machine and environment", description="Check this machine.")
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON")
    doctor.add_argument("--network", action="store_true", help="also ask the package index, which takes some seconds")
    doctor.set_defaults(run=_doctor)

    dashboard = commands.add_parser(
        "dashboard", help="make a wandb project's dashboard", description="Make a wandb project's dashboard, if it has none."
    )
    dashboard.add_argument("--project", default="taudojo", help="the project (taudojo)")
    dashboard.add_argument("--entity", help="the user or team whose project it is (your default one)")
    dashboard.set_defaults(run=_dashboard)
    return parser


def _train(arguments: argparse.Namespace) -> int:
    """The same as `python -m training.main`, with the same overrides."""
    from training import IMPORTED
    from training.main import main as train

    return train(list(arguments.overrides), began=IMPORTED) or 0


def _list_models(arguments: argparse.Namespace) -> int:
    from taudojo.listing import print_models

    print_models()
    return 0


def _get_model(arguments: argparse.Namespace) -> int:
    from taudojo.listing import known_models
    from training.models import ensure_model

    paths = {model.name: model.path for model in known_models()}
    print(ensure_model(paths.get(arguments.name) or arguments.name))
    return 0


def _list_data(arguments: argparse.Namespace) -> int:
    from taudojo.listing import print_data

    print_data()
    return 0


def _get_data(arguments: argparse.Namespace) -> int:
    from envs.data import open_source

    source = open_source("packaged")
    print(f"{source.root}  ({source.source} {source.version})")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from taudojo.doctor import print_json, print_table, run_checks

    checks = run_checks(network=arguments.network)
    (print_json if arguments.json else print_table)(checks)
    return 1 if any(check.status == "fail" for check in checks) else 0


def _dashboard(arguments: argparse.Namespace) -> int:
    from training.dashboard import make_dashboard

    print(make_dashboard(arguments.project, arguments.entity))
    return 0


def _foreign_envs(error: ImportError) -> str:
    found = getattr(sys.modules.get("envs"), "__path__", None)
    place = next(iter(found), "nowhere") if found else "nowhere"
    own = Path(__file__).resolve().parent.parent / "envs"
    advice = "run from another folder, or remove the other envs from Python's path (PYTHONPATH, pip uninstall)"
    return f"the package envs resolves to {place}, but taudojo's own is {own}; {advice} ({error})"


def _complain(sentence: str) -> int:
    print(f"taudojo: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
