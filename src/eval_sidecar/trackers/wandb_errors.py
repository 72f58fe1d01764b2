"""What the W&B client's errors mean: one clear line each, and whether trying again could help.

The client words one failure differently from version to version, and some servers word it their way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Optional

from eval_sidecar.installation import install_command
from eval_sidecar.system.accounts import CLOUD, server_address

#: How servers, and the client itself, word what has no status in its error.
_WORDS = (
    (409, re.compile(r"previously created and deleted", re.I)),
    (
        401,
        re.compile(
            r"not logged in|invalid api key|relogin|api[ _]key (?:not|invalid|must|cannot)"
            r"|no authentication conf|no api key",
            re.I,
        ),
    ),
    (403, re.compile(r"permission denied|forbidden|not have permission", re.I)),
    (404, re.compile(r"\b(project|entity|team|user)\b.{0,80}\bnot found|not found during", re.I)),
)
_STATUS = re.compile(r"(?:returned error|HTTP) (\d{3})\b")
#: What the client says if it has no key at all.
_NO_KEY = re.compile(r"no api key|not logged in\b.*no api key|no authentication conf", re.I)
#: What the client says if no server answered, in any operation.
_NO_ANSWER = re.compile(
    r"did not respond in time|service process is busy|initialization has timed out|timed? ?out"
    r"|max retries exceeded|name or service not known|no such host|failed to (?:resolve|establish)"
    r"|network is unreachable|connection (?:refused|reset|aborted)|remote end closed",
    re.I,
)
NO_SUCH_QUERY = re.compile(
    r"cannot query field|unknown (type|argument|field|operation)|not implemented", re.I
)


def is_missing_run(error: BaseException) -> bool:
    """Return whether the server answered that the run does not exist."""
    missing = any(type(cause).__name__ == "RunNotFoundError" for cause in _causes(error))
    # Before 0.2x the client raised a bare ValueError with the same words.
    return missing or str(error).startswith("Could not find run <Run")


def _causes(error: Optional[BaseException]) -> Iterator[BaseException]:
    for _ in range(8):
        if error is None:
            return
        yield error
        error = getattr(error, "exc", None) or error.__cause__


def status_of(error: BaseException) -> Optional[int]:
    """Return the HTTP status behind a client's error, from its response or, failing that, from its words."""
    causes = list(_causes(error))
    for cause in causes:
        response = getattr(cause, "response", None)
        status = getattr(response, "http_status", None) or getattr(response, "status_code", None)
        if status:
            return int(status)
    text = " ".join(str(cause) for cause in causes)
    for status, words in _WORDS:
        if words.search(text):
            return status
    found = _STATUS.search(text)
    return int(found.group(1)) if found else None


def describe(error: BaseException, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return one clear line for an error, and whether trying again could help."""
    path = "/".join(part for part in (request["entity"], request["project"], request["run_id"]) if part)
    text = " ".join(str(error).split("\nConsider")[0].split())
    if isinstance(error, ImportError):
        message = f"wandb cannot be imported ({text}): run {install_command('wandb')}, or add --disable-wandb"
        return {"error": message, "permanent": True}
    if request["op"] == "read" and NO_SUCH_QUERY.search(text):
        return {"unsupported": f"the server cannot show the rows of {path}: {text}"}
    return _describe_failure(error, request, path, text)


def _describe_failure(
    error: BaseException, request: Mapping[str, Any], path: str, text: str
) -> dict[str, Any]:
    status, server = status_of(error), server_address() or CLOUD
    # What is about the key, the project or the server names no run: it is then the same for every model.
    project = path.rpartition("/")[0]
    general = text.replace(path, project).replace(request["run_id"], "the run")
    if status == 409 and _WORDS[0][1].search(text):
        reason = (
            f"{path} was deleted, and W&B does not give a run id out twice: choose another --wandb-run-id"
        )
        return {"error": f"{reason} ({text})", "permanent": True}
    advice = {
        401: f"{server} does not accept the API key: run `wandb login --relogin`, or set WANDB_API_KEY",
        403: f"no permission for {project}: check the entity, the project and whose API key this is",
        404: f"entity or project of {project} not found: check --wandb-entity and --wandb-project",
    }.get(status or 0)
    if status == 401 and _NO_KEY.search(text):
        no_key = f"no W&B API key for {server}: run `wandb login`, or set WANDB_API_KEY"
        return {"error": no_key, "permanent": True}
    if status == 404 and "credentials" in text:
        advice = f"{server} does not answer as a W&B server does: check WANDB_BASE_URL (no page's address)"
    if advice:
        return {"error": f"{advice} ({general})", "permanent": True}
    if status is None and _NO_ANSWER.search(text):
        message = (
            f"no answer from {server}: check WANDB_BASE_URL, the network and the proxy, or"
            f" deliver later from a machine with internet ({type(error).__name__}: {general})"
        )
        return {"error": message, "permanent": False, "unreachable": True}
    if status is not None and status >= 500:
        return {"error": f"{server} has a problem (HTTP {status}: {general})", "permanent": False}
    usage = type(error).__name__ == "UsageError"
    return {"error": f"{path}: {type(error).__name__}: {text}", "permanent": usage}
