"""Push: a run's model to the Hugging Face Hub."""

import json
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from proxygml.arguments import check_arguments
from proxygml.errors import UserError, check_extra
from proxygml.files import PathLike, local_path
from proxygml.hub.card import EvaluatedRun, model_card, read_run
from proxygml.models.model_files import DESCRIPTION, TENSORS

_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)

REFUSED = {
    401: "log in by `hf auth login`, or set HF_TOKEN to a token that may write",
    403: "take a token that may write to it",
    404: "check the name, and that your token may see it",
}
"""What to do where the Hub refuses."""


@check_arguments
def push(run: PathLike, repo: str, *, private: bool = False, license: str = "", message: str = "") -> str:
    """Send the model of a run to the Hugging Face Hub, with a card that is made from what is known of it.

    Sent are model.json, model.safetensors, evaluation.json where the run was evaluated, and the card (README.md), all
    in one commit: the repository has the whole model or the one before. No recipe, images or paths are sent.

    Args:
        run: the run folder.
        repo: USER/NAME; it is made where there is none of that name.
        private: make a new repository private. One that is there stays as it is.
        license: what the card says, an identifier of the Hub such as apache-2.0.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        RunError: the folder holds no finished run, or a damaged one.
        UserError: the name cannot be; the extra hub is not installed; the Hub refuses, or cannot be reached.
    """
    folder = local_path(run, "run")
    if not _REPO.fullmatch(repo):
        raise UserError(f"repo is {repo!r}, but must be USER/NAME, of letters, digits, '-', '_' and '.'")
    known = read_run(folder)
    check_extra("hub", "huggingface_hub")
    import huggingface_hub as hub  # noqa: PLC0415  (of an extra)
    from huggingface_hub import errors  # noqa: PLC0415

    with TemporaryDirectory() as place:
        _collect(folder, known, repo, license, Path(place))
        try:
            hub.create_repo(repo, private=private, exist_ok=True)
            commit = hub.upload_folder(
                repo_id=repo, folder_path=place, commit_message=message or "Add a model of proxygml"
            )
        except errors.HfHubHTTPError as error:
            raise UserError(_refusal(error, repo)) from error
        except errors.OfflineModeIsEnabled as error:
            raise UserError("HF_HUB_OFFLINE is set, so that nothing can be sent: unset it") from error
        except Exception as error:  # of its HTTP library, which is another one from release to release
            raise UserError(
                f"the Hugging Face Hub could not be reached, or not be logged in to ({type(error).__name__}: {error}): "
                "check the network and `hf auth login`, and repeat the command"
            ) from error
    return str(commit.commit_url)


def _collect(folder: Path, run: EvaluatedRun, repo: str, license: str, place: Path) -> None:
    """Put what is sent into a folder."""
    for name in (DESCRIPTION, TENSORS):
        shutil.copyfile(folder / name, place / name)
    if run.evaluation is not None:
        protocol = {key: value for key, value in run.protocol.items() if key != "catalog"}
        content = run.evaluation.as_dict() | {"protocol": protocol}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (place / "evaluation.json").write_text(text, encoding="utf-8")
    (place / "README.md").write_text(model_card(run, repo, license), encoding="utf-8")


def _refusal(error: Any, repo: str) -> str:
    status = getattr(error.response, "status_code", 0)
    advice = REFUSED.get(status, "try again later")
    reason = str(getattr(error, "server_message", "") or "").strip() or str(error).splitlines()[0]
    return f"the Hugging Face Hub refuses {repo}: {reason}; {advice}"
