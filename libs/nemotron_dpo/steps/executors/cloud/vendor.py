"""NeMo-Run and the clients it brings: imported only here and only when a job is submitted, and kept from telling secrets."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
from collections.abc import Collection, Iterator
from types import ModuleType

from nemotron_dpo.config import redact
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.executors.shared.follow import NoAnswer

_INSTALL = "pip install 'nemotron-dpo[launch]'"
_LONGEST_REASON = 300
# A shorter value of a variable is no secret, and would be found in half of all words.
_SHORTEST_SECRET = 6


def load(name: str) -> ModuleType:
    """The module `name` of NeMo-Run or a client. Raises UserError naming what to install."""
    silence()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"needs {error.name}, which is not installed", source="Lepton and DGX Cloud", remedy=_INSTALL) from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"cannot be imported ({reason})", source=name, remedy=f"try {_INSTALL} in a fresh environment"
        ) from None


def silence() -> None:
    """NeMo-Run logs what it submits, variables included, at INFO, and answers of servers at ERROR: errors are told by us."""
    logging.getLogger("nemo_run").setLevel(logging.CRITICAL + 1)


@contextlib.contextmanager
def explained(place: str, *, login: str, secrets: Collection[str]) -> Iterator[None]:
    """Turn what a client raises about `place` into one line without `secrets`; `login` is the remedy where it is refused."""
    from requests import ConnectionError, RequestException, Timeout

    try:
        yield
    except UserError:
        raise
    except (ConnectionError, Timeout) as error:
        raise NoAnswer(f"cannot be reached: {_reason(error)}", source=place) from None
    except RequestException as error:
        raise NoAnswer(one_line(str(error), secrets), source=place) from None
    except (RuntimeError, ValueError, KeyError, TimeoutError) as error:
        raise _refusal(error, place, login, secrets) from None


def refused(place: str, status: int, text: str, *, login: str, secrets: Collection[str]) -> UserError:
    """What a server that answered with `status` means."""
    if status in (401, 403):
        return UserError(f"the credentials are refused ({status})", source=place, remedy=login)
    if status >= 500:
        return NoAnswer(f"failed ({status}): {one_line(text, secrets)}", source=place)
    return UserError(f"refused ({status}): {one_line(text, secrets)}", source=place)


def one_line(text: str, secrets: Collection[str]) -> str:
    """`text`, or the message in it, short and without secrets."""
    with contextlib.suppress(ValueError, AttributeError):
        text = json.loads(text).get("message") or text
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return redact(" ".join(text.split()))[:_LONGEST_REASON]


def _refusal(error: Exception, place: str, login: str, secrets: Collection[str]) -> UserError:
    response = getattr(error, "response", None)
    if response is not None:
        return refused(place, response.status_code, response.text, login=login, secrets=secrets)
    return UserError(one_line(str(error), secrets), source=place)


def _reason(error: Exception) -> str:
    text = str(error)
    known = ("Connection refused", "Name or service not known", "timed out", "certificate verify failed")
    return next((reason.lower() for reason in known if reason in text), type(error).__name__)
