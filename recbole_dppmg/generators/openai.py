"""The text head for closed models: any OpenAI-compatible endpoint, told the tokens' glossary words.

What goes wrong with a request stays with that request: it is tried again where that can help, and else its result
says what failed. The key is read from the environment and appears in no message.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

from recbole_dppmg.errors import ConfigError
from recbole_dppmg.generators.base import Catalogue
from recbole_dppmg.generators.baselines import Untrained
from recbole_dppmg.generators.causal_lm import explanation
from recbole_dppmg.generators.prompts import INSTRUCTION, name_of, spoken
from recbole_dppmg.settings import TextSettings
from recbole_dppmg.types import TextRequest, TextResult, token_name

_WORDS = 12  # of a user's glossary, coarse levels first
_LONGEST_WAIT = 30.0  # seconds, whatever the server asks for
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class _Failure(Exception):
    """A try that failed; `again` tells whether another may help, `wait` the seconds that the server asks for."""

    def __init__(self, reason: str, again: bool, wait: float = 0.0):
        super().__init__(reason)
        self.again, self.wait = again, wait


class OpenAIHead(Untrained):
    """Explains items to users by an endpoint's `/chat/completions`; nothing in it is trained.

    Args:
        model: the endpoint's name of the model (`text_generator`).
        codebooks: unused; the tokens enter as their glossary words, see `attach`.
        settings: the keys of the run; `openai_*` and `text_*` are read.
        seed: unused; a request has its own.

    Raises:
        ConfigError: `openai_base_url` is no HTTP address.
    """

    name = "openai"

    def __init__(self, model: str, codebooks: Mapping[str, Tensor], settings: TextSettings, seed: int):
        import httpx

        super().__init__(model, codebooks, settings, seed)
        if not re.match(r"https?://[^/\s]", settings.openai_base_url):
            raise ConfigError(f"openai_base_url: '{settings.openai_base_url}' is no http:// or https:// address")
        self.model, self.settings = model, settings
        self._glossary: Mapping[str, Mapping[str, list[str]]] = {}
        key = os.environ.get(settings.openai_key_variable)
        self._client = httpx.Client(
            base_url=settings.openai_base_url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=settings.openai_timeout,
            limits=httpx.Limits(max_connections=settings.openai_concurrency),
        )
        self._pace = _Pace(settings.openai_per_minute)

    def attach(self, catalogue: Catalogue) -> None:
        """Take the glossary that turns tokens into words."""
        self._glossary = catalogue.glossary

    def generate(self, batch: Sequence[TextRequest]) -> list[TextResult]:
        """One result per request, in order; a request that fails gets a result with `error`.

        A refused key is not tried again in the same batch: the requests after it fail at once.
        """
        refused = threading.Event()
        with ThreadPoolExecutor(self.settings.openai_concurrency) as pool:
            return list(pool.map(lambda request: self._answer(request, refused), batch))

    def _answer(self, request: TextRequest, refused: threading.Event) -> TextResult:
        tries = self.settings.openai_retries + 1
        for n in range(tries):
            if refused.is_set():
                return TextResult("", f"openai: the key in {self.settings.openai_key_variable} was refused")
            try:
                return TextResult(self._ask(request, refused))
            except _Failure as failure:
                if not failure.again or n + 1 == tries:
                    after = f" after {n + 1} tries" if n else ""
                    return TextResult("", f"openai: {failure}{after}")
                time.sleep(min(_LONGEST_WAIT, max(failure.wait, self.settings.openai_backoff * 2**n)))
        raise AssertionError  # unreachable: the last try returns

    def _ask(self, request: TextRequest, refused: threading.Event) -> str:
        import httpx

        self._pace.wait()
        try:
            reply = self._client.post("chat/completions", json=self._body(request))
        except httpx.TimeoutException as error:
            raise _Failure(f"no answer within {self.settings.openai_timeout:g} s", again=True) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Failure(f"no connection ({type(error).__name__})", again=True) from error
        if reply.status_code in (401, 403):
            refused.set()
            reason = f"the key in {self.settings.openai_key_variable} was refused (HTTP {reply.status_code})"
            raise _Failure(reason, again=False)
        if reply.status_code != 200:
            raise _Failure(f"HTTP {reply.status_code}", reply.status_code in _AGAIN, _retry_after(reply))
        return self._read(request, reply)

    def _body(self, request: TextRequest) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [
                {"role": "system", "content": INSTRUCTION},
                {"role": "user", "content": spoken(request.item, self.words(request))},
            ],
            "max_tokens": 2 * self.settings.text_max_new_tokens,
            "temperature": self.settings.text_temperature,
            "seed": request.seed,
        }

    def words(self, request: TextRequest) -> list[str]:
        """The glossary's words of the user's tokens, text before image, coarse levels first; no word twice."""
        found = [
            word
            for modality, codes in sorted((request.tokens or {}).items(), reverse=True)
            for level, code in enumerate(codes)
            for word in self._glossary.get(token_name(modality, level, code), {}).get("words", ())
        ]
        return list(dict.fromkeys(found))[:_WORDS]

    def _read(self, request: TextRequest, reply: Any) -> str:
        try:
            content = reply.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise _Failure("the answer is not the JSON of a chat completion", again=True) from error
        if not (text := explanation("", content if isinstance(content, str) else "")):
            raise _Failure("the answer is empty", again=True)
        name = name_of(request.item)
        return text if name.casefold() in text.casefold() else f"{name}: {text}"


class _Pace:
    """At most so many requests a minute, evenly spread; None: as many as there are."""

    def __init__(self, per_minute: int | None):
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._lock, self._next = threading.Lock(), 0.0

    def wait(self) -> None:
        if not self._gap:
            return
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + self._gap
        time.sleep(at - now)


def _retry_after(reply: Any) -> float:
    """Seconds that a server asks for; 0 if it gives none, or a date."""
    try:
        return max(0.0, float(reply.headers.get("Retry-After", 0)))
    except ValueError:
        return 0.0
