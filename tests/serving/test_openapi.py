"""Whatever the description allows, and what it does not, is answered as it says: never with a 5xx."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

from recbole_dppmg.serving.app import create_app
from recbole_dppmg.serving.options import ServeOptions

_QUICK = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)  # fmt: skip
# an id may be well-formed and unknown; methods are the framework's
_NOT_OURS = [positive_data_acceptance, unsupported_method]


@pytest.fixture
def operations(engine, tmp_path):
    """The operations of a new server, since one starts once, with a queue so short that it fills."""
    app, _ = create_app(engine, ServeOptions(store=tmp_path / "cards.sqlite3", queue=4, body_kb=10_000))
    described = schemathesis.openapi.from_asgi("/openapi.json", app)
    found = [operation.ok() for operation in described.get_all_operations()]
    assert len(found) == 17
    return found


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_as_described(operations, mode):
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not (operation.path_parameters or operation.query or operation.body):
            continue

        @given(case=operation.as_strategy(generation_mode=mode))
        @_QUICK
        def check(case):
            # a long wait for a card that nobody makes would only be slow
            if isinstance(case.body, dict) and case.body.get("wait"):
                case.body["wait"] = 0
            case.call_and_validate(excluded_checks=_NOT_OURS, timeout=30)

        check()
