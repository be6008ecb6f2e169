"""Put an exported folder on the Hugging Face hub, by the login that huggingface_hub has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_dpo.errors import UserError

_LOGIN = "hf auth login, or set HF_TOKEN"


def check_push(repository: str) -> None:
    """Find out before the long work whether the hub can be reached, knows who asks and takes the name. Raises UserError."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    place = f"--push-to {repository}"
    try:
        validate_repo_id(repository)
    except ValueError:
        raise UserError("is no id of a model on the hub", source=place, remedy="give NAME or OWNER/NAME", usage=True) from None
    _asked(place, lambda: HfApi().whoami())


def push(folder: Path, repository: str, message: str) -> str:
    """Upload `folder` as the model `repository`, and return its address. A repository that is made for it is private."""
    from huggingface_hub import HfApi

    api, place = HfApi(), f"--push-to {repository}"

    def upload() -> str:
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
        return str(made)

    return _asked(place, upload)


def _asked(place: str, question: Any) -> Any:
    """The hub's answer. Raises UserError, in a line, where it refuses or cannot be reached."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        return question()
    except LocalTokenNotFoundError:
        raise UserError("the hub does not know you", source=place, remedy=_LOGIN) from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        said = (error.server_message or str(error)).strip().splitlines()
        remedy = _LOGIN if status in (401, 403) else None
        raise UserError(
            f"the hub refuses ({status}): {said[0].rstrip('.') if said else 'no reason given'}", source=place, remedy=remedy
        ) from None
    except OSError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the hub cannot be reached ({reason})", source=place, remedy="check the network and HF_ENDPOINT"
        ) from None
    except Exception as error:
        if "httpx" not in type(error).__module__:
            raise
        raise UserError(
            f"the hub cannot be reached ({error})", source=place, remedy="check the network and HF_ENDPOINT"
        ) from None
